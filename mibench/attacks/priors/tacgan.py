r"""LOKT's prior: a GAN whose discriminator learns classes from the target's labels.

Nguyen et al., NeurIPS 2023, https://arxiv.org/abs/2310.19342: the T-ACGAN. Labels are asked of
generated images alone:

.. math:: L_D = \mathrm{BCE}(D(x), 1) + \mathrm{BCE}(D(G(z, y)), 0)
        + \alpha \, \mathrm{CE}(C(G(z, y)), f(G(z, y))), \qquad
    L_G = \mathrm{BCE}(D(G(z, y)), 1) + \alpha \, \mathrm{CE}(C(G(z, y)), y)

What it draws then, with the target's labels, teaches the surrogates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.priors.conditional import ConditionalGAN
from mibench.attacks.priors.gan import GANSpec, descend_on
from mibench.attacks.students import Augmented, Student
from mibench.networks.generators.sngan import AuxiliaryDiscriminator, Generator
from mibench.spec import choose, require
from mibench.store import Payload, Work
from mibench.types import Access, Images, ImageSet, Labels, Offer, Prior, Scalar, Shape

INF = float("inf")


class AuxiliaryGAN(ConditionalGAN):
    """The generator, the discriminator that tells classes, too, and the surrogates.

    Args:
        z_dim: Size of the latent space.
        generator: Draws on the scale [-1, 1].
        discriminator: Judges.
        scaled: Whether the generator's images are brought to [0, 1].
    """

    updates: Tensor
    """How often the generator was updated."""

    def __init__(
        self,
        z_dim: int,
        generator: Generator,
        discriminator: AuxiliaryDiscriminator,
        *,
        scaled: bool,
    ) -> None:
        super().__init__(z_dim, generator, discriminator, pooled=False)
        self.scaled = scaled
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns G(z, y)."""
        x = super().generate(z, y)
        return (x + 1) / 2 if self.scaled else x

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the logit of being real."""
        real: Tensor = self.discriminator(x)[0]
        return real


@dataclass(frozen=True)
class TACGAN(GANSpec):
    """A conditional GAN and surrogates that the target's labels teach.

    Attributes:
        alpha: α, the weight of the classes.
        warm_up: Updates of the generator before labels are asked; α is 0 until then.
        per_class: Images drawn of each class for the surrogates.
        students: The surrogates.
        pixels: As PLG-MI's prior has it.
    """

    name: ClassVar[str] = "tacgan"
    small: ClassVar[Mapping[str, Any]] = {
        **GANSpec.small, "warm_up": 1, "per_class": 6, "critic_steps": 2,
        "students": Augmented.small["students"],
    }  # fmt: skip
    access: ClassVar[Access] = "labels"
    offers: ClassVar[tuple[Offer, ...]] = ("critic", "surrogates")

    z_dim: int = 128
    epochs: int = 430
    batch_size: int = 128
    betas: tuple[float, float] = (0.0, 0.9)
    alpha: float = 1.5
    warm_up: int = 1000
    per_class: int = 500
    students: tuple[Student, ...] = field(default_factory=lambda: (Student(),))
    pixels: Literal["scaled", "released"] = "scaled"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, alpha=(0, INF), warm_up=(0, INF), per_class=(1, INF))
        choose(self, pixels=("scaled", "released"))
        if not self.students:
            raise ValueError("TACGAN.students must name a network that imitates the target")

    def planned_steps(self, images: int) -> None:
        """Returns None: how many images the surrogates see depends on the number of classes."""

    def planned_answers(self, images: int, classes: int, noisy: bool) -> int:
        """Returns one for each image that teaches the discriminator or the surrogates."""
        size = min(self.batch_size, images)
        steps = self.epochs * (images // size)
        silent = min(steps, self.warm_up * self.critic_steps)
        return (steps - silent) * size + classes * self.per_class

    def build(self, shape: Shape, num_classes: int) -> AuxiliaryGAN:
        """Returns untrained networks."""
        prior = AuxiliaryGAN(
            self.z_dim,
            Generator(self.z_dim, self.generator_width, shape, num_classes),
            AuxiliaryDiscriminator(self.discriminator_width, shape, num_classes),
            scaled=self.pixels == "scaled",
        )
        prior.surrogates.extend(s.network.build(shape, num_classes) for s in self.students)
        return prior

    def train(
        self, prior: Prior, public: ImageSet, target: Query, rng: torch.Generator, work: Work
    ) -> None:
        """Trains the GAN, asks about what it draws then, trains the surrogates on that."""
        assert isinstance(prior, AuxiliaryGAN)
        seeds = torch.randint(2**62, (1 + len(self.students),), generator=rng).tolist()
        streams = [torch.Generator().manual_seed(seed) for seed in seeds]

        def gan() -> Payload:
            self.teach(prior, public, target, rng, work)
            return {"state": prior.state_dict()}

        prior.load_state_dict(work.part("gan", gan)["state"])
        drawn = self.drawn(prior.eval(), target.num_classes, streams[0], work.device)
        soft = work.part("answers", lambda: {"soft": target.soft_answers(drawn)})["soft"]
        for i, (student, network) in enumerate(zip(self.students, prior.surrogates, strict=True)):
            student.start(network, work.data)
            run = partial(student.train, network, drawn, soft, streams[1 + i], work)
            network.load_state_dict(work.part(f"student {i}", run)["state"])

    def teach(
        self,
        prior: AuxiliaryGAN,
        public: ImageSet,
        target: Query,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains the GAN; the generator is updated before the discriminator's steps."""
        for_G, for_D = self._optimizers(prior)

        def draws(n: int) -> tuple[Tensor, Tensor]:
            y = torch.randint(target.num_classes, (n,), generator=rng)
            return prior.sample(n, rng).to(work.device), y.to(work.device)

        def step(picks: list[Tensor], update: bool) -> dict[str, Tensor]:
            terms = {}
            if update:
                prior.updates += 1
                asks = bool(prior.updates > self.warm_up)
                terms["generator"] = self.for_generator(prior, *draws(len(picks[0])), asks)
                descend_on(terms["generator"], for_G)
            asks = bool(prior.updates > self.warm_up)
            x = public.take(picks[0]).images
            terms["critic"] = self.for_discriminator(prior, target, x, *draws(len(picks[0])), asks)
            descend_on(terms["critic"], for_D)
            return {name: term.detach() for name, term in terms.items()}

        self._alternate(prior, (for_G, for_D), public, 1, step, rng, work, generator_first=True)

    def for_generator(
        self, prior: AuxiliaryGAN, z: Float[Tensor, "n z"], y: Labels, asks: bool
    ) -> Scalar:
        """Returns the generator's loss; without classes until labels are asked."""
        real, classes = prior.discriminator(prior.generate(z, y))
        loss: Tensor = F.softplus(-real).mean()
        return loss + self.alpha * F.cross_entropy(classes, y) if asks else loss

    def for_discriminator(
        self,
        prior: AuxiliaryGAN,
        target: Query,
        x: Images,
        z: Float[Tensor, "n z"],
        y: Labels,
        asks: bool,
    ) -> Scalar:
        """Returns the discriminator's loss of images and of others that are drawn."""
        with torch.no_grad():
            fake = prior.generate(z, y)
        drawn, classes = prior.discriminator(fake)
        loss: Tensor = F.softplus(drawn).mean() + F.softplus(-prior.realism(x)).mean()
        if asks:
            loss = loss + self.alpha * F.cross_entropy(classes, target(fake))
        else:
            loss = loss + 0 * classes.sum()  # the head of classes is in the graph, and stays
        return loss

    @torch.no_grad()
    def drawn(
        self, prior: AuxiliaryGAN, classes: int, rng: torch.Generator, device: torch.device
    ) -> ImageSet:
        """Returns images of each class, as many of each."""
        y = torch.arange(classes, device=device).repeat_interleave(self.per_class)
        pixels = [
            (255 * prior.generate(prior.sample(len(part), rng).to(device), part).clamp(0, 1))
            .round()
            .byte()
            for part in y.split(self.batch_size)  # type: ignore[no-untyped-call]
        ]
        return ImageSet(torch.cat(pixels), y)
