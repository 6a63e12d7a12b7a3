"""No prior at all: an attack moves the pixels themselves."""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.roles import PriorSpec
from mibench.store import Work
from mibench.types import Images, ImageSet, Labels, Offer, Prior, Shape


class PixelPrior(Prior):
    """Its latents are the pixels, one after the other."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.z_dim = prod(shape)
        self.shape = shape

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """Draws each pixel evenly from [0, 1), on the CPU."""
        return torch.rand(n, self.z_dim, generator=rng)

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns the pixels, held in [0, 1]; outside, they have no gradient."""
        return z.clamp(0, 1).view(len(z), *self.shape)


@dataclass(frozen=True)
class Pixels(PriorSpec):
    """The pixels of an image, each drawn by itself; learns nothing and has no critic."""

    name: ClassVar[str] = "pixels"
    offers: ClassVar[tuple[Offer, ...]] = ()

    def build(self, shape: Shape, num_classes: int) -> PixelPrior:
        """Returns the prior of images of ``shape``."""
        return PixelPrior(shape)

    def planned_steps(self, images: int) -> int:
        """Returns 0."""
        return 0

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: Any,  # noqa: ANN401 - None
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Does nothing."""
