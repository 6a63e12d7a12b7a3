"""The nouns every floor speaks: shapes, batches and the roles.

Pixels are float32 in [0, 1] everywhere above a network's first layer. A network
that was trained on another range converts inside its own ``latents``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mibench.store import Work, remark

if TYPE_CHECKING:
    from mibench.attacks.goal import Goal

Images: TypeAlias = Float[Tensor, "n c h w"]
Labels: TypeAlias = Int[Tensor, " n"]
Logits: TypeAlias = Float[Tensor, "n k"]
Scalar: TypeAlias = Float[Tensor, ""]
Shape: TypeAlias = tuple[int, int, int]
Access: TypeAlias = Literal["white", "scores", "labels"]


@dataclass(frozen=True)
class ImageSet:
    """Images in memory, or mapped into it from a file, as bytes, with their class labels.

    As floats they take four times the room: have those of a few at a time, by :meth:`take`.

    Attributes:
        pixels: Bytes 0..255, shape (n, c, h, w).
        labels: Class indices, shape (n,).
    """

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Images:
        """All images as floats in [0, 1]."""
        return self.pixels.float() / 255

    def take(self, index: Tensor) -> "ImageSet":
        """Returns the images that ``index`` (positions or a mask) picks, in its order."""
        return ImageSet(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> "ImageSet":
        """Returns the same images on ``device``."""
        return ImageSet(self.pixels.to(device), self.labels.to(device))


class Classifier(nn.Module, ABC):
    """A k-way classifier f = last ∘ neck ∘ …, with its latents Z_1..Z_M in the open.

    One pass gives both: ``zs = f.latents(x); logits = f.head(zs[-1])``.
    """

    num_classes: int
    noise_dim: int = 0
    """Width of the noise that ``last`` draws for each image; 0 if it draws none."""
    neck: nn.Module
    """What makes Z_M of the flattened last block; often the identity."""
    last: nn.Module
    """The layer from Z_M to the logits; takes noise as a second argument if noise_dim > 0."""

    def own_input(self, x: Images) -> Tensor:
        """Returns X as a dependence d(X, Z_j) takes it: in the range that the network reads.

        They are the images as they are, unless the network says otherwise. The shape stays.
        """
        return x

    def uncounted(self, answers: int) -> "Classifier":
        """Returns what gives so many answers; a classifier that counts counts them now.

        Raises:
            ValueError: If it counts its answers and fewer remain.
        """
        return self

    @abstractmethod
    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns Z_1, ..., Z_M, each of shape (n, ...), Z_M after the neck and flat."""

    def head(self, z: Float[Tensor, "n d"], noise: Tensor | None = None) -> Logits:
        """Maps Z_M to logits, shape (n, k).

        Args:
            z: The last latent.
            noise: Standard normal draws, shape (n, noise_dim), for a stochastic last layer;
                without them it draws its own from the global generator.
        """
        logits: Tensor = self.last(z) if noise is None else self.last(z, noise)
        return logits

    def forward(self, x: Images) -> Logits:
        """Returns logits, shape (n, k)."""
        return self.head(self.latents(x)[-1])


BATCH_PIXELS = 2**20
"""What ``predict`` takes at once, unless told: a deep network's maps are many times that."""


def predict(
    network: Classifier, x: Images | ImageSet, rng: torch.Generator, batch: int | None = None
) -> tuple[Logits, Float[Tensor, "n d"]]:
    """Returns the logits and last latents of all images; see :func:`answers`."""
    logits, features = zip(*answers(network, x, rng, batch), strict=True)
    return torch.cat(logits), torch.cat(features)


@torch.no_grad()
def answers(
    network: Classifier, x: Images | ImageSet, rng: torch.Generator, batch: int | None = None
) -> Iterator[tuple[Logits, Float[Tensor, "n d"]]]:
    """Yields the logits and last latents batch by batch, on the CPU, in eval mode.

    Of an :class:`ImageSet` one batch at a time is held as floats. A stochastic head gets its
    noise per image from ``rng``, so the result does not depend on ``batch``, by default the
    fewer the larger the images. Where a GPU runs out of memory, the batch is halved and the
    stage remarks on it: the last bits may be others.

    Raises:
        ValueError: If the network counts its answers and fewer than ``len(x)`` remain; it
            answers nothing then.
    """
    network = network.uncounted(len(x))  # all at once: a refusal comes before the first batch
    pixels = x.pixels if isinstance(x, ImageSet) else x
    batch = batch or max(1, min(512, BATCH_PIXELS // max(1, pixels[:1].numel())))
    training = network.training
    network.eval()
    device = next(network.parameters()).device
    noise = torch.randn(len(x), network.noise_dim, generator=rng) if network.noise_dim else None
    start = 0
    while start < len(x):
        try:
            part = pixels[start : start + batch]
            part = part.float() / 255 if isinstance(x, ImageSet) else part
            z = network.latents(part.to(device))[-1]
            draw = None if noise is None else noise[start : start + batch].to(device)
            answer = network.head(z, draw).cpu()
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            remark(f"Out of memory in evaluation: {batch} images at a time, last bits may differ.")
            continue
        yield answer, z.cpu()
        start += batch
    network.train(training)


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
    """

    x: Images
    y: Labels
    epoch: int = 0
    epochs: int = 1
    expected: int = 0
    rng: torch.Generator = field(default_factory=torch.Generator)
    helper: Helper | None = None

    @property
    def done(self) -> float:
        """Share of the epochs that are over, in [0, 1)."""
        return self.epoch / self.epochs


class Defense(ABC):
    """How a model owner trains. Subclasses are frozen dataclasses of hyper-parameters.

    What it may override, from the least to the most: ``loss_terms``; ``harden``, where the
    network changes; ``mature``, where a schedule must have begun before weights are kept;
    ``assist``, where other networks are trained beside the target; ``step``, where a step is
    more than the gradient of a sum.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""

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

        The network is left in the mode, training or not, that it was found in. Nothing is
        returned where nothing was done, such as for an empty batch.

        Args:
            network: What is trained.
            batch: Images, classes and where the training is.
            optimizer: Moves the network's trainable weights, and those alone.
        """
        terms = self.loss_terms(network, batch)
        _check_terms(self, terms)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return terms

    def assist(self, network: Classifier, rng: torch.Generator) -> Helper | None:
        """Returns networks to train beside the target, on its device, if there are any.

        Args:
            network: The hardened network, initialised, on its device.
            rng: For their initial weights and their draws, on the CPU.
        """
        return None

    def mature(self, epoch: int, epochs: int) -> bool:
        """Whether the weights of an epoch, from 0 on, may be kept: its schedule has begun."""
        return True


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


class Prior(nn.Module, ABC):
    """A trained generative prior over images."""

    z_dim: int
    pooled: bool = False
    """Whether an image's realism depends on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, Tensor] = {}
        """Statistics of its training by name; nothing is computed from them."""

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """Draws latents from N(0, I), on the CPU."""
        return torch.randn(n, self.z_dim, generator=rng)

    @abstractmethod
    def generate(self, z: Float[Tensor, "n z"]) -> Images:
        """Returns images in [0, 1]."""

    @abstractmethod
    def realism(self, x: Images) -> Float[Tensor, " n"]:
        """Returns the discriminator's score of each image; higher is more real."""

    def realism_by_group(self, x: Images, sizes: Sequence[int]) -> Float[Tensor, " n"]:
        """Returns the scores where images are judged beside those of their own group only.

        Args:
            x: Images, group after group.
            sizes: Lengths of the groups.
        """
        if not self.pooled:
            return self.realism(x)
        return torch.cat([self.realism(group) for group in torch.split(x, list(sizes))])


class PriorSpec(ABC):
    """How an adversary learns its prior from public images. A frozen dataclass."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    sees_target: ClassVar[bool]
    """Whether ``train`` is handed the target; if not, one prior serves every target."""

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
        target: Classifier | None,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains ``prior`` in place; ``target`` is None unless ``sees_target``."""


@dataclass(frozen=True)
class Reconstructions:
    """What an attack returns.

    Attributes:
        images: Pixels in [0, 1], shape (samples, classes, c, h, w), classes in block order.
        latents: What made them, shape (samples, classes, ...).
        earlier: Images of earlier moments of the attack, oldest first, where it keeps them,
            shape (moments, samples, classes, c, h, w).
    """

    images: Float[Tensor, "s n c h w"]
    latents: Float[Tensor, "s n *z"]
    earlier: Float[Tensor, "m s n c h w"] | None = None


class IdentityLoss(ABC):
    """How wrong the target is about a reconstruction. A frozen dataclass."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    public: ClassVar[bool] = False
    """Whether it reads how far the last latents are from those of public images."""

    @abstractmethod
    def __call__(
        self, logits: Logits, labels: Labels, away: Float[Tensor, "n d"] | None = None
    ) -> Float[Tensor, " n"]:
        """Returns the loss of each image.

        Args:
            logits: What the target says.
            labels: What it should say.
            away: Last latents less their mean over public images, if ``public``.
        """


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
        """Returns the images as seen, of the same shape; slopes pass through.

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
                by the runner; a :class:`Query` unless ``access`` is "white". Both say in
                ``remaining`` how many answers they still give.
            prior: The trained prior, frozen and in eval mode.
            goal: Classes to invert, how many images of each, and where to draw from.
            work: Where state is saved and steps are counted; :func:`mibench.attacks.rounds`
                and :func:`mibench.attacks.descend` do that.
        """
