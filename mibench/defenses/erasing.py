"""Random erasing as a defense, MIDRE, Tran et al., TMLR 2025, https://arxiv.org/abs/2409.01062."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.roles import Batch, Defense
from mibench.spec import require
from mibench.types import Classifier, Images, Scalar


@dataclass(frozen=True)
class RandomErasing(Defense):
    """Cross-entropy of images, each of which has lost a square at a random place.

    The square comes after all augmentation of the recipe. Its share of the image's area is
    uniform in [area_min, area_max), its side the root of that, rounded to whole pixels.

    Attributes:
        area_max: Largest share, below 1; 0.4 and 0.8 are the authors'.
        area_min: Smallest share.
        chance: Of an image to lose a square, in [0, 1].
        fill: What stands in the square, red, green and blue in [0, 1]; an image with another
            number of channels gets the mean. The default is as released: ImageNet's mean (0.485,
            0.456, 0.406), but read as pixels of [-1, 1].
    """

    name: ClassVar[str] = "midre"

    area_max: float = 0.4
    area_min: float = 0.1
    chance: float = 1.0
    fill: tuple[float, float, float] = (0.7425, 0.728, 0.703)

    def __post_init__(self) -> None:
        require(self, area_max=(0, 0.99), area_min=(0, self.area_max), chance=(0, 1), fill=(0, 1))

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy of the erased images."""
        draws = torch.rand(len(batch.x), 4, generator=batch.rng, dtype=torch.float64)
        return {"task": F.cross_entropy(network(self.erased(batch.x, draws)), batch.y)}

    def erased(self, x: Images, draws: Float[Tensor, "n 4"]) -> Images:
        """Returns images without their squares.

        Args:
            x: Images in [0, 1].
            draws: Four numbers in [0, 1) for each: what decides whether it loses a square, the
                square's area, and how far it stands from the top and from the left.
        """
        height, width = x.shape[2:]
        chance, area, top, left = draws.T
        share = self.area_min + area * (self.area_max - self.area_min)
        side = (share * height * width).sqrt().round().clamp(max=min(height, width) - 1)
        side = torch.where(chance < self.chance, side, 0)

        def covered(place: Tensor, pixels: int) -> Tensor:
            first = (place * (pixels - side + 1)).floor()[:, None]
            at = torch.arange(pixels)
            return (at >= first) & (at < first + side[:, None])

        hole = covered(top, height)[:, None, :, None] & covered(left, width)[:, None, None, :]
        colour = x.new_tensor(self.fill)
        if x.shape[1] != len(self.fill):
            colour = colour.mean()[None]
        return torch.where(hole.to(x.device), colour[:, None, None], x)
