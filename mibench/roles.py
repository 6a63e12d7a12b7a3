"""The roles: what networks, defenses, priors, views, identity losses and attacks must offer.

A component derives from one of them; a new one is one file and one line.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.store import Work, tell
from mibench.types import (
    Access,
    Classifier,
    Images,
    ImageSet,
    Labels,
    Logits,
    Offer,
    Prior,
    Reconstructions,
    Scalar,
    Shape,
)

if TYPE_CHECKING:
    import mibench.data
    import mibench.training.train
    from mibench.attacks.goal import Goal


class NetworkSpec(ABC):
    """An architecture and its sizes. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    trained: ClassVar[bool] = False
    """Whether ``finish`` loads every weight, so that a recipe of no epochs will do."""

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> Classifier:
        """Returns a freshly initialised network for images of ``shape`` (c, h, w).

        Raises:
            ValueError: If the architecture does not fit the image size.
        """

    def initialise(self, network: Classifier, root: Path) -> None:  # noqa: B027 - most name none
        """Loads trained weights into a fresh network, if the spec names any.

        Args:
            network: What ``build`` returned, before a defense changes it.
            root: The data folder.
        """

    def finish(self, network: Classifier, root: Path) -> None:  # noqa: B027 - most name none
        """Loads the weights of all layers into a fresh network, if the spec names any.

        Args:
            network: What ``build`` returned, after a defense has changed it.
            root: The data folder.

        Raises:
            ValueError: If they do not fit it.
        """

    def fetch(self, root: Path) -> None:  # noqa: B027 - most name none
        """Makes sure that the trained weights the spec names can be had, if it names any.

        Args:
            root: The data folder.

        Raises:
            FileNotFoundError: If their file is missing.
            ValueError: If it is another one, or cannot be downloaded.
        """


class Helper(nn.Module):
    """Networks that a defense trains beside the target, and that are no part of it.

    Its weights, buffers, optimisers and generator are saved and resumed with the target's.
    Anything else that changes while it trains is lost when a run is interrupted: keep such
    numbers in buffers.

    Attributes:
        optimizers: What ``Defense.step`` moves the helper's own weights with, by name.
        rng: The helper's source of randomness, on the CPU.
    """

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.rng = rng

    def epoch_begins(self, epoch: int) -> None:
        """Is called before each epoch, the first being 0."""


@dataclass(frozen=True)
class Batch:
    """What a defense is handed at a step.

    Attributes:
        x: Images in [0, 1], augmented as the recipe says, shape (n, c, h, w).
        y: Their classes, shape (n,).
        epoch: Of the training, from 0 on.
        epochs: How many there will be.
        expected: The recipe's batch size, whatever this batch's.
        rng: A source of randomness for the defense alone, on the CPU; saved and resumed.
        helper: What ``Defense.assist`` returned.
        outliers: As many images in [0, 1] as the batch has, augmented likewise, of people or
            things that are neither private nor public; None unless the defense
            ``wants_outliers``.
    """

    x: Images
    y: Labels
    epoch: int = 0
    epochs: int = 1
    expected: int = 0
    rng: torch.Generator = field(default_factory=torch.Generator)
    helper: Helper | None = None
    outliers: Images | None = None

    @property
    def done(self) -> float:
        """Share of the epochs that are over, in [0, 1)."""
        return self.epoch / self.epochs


class Defense(ABC):
    """How a model owner trains. Subclasses are frozen dataclasses of hyper-parameters.

    What it may override, from the least to the most: ``loss_terms``; ``harden``, where the
    network changes; ``mature``, where a schedule must have begun before weights are kept;
    ``assist``, where other networks are trained beside the target; ``step``, where a step is
    more than the gradient of a sum. What it says of itself: ``refuse``, ``twin``, ``facts``.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    wants_outliers: ClassVar[bool] = False
    """Whether batches bring images that are neither private nor public; see ``Task.outliers``."""
    undefended: ClassVar[bool] = False
    """Whether it leaves the target undefended; others are compared with such a row."""

    @property
    def lowers_dependence(self) -> str:
        """Name of the measure of dependence between latents and input that training lowers.

        One of ``mibench.defenses.dependence.MEASURES``; "" if it trains with none.
        """
        return ""

    def __init_subclass__(cls) -> None:
        """Takes a ``loss_terms(network, x, y)``, too, and says how to write it now."""
        super().__init_subclass__()
        terms = vars(cls).get("loss_terms")
        if callable(terms) and len(inspect.signature(terms).parameters) == 4:
            tell(
                f"{cls.__qualname__}.loss_terms takes (network, x, y): write loss_terms(self, "
                "network, batch), with batch.x and batch.y"
            )

            @wraps(terms)
            def adapted(self: Defense, network: Classifier, batch: Batch) -> dict[str, Scalar]:
                result: dict[str, Scalar] = terms(self, network, batch.x, batch.y)
                return result

            del adapted.__wrapped__
            setattr(cls, "loss_terms", adapted)  # noqa: B010 - mypy refuses an assignment

    def harden(self, network: Classifier) -> Classifier:
        """Returns the network to train; most defenses leave it as it is."""
        return network

    @abstractmethod
    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the named terms whose sum is minimised on one batch."""

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        """Takes one step of the network's weights and returns the loss terms.

        The network is left in the mode, training or not, that it was found in. No terms are
        returned where nothing was done, such as here for an empty batch.

        Args:
            network: What is trained.
            batch: Images, classes and where the training is.
            optimizer: Moves the network's trainable weights, and those alone.
        """
        if not len(batch.y):
            return {}
        terms = self.loss_terms(network, batch)
        _check_terms(self, terms)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return terms

    def assist(
        self,
        network: Classifier,
        recipe: "mibench.training.train.Recipe",
        corpus: "mibench.data.Corpus",
        rng: torch.Generator,
    ) -> Helper | None:
        """Returns networks to train beside the target, on its device, if there are any.

        Args:
            network: The hardened network, initialised, on its device.
            recipe: How the target is trained; ``recipe.optimize(helper)`` gives its optimiser.
            corpus: The private images. Those of ``validation`` are not for training where the
                recipe selects by them, and ``test`` never is.
            rng: For their initial weights and their draws, on the CPU.
        """
        return None

    def mature(self, epoch: int, epochs: int) -> bool:
        """Whether the weights of an epoch, from 0 on, may be kept: its schedule has begun."""
        return True

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Returns why the defense cannot stand in a cell, as a whole sentence; "" if it can."""
        return ""

    def twin(self) -> "Defense":
        """Returns its undefended twin: the same change of the network, and the plain loss.

        With the same recipe it shows what the defense itself does.
        """
        return NoDefense()

    def facts(self, recipe: "mibench.training.train.Recipe", images: int) -> dict[str, float]:
        """Returns numbers that hold of every target trained so, such as epsilon and delta.

        They are stored with the target and quoted in records.

        Args:
            recipe: How it is trained.
            images: How many images it is trained on.
        """
        return {}


@dataclass(frozen=True)
class NoDefense(Defense):
    """Plain empirical risk minimisation, Eq. (6) of Peng et al., KDD 2022."""

    name: ClassVar[str] = "none"
    undefended: ClassVar[bool] = True

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy alone."""
        return {"task": F.cross_entropy(network(batch.x), batch.y)}


def _check_terms(defense: Defense, terms: object) -> None:
    """Refuses what loss_terms must not return."""
    who = f"loss_terms of {defense.name}"
    if not isinstance(terms, dict) or not terms:
        got = "an empty one" if isinstance(terms, dict) else type(terms).__name__
        raise ValueError(
            f'{who} must return a dict of named terms, such as {{"task": loss}}, got {got}'
        )
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.shape:
            got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise ValueError(
                f"{who} must return each term as a tensor of one number, such as a mean over the "
                f"batch, got {got} for {name!r}"
            )
    if not any(term.requires_grad for term in terms.values()):
        raise ValueError(f"{who} must return a term that depends on the network's weights")


class PriorSpec(ABC):
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

    def fetch(self, root: Path) -> None:  # noqa: B027 - most name none
        """Makes sure that the trained weights the spec names can be had, if it names any.

        Raises like :meth:`NetworkSpec.fetch`.
        """

    def planned_steps(self, images: int) -> int | None:
        """Returns how many steps ``train`` takes on so many images; None if it cannot tell."""
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
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    draws: int

    @abstractmethod
    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images as seen, of the same shape; gradients pass through.

        Args:
            x: The images of a block.
            rng: The block's stream, on the CPU.
        """


class Attack(ABC):
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
