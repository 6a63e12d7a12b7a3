"""A StyleGAN2 of one resolution, framed for a target that sees another.

Struppek et al., *Plug & Play Attacks*, ICML 2022, https://arxiv.org/abs/2201.12179: what a
generator of 1024x1024 faces draws is cut to its central 800x800 and resized to the target's size.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mibench.attacks.priors.styled import Begun
from mibench.attacks.priors.stylegan import StyleGAN2, StyleGANPrior
from mibench.networks.classifiers.face import resize
from mibench.networks.generators.stylegan2 import Discriminator, Generator
from mibench.precision import at, current
from mibench.roles import PriorSpec
from mibench.spec import require
from mibench.store import Work
from mibench.types import Images, ImageSet, Offer, Prior, Shape

ROOM = 2**24
"""Values of whole images that are drawn at once: five of 1024x1024 in colour."""


class FramedPrior(StyleGANPrior):
    """A generator whose images are cut to their centre and resized.

    Args:
        generator: Draws whole images.
        discriminator: Has seen whole images.
        crop: Pixels a side of the part that is kept.
        size: Pixels a side to which it is resized.
        values: Of a whole image.
    """

    def __init__(
        self, generator: Generator, discriminator: Discriminator, crop: int, size: int, values: int
    ) -> None:
        super().__init__(generator, discriminator)
        self.crop, self.size, self.values = crop, size, values

    def synthesise(
        self, ws: Float[Tensor, "n s d"], *, clamp: bool = True, begun: Begun | None = None
    ) -> Images:
        """Returns framed images with constant noise.

        An attack's batch is as large as memory allows for images of the task's size. Whole images
        need more memory, so a large batch is drawn in parts, each once more for its gradient.
        """
        parts = ws.split(max(1, ROOM // self.values))  # type: ignore[no-untyped-call]
        if begun is not None or len(parts) == 1:
            return self._framed(ws, clamp=clamp, begun=begun)
        precision = current()

        def drawn(part: Tensor) -> Images:
            with at(precision):  # a gradient may be computed by another thread
                return self._framed(part, clamp=clamp)

        again = partial(checkpoint, drawn, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(part) for part in parts])

    def _framed(self, ws: Tensor, *, clamp: bool, begun: Begun | None = None) -> Images:
        x = super().synthesise(ws, clamp=clamp, begun=begun)
        edge = (x.shape[-1] - self.crop) // 2
        kept = slice(edge, edge + self.crop)
        framed: Images = resize(x[..., kept, kept], self.size)
        return framed


@dataclass(frozen=True)
class Framed(PriorSpec):
    """A trained StyleGAN2 of another resolution than the attacked task's.

    It needs to be told which weights. It offers styles and no critic: the discriminator has seen
    whole images only.

    Attributes:
        of: The generator; its ``weights`` are a file such as ``mibench import stylegan`` writes.
        resolution: Pixels a side of what it draws, at least those of the task.
        crop: Pixels a side of the central part that is kept; 0 for all. PPA keeps 800 of 1024.
    """

    name: ClassVar[str] = "stylegan2-framed"
    offers: ClassVar[tuple[Offer, ...]] = ("styles",)

    of: StyleGAN2
    resolution: int = 1024
    crop: int = 800

    def __post_init__(self) -> None:
        require(self, resolution=(8, float("inf")), crop=(0, self.resolution))
        if self.of.weights is None:
            raise ValueError(
                "Framed.of has no weights, and public images of the task cannot train a generator "
                "of another resolution: name a file in of.weights"
            )

    def build(self, shape: Shape, num_classes: int) -> FramedPrior:
        """Returns the untrained network.

        Raises:
            ValueError: If the task's images are not square, or larger than what is kept.
        """
        channels, height, width = shape
        crop = self.crop or self.resolution
        if height != width or height > crop:
            raise ValueError(
                f"a frame of {crop}x{crop} pixels makes square images of at most that size, not "
                f"{channels}x{height}x{width}"
            )
        whole = self.of.build((channels, self.resolution, self.resolution), num_classes)
        values = channels * self.resolution**2
        return FramedPrior(whole.generator, whole.discriminator, crop, height, values)

    def planned_steps(self, images: int) -> int:
        """Returns 0: nothing is trained."""
        return 0

    def fetch(self, root: Path) -> None:
        """Reads the weights once."""
        self.of.fetch(root)

    def train(
        self, prior: Prior, public: ImageSet, target: None, rng: torch.Generator, work: Work
    ) -> None:
        """Loads the weights; nothing of ``public`` is looked at."""
        self.of.train(prior, public, target, rng, work)
