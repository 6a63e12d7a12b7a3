"""What priors, identity losses, views and attacks must offer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.sources import Remembered
from mibench.store import Work, tell
from mibench.types import (
    Access,
    Images,
    ImageSet,
    Labels,
    Logits,
    Offer,
    Prior,
    Reconstructions,
    Shape,
)

if TYPE_CHECKING:
    from mibench.attacks.goal import Goal


class PriorSpec(Remembered, ABC):
    """How an adversary learns its prior from public images. A frozen dataclass."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    access: ClassVar[Access] = "none"
    """What ``train`` is handed of the target; with "none", one prior serves every target."""
    offers: ClassVar[tuple[Offer, ...]] = ("critic",)
    """What an attack finds in the prior besides ``generate``; see ``Attack.wants``."""

    def __init_subclass__(cls) -> None:
        """Takes ``sees_target``, too, and says what to write now."""
        super().__init_subclass__()
        if (whole := vars(cls).get("sees_target")) is not None:
            cls.access = "white" if whole else "none"
            tell(
                f"{cls.__qualname__} has sees_target = {whole}: "
                f'write access: ClassVar[Access] = "{cls.access}"'
            )

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> Prior:
        """Returns fresh modules; ``num_classes`` is the target's."""

    def fetch(self, root: Path) -> None:
        """Makes sure that the trained weights the spec names can be had, if it names any.

        Raises like :meth:`NetworkSpec.fetch`.
        """

    def planned_steps(self, images: int) -> int | None:
        """Returns how many steps ``train`` takes on that number of images; None if unknown."""
        return None

    @abstractmethod
    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: Any,  # noqa: ANN401 - which of three, ``access`` says
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains ``prior`` in place.

        Args:
            prior: What ``build`` returned, on its device.
            public: Images to learn from, on the same device.
            target: None if ``access`` is "none", a :class:`Watched` if "white", else a
                :class:`Query`; all count.
            rng: For every draw, on the CPU.
            work: Where state is saved and progress told.
        """


class IdentityLoss(ABC):
    """How wrong the target is about a reconstruction. A frozen dataclass."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    public: ClassVar[bool] = False
    """Whether ``penalty`` reads how far the last latents are from those of public images."""
    students: tuple[Any, ...] = ()
    """Specs of networks that learn the target's answers and are asked beside it: ``Student``."""

    def __init_subclass__(cls) -> None:
        """Refuses a loss of latents that is written where only logits are handed."""
        super().__init_subclass__()
        if cls.public and cls.penalty is IdentityLoss.penalty:
            raise TypeError(
                f"{cls.__qualname__} is public, but has no penalty: take what is computed of "
                "latents out of __call__(self, logits, labels) and return it from "
                "penalty(self, offset)"
            )

    @abstractmethod
    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image.

        Args:
            logits: What the target, or a student of it, says.
            labels: What it should say.
        """

    def penalty(self, offset: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Returns what is added to the loss of each image if ``public``; of the target alone.

        Args:
            offset: The target's last latents less their mean over public images.
        """
        raise NotImplementedError


class View(ABC):
    """A way to look at a reconstruction before the target does. A frozen dataclass.

    Attributes:
        draws: How often the target is asked about it: one that answers with noise says
            something else each time.
        looks: As how many views it counts, each with random changes of its own.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    draws: int
    looks: int = 1

    @abstractmethod
    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images as seen, of the same shape; gradients pass through.

        Args:
            x: The images of a block.
            rng: The block's stream, on the CPU.
        """


class Attack(Remembered, ABC):
    """A model-inversion attack. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    access: ClassVar[Access] = "white"
    """What ``invert`` is handed of the target."""
    wants: ClassVar[tuple[Offer, ...]] = ()
    """What its prior must offer besides ``generate``."""
    public: ClassVar[bool] = False
    """Whether ``goal.public`` has the task's public images."""
    prior: PriorSpec
    max_queries: int = 0
    """Answers of the target that may be spent on each class; 0 for no limit.

    The target that ``invert`` is handed refuses what goes beyond ``max_queries`` times the
    attacked classes.
    """

    @property
    def queries_per_image(self) -> int:
        """How many answers of the target a step asks about each image."""
        return 1

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns how many optimisation steps ``invert`` takes; None if it cannot tell.

        These are what it counts in ``work.steps``; to select starts or results is no step.

        Args:
            blocks: How many blocks of classes.
            samples: Reconstructions per class.

        Raises:
            ValueError: If ``max_queries`` does not pay for a step.
        """
        return None

    @abstractmethod
    def invert(
        self,
        target: Any,  # noqa: ANN401 - which of two, the attack's ``access`` says
        prior: Prior,
        goal: "Goal",
        work: Work,
    ) -> Reconstructions:
        """Reconstructs ``goal.samples`` images of every class.

        Args:
            target: The attacked :class:`Classifier`, frozen and in eval mode, :class:`Watched`
                by the runner; a :class:`Query` unless ``access`` is "white", which answers
                nothing if it is "none". Both say in ``remaining`` how many answers they still
                give.
            prior: The trained prior, frozen and in eval mode.
            goal: Classes to invert, how many images of each, and where to draw from.
            work: Where state is saved and steps are counted; :func:`mibench.attacks.rounds`
                and :func:`mibench.attacks.descend` do that.
        """
