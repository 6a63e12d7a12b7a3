"""A prior with surrogates: networks that imitate the target, trained on its answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.priors.gan import WGANGP
from mibench.attacks.students import Augmented, Student
from mibench.roles import PriorSpec
from mibench.store import Payload, Work
from mibench.types import Access, Classifier, Images, ImageSet, Labels, Offer, Prior, Shape


class Imitating(Prior):
    """Another prior, and networks beside it that imitate the target."""

    def __init__(self, prior: Prior, surrogates: Sequence[Classifier]) -> None:
        super().__init__()
        self.z_dim, self.pooled = prior.z_dim, prior.pooled
        self.prior = prior
        self.surrogates.extend(surrogates)

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """Draws the other prior's latents."""
        return self.prior.sample(n, rng)

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns the other prior's images."""
        return self.prior.generate(z, y)

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the other prior's score."""
        return self.prior.realism(x, y)

    def realism_by_group(
        self, x: Images, sizes: Sequence[int], y: Labels | None = None
    ) -> Float[Tensor, " n"]:
        """Returns the other prior's scores."""
        return self.prior.realism_by_group(x, sizes, y)


@dataclass(frozen=True)
class Imitation(PriorSpec):
    """Another prior, with surrogates that learn the target's scores of public images.

    Attributes:
        of: The other prior; it must not ask the target.
        students: The surrogates.
    """

    name: ClassVar[str] = "imitation"
    small: ClassVar[Mapping[str, Any]] = {
        "of": WGANGP(**WGANGP.small), **Augmented.small,
    }  # fmt: skip
    access: ClassVar[Access] = "scores"

    of: PriorSpec = field(default_factory=WGANGP)
    students: tuple[Student, ...] = field(default_factory=lambda: (Student(),))

    def __post_init__(self) -> None:
        if self.of.access != "none":
            raise ValueError(f"Imitation.of must not ask the target, and {self.of.name} does")
        if not self.students:
            raise ValueError("Imitation.students must name a network that imitates the target")

    @property
    def offers(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """Surrogates, and what the other prior offers through :class:`Imitating`."""
        return ("critic", "surrogates") if "critic" in self.of.offers else ("surrogates",)

    def build(self, shape: Shape, num_classes: int) -> Imitating:
        """Returns untrained networks."""
        networks = [s.network.build(shape, num_classes) for s in self.students]
        return Imitating(self.of.build(shape, num_classes), networks)

    def planned_steps(self, images: int) -> int | None:
        """Returns those of the other prior and of all students."""
        steps = self.of.planned_steps(images)
        students = sum(s.recipe.planned_steps(images) for s in self.students)
        return None if steps is None else steps + students

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: Query,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains the other prior, asks the target about each public image, trains students."""
        assert isinstance(prior, Imitating)
        inner = prior.prior
        seeds = torch.randint(2**62, (len(self.students),), generator=rng).tolist()

        def other() -> Payload:
            self.of.train(inner, public, None, rng, work)
            return {"state": inner.state_dict(), "history": inner.history}

        trained = work.part("prior", other)
        inner.load_state_dict(trained["state"])
        prior.history = trained["history"]
        soft = target.soft_answers(public)
        for i, (student, network) in enumerate(zip(self.students, prior.surrogates, strict=True)):
            stream = torch.Generator().manual_seed(seeds[i])
            student.start(network, work.data)
            run = partial(student.train, network, public, soft, stream, work)
            network.load_state_dict(work.part(f"student {i}", run)["state"])
