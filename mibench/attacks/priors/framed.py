"""A StyleGAN2 of one resolution, framed for a target that sees another.

Struppek et al., *Plug & Play Attacks*, ICML 2022, https://arxiv.org/abs/2201.12179: what a
generator of 1024x1024 faces draws is cut to its central 800x800 and resized to the target's size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.priors.styled import Begun
from mibench.attacks.priors.stylegan import StyleGAN2, StyleGANPrior
from mibench.networks.classifiers.face import resize
from mibench.networks.generators.stylegan2 import Discriminator, Generator
from mibench.roles import PriorSpec
from mibench.spec import require
from mibench.store import Work
from mibench.types import Images, ImageSet, Offer, Prior, Shape


class FramedPrior(StyleGANPrior):
    """A generator whose images are cut to their centre and resized."""

    def __init__(
        self, generator: Generator, discriminator: Discriminator, crop: int, size: int
    ) -> None:
        super().__init__(generator, discriminator)
        self.crop, self.size = crop, size

    def synthesise(
        self, ws: Float[Tensor, "n s d"], *, clamp: bool = True, begun: Begun | None = None
    ) -> Images:
        """Returns framed images with constant noise."""
        x = super().synthesise(ws, clamp=clamp, begun=begun)
        edge = (x.shape[-1] - self.crop) // 2
        kept = slice(edge, edge + self.crop)
        framed: Images = resize(x[..., kept, kept], self.size)
        return framed


@dataclass(frozen=True)
class Framed(PriorSpec):
    """A trained StyleGAN2 of another resolution than the attacked task's.

    It is not in ``mibench list priors``, because it needs to be told which weights. It offers
    styles and no critic: the discriminator has seen whole images only.

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
        return FramedPrior(whole.generator, whole.discriminator, crop, height)

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
