"""The nouns every floor speaks: shapes, batches and the roles.

Pixels are float32 in [0, 1] everywhere above a network's first layer. A network
that was trained on another range converts inside its own ``latents``.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mibench.precision import mixed
from mibench.store import remark

Images: TypeAlias = Float[Tensor, "n c h w"]
Labels: TypeAlias = Int[Tensor, " n"]
Logits: TypeAlias = Float[Tensor, "n k"]
Scalar: TypeAlias = Float[Tensor, ""]
Shape: TypeAlias = tuple[int, int, int]
Access: TypeAlias = Literal["none", "labels", "scores", "white"]
"""What may be had of a target, from the least to the most: nothing, the class of each image, the
probabilities of all classes, or the whole network."""
Offer: TypeAlias = Literal["critic", "styles", "surrogates"]
"""What a prior may have besides a generator: a critic, which says how real an image is; styles, as
a StyleGAN has; or surrogates, networks that imitate the target."""


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

    One pass gives both: ``zs = f.latents(x); logits = f.head(zs[-1])``. Latents are computed at
    the precision of the run (:func:`mibench.precision.mixed`), logits in float32.
    """

    channels_last: ClassVar[bool] = False
    """Whether it is quicker in bf16 with the channels of its maps last in memory."""

    num_classes: int
    noise_dim: int = 0
    """Width of the noise that ``last`` draws for each image; 0 if it draws none."""
    neck: nn.Module
    """What makes Z_M of the flattened last block; often the identity."""
    last: nn.Module
    """The layer from Z_M to the logits; takes noise as a second argument if noise_dim > 0."""

    def __init_subclass__(cls) -> None:
        """Lets latents be computed at the precision of the run."""
        super().__init_subclass__()
        if "latents" in vars(cls):
            cls.latents = mixed(cls.latents)  # type: ignore[method-assign]

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
        """Maps Z_M to logits, shape (n, k): what the last layer returns, no log-probabilities.

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
"""Default number of values in a batch of ``predict``; a network's maps are many times that."""


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


class Prior(nn.Module, ABC):
    """A trained generative prior over images."""

    z_dim: int
    pooled: bool = False
    """Whether an image's realism depends on the others of its batch."""

    def __init_subclass__(cls) -> None:
        """Refuses methods that do not take classes, and says how to write them."""
        super().__init_subclass__()
        for name, given in (("generate", "z"), ("realism", "x")):
            method = vars(cls).get(name)
            if callable(method) and "y" not in inspect.signature(method).parameters:
                raise TypeError(
                    f"{cls.__qualname__}.{name} is called with classes, too: "
                    f"write def {name}(self, {given}, y=None)"
                )

    def __init__(self) -> None:
        super().__init__()
        self.surrogates: MutableSequence[Classifier] = nn.ModuleList()  # type: ignore[assignment]
        """Networks that imitate the target, if the prior offers any."""
        self.history: dict[str, Tensor] = {}
        """Statistics of its training by name; nothing is computed from them."""

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """Draws latents from N(0, I), on the CPU."""
        return torch.randn(n, self.z_dim, generator=rng)

    @abstractmethod
    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns images of the task's shape in [0, 1].

        Args:
            z: Latents.
            y: The target's class that each is an image of; most priors take no notice.
        """

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the critic's score of each image; higher is more real.

        Args:
            x: Images in [0, 1].
            y: The target's class that each is an image of; most priors take no notice.

        Raises:
            ValueError: If the prior has no critic.
        """
        raise ValueError(f"{type(self).__name__} has no critic: it cannot say how real images are")

    def realism_by_group(
        self, x: Images, sizes: Sequence[int], y: Labels | None = None
    ) -> Float[Tensor, " n"]:
        """Returns the scores where images are judged beside those of their own group only.

        Args:
            x: Images, group after group.
            sizes: Lengths of the groups.
            y: As :meth:`realism` takes them.
        """
        if not self.pooled:
            return self.realism(x, y)
        groups = torch.split(x, list(sizes))
        classes = [None] * len(groups) if y is None else torch.split(y, list(sizes))
        return torch.cat([self.realism(*pair) for pair in zip(groups, classes, strict=True)])


@dataclass(frozen=True)
class Reconstructions:
    """What an attack returns.

    Attributes:
        images: Pixels in [0, 1], shape (samples, classes, c, h, w), classes in block order.
        latents: What made them, shape (samples, classes, ...).
        earlier: Images of earlier moments of the attack, oldest first, where it keeps them,
            shape (moments, samples, classes, c, h, w).
        counts: Reconstructions of which something is to be told, such as those of a class that
            was never entered, by what that is.
    """

    images: Float[Tensor, "s n c h w"]
    latents: Float[Tensor, "s n *z"]
    earlier: Float[Tensor, "m s n c h w"] | None = None
    counts: dict[str, int] = field(default_factory=dict)
