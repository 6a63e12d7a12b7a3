"""Pixels as a feature space: no network decides which image is near."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.distance import nearest
from mibench.evaluation.evidence import Evidence
from mibench.evaluation.lenses import Lens, Tools
from mibench.evaluation.metric import metric
from mibench.spec import require
from mibench.types import Images


@dataclass(frozen=True)
class Pixels(Lens):
    """The images themselves, each averaged to a grid of at most ``side`` by ``side`` pixels.

    Attributes:
        side: So that a shift by a pixel or two makes little difference.
    """

    name: ClassVar[str] = "pixels"

    side: int = 16

    def __post_init__(self) -> None:
        require(self, side=(1, float("inf")))

    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n d"]:
        """Returns the pixels of each image in a row, in [0, 1]."""
        sizes = [min(size, self.side) for size in x.shape[2:]]
        return F.adaptive_avg_pool2d(x, sizes).flatten(1)  # type: ignore[arg-type]


PIXELS = Pixels()


@metric("Pixel Dist", "image", "higher", range=(0.0, 1.0), needs=(PIXELS,))
def pixel_distance(e: Evidence) -> Float[Tensor, " n"]:
    """Root mean square difference to the nearest real image of the class, in averaged pixels.

    Nearest by that difference. Images are averaged to 16 x 16 pixels in [0, 1], if they are
    larger; 0 is a copy. It trusts no classifier, which an attack may have learned to fool.
    """
    reconstructed, real = e.through(PIXELS)
    distance, _ = nearest(reconstructed, e.labels, real, e.real_labels)
    return distance / math.sqrt(real.shape[1])
