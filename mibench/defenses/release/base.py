"""What releases share."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.roles import Batch, Defense
from mibench.spec import check_role
from mibench.store import Work
from mibench.types import Classifier, Images, ImageSet, Logits, Scalar

Answer = Callable[[ImageSet], Float[Tensor, "n k"]]
"""Images to the target's scores, before the release."""
LEAST = 1e-12
"""A released score counts as at least so much where its logarithm is stored."""


class Release(Defense):
    """A defense of the answers: the target is trained as ``inner`` says, its scores are changed.

    Subclasses are frozen dataclasses with a field ``inner: Defense``, such as
    ``inner: Defense = field(default_factory=NoDefense)``. One trained target serves all releases
    of it. Whoever has scores or labels has those of the release: black-box attacks, the accuracy,
    the metrics. A release that learns something overrides ``fit``.
    """

    repeatable: ClassVar[bool] = True
    """Whether an image gets the same answer whenever it is asked about, in whichever company.

    A repeatable release that draws does so from a generator seeded by the bytes of the image, and
    leaves ``rng`` alone.
    """
    inner: Defense

    @abstractmethod
    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the scores that are let out, in [0, 1]; they need not sum to 1.

        Args:
            probs: The target's scores, each row's sum is 1.
            x: The images they are about.
            state: What ``fit`` returned, on the device of ``probs``.
            rng: For a release that is not ``repeatable``, on the CPU. All images of a call come
                at once.
        """

    def fit(
        self, answer: Answer, held_out: ImageSet, rng: torch.Generator, work: Work
    ) -> dict[str, Tensor]:
        """Returns what the release learns of the target, once it is trained; by default nothing.

        Args:
            answer: Returns the target's scores of images, on the CPU.
            held_out: Private images that the target was not trained on, some of each class.
            rng: A source of randomness, on the CPU.
            work: Where state is saved and progress is reported.
        """
        return {}

    @property
    def learns(self) -> bool:
        """Whether it has a ``fit`` of its own, and so needs held-out images."""
        return type(self).fit is not Release.fit

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Refuses attacks that see past the answers, and recipes that leave nothing to learn of.

        Raises:
            TypeError: If ``inner`` is no defense.
        """
        who = type(self).__qualname__
        if not hasattr(self, "inner"):
            raise TypeError(
                f"{who} has no inner: write inner: Defense = field(default_factory=NoDefense) in "
                "it"
            )
        check_role(self.inner, Defense, f"{who}.inner")
        if isinstance(self.inner, Release):
            return (
                f"{self.name} is a release of the release {self.inner.name}: its inner must be a "
                "defense that trains the target"
            )
        if cell.attack.access == "white" or cell.attack.prior.access == "white":
            sees = "" if cell.attack.access == "white" else f"'s prior {cell.attack.prior.name}"
            return (
                f"not applicable: {cell.attack.name}{sees} sees the whole target, and the release "
                f"{self.name} changes its answers alone; take a black-box attack, or the row of "
                f"{self.inner.name} without the release"
            )
        if self.learns and cell.recipe.select != "validation":
            return (
                f"{self.name} learns from images that the target is not trained on, and "
                f"recipe.select={cell.recipe.select} holds none out: set recipe.select=validation"
            )
        return self.inner.refuse(cell)

    def harden(self, network: Classifier) -> Classifier:
        """Returns what the inner defense does."""
        return self.inner.harden(network)

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the inner defense's."""
        return self.inner.loss_terms(network, batch)

    def mature(self, epoch: int, epochs: int) -> bool:
        """Says what the inner defense does."""
        return self.inner.mature(epoch, epochs)

    def twin(self) -> Defense:
        """Returns the inner defense's: nothing is changed in its answers."""
        return self.inner.twin()


@dataclass(frozen=True)
class Released:
    """A release and what it has learnt.

    Attributes:
        release: The release.
        state: What its ``fit`` returned, on the device of the scores.
    """

    release: Release
    state: dict[str, Tensor]

    def __call__(
        self, logits: Logits, x: Images, rng: torch.Generator | None = None
    ) -> Float[Tensor, "n k"]:
        """Returns the scores that are let out of what the target says of images.

        Args:
            logits: The target's, of all images of a call.
            x: The images.
            rng: Without one the global generator, which is saved with every stage's state.

        Raises:
            ValueError: If the release returns something else.
        """
        probs = logits.softmax(1)
        released: Any = self.release(probs, x, self.state, rng or torch.default_generator)
        who = f"the release {self.release.name}"
        if not isinstance(released, Tensor) or released.shape != probs.shape:
            got = (
                tuple(released.shape) if isinstance(released, Tensor) else type(released).__name__
            )
            raise ValueError(f"{who} must return scores of shape {tuple(probs.shape)}, got {got}")
        if not ((released >= 0) & (released <= 1)).all():  # NaN is neither
            raise ValueError(f"{who} must return scores in [0, 1]")
        return released

    def logits(self, logits: Logits, x: Images, rng: torch.Generator) -> Logits:
        """Returns the logarithms of the released scores, of which 0 counts as 1e-12."""
        return self(logits, x, rng).clamp(min=LEAST).log()
