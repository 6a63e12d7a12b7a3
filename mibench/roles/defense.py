"""What defenses must offer, and what they are handed."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.roles.network import NetworkSpec
from mibench.sources import Remembered
from mibench.store import tell
from mibench.types import Classifier, Images, Labels, Scalar

if TYPE_CHECKING:
    import mibench.data
    import mibench.training.train


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


class Defense(Remembered, ABC):
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
    checked_on: ClassVar[NetworkSpec | None] = None
    """A small network to check it with, where a perceptron will not do."""
    wants_outliers: ClassVar[bool] = False
    """Whether batches bring images that are neither private nor public; see ``Task.outliers``."""
    undefended: ClassVar[bool] = False
    """Whether it leaves the target undefended; others are compared with such a row."""
    idle: ClassVar[tuple[str, ...]] = ()
    """Fields that change nothing in its twin: any row of that twin is compared with it."""

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
