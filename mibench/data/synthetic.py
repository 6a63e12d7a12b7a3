"""A task small enough for a test, with a known answer: each class is one pattern."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mibench.data.base import Splits, Task, split_by_class
from mibench.seeding import generator
from mibench.spec import require
from mibench.types import ImageSet


@dataclass(frozen=True)
class Blobs(Task):
    """Class patterns plus noise; inversion should return the pattern.

    Attributes:
        num_classes: Private classes; as many again are public.
        per_class: Images per class and part.
        noise: Standard deviation of the pixel noise, in units of the [0, 1] range.
    """

    name: ClassVar[str] = "blobs"
    validation = 0.1
    channels = 1
    size = 8

    num_classes: int = 5
    per_class: int = 40
    noise: float = 0.1

    def __post_init__(self) -> None:
        require(self, num_classes=(2, 100), per_class=(4, 10_000), noise=(0, 10))

    def digest(self, root: Path) -> str:
        """Returns a constant: the images follow from the fields."""
        return "drawn"

    def load(self, root: Path) -> Splits:
        """Draws the splits; ``root`` is not read."""
        rng = generator("blobs")
        patterns = torch.rand(2 * self.num_classes, *self.shape, generator=rng)

        train, test = self._draw(patterns, rng), self._draw(patterns, rng)
        return split_by_class(train, test, self.num_classes, self.validation, rng)

    def outliers(self, root: Path) -> ImageSet:
        """Draws images of as many other patterns as there are private classes."""
        rng = generator("blobs", "outliers")
        drawn = self._draw(torch.rand(self.num_classes, *self.shape, generator=rng), rng)
        return ImageSet(drawn.pixels, drawn.labels + 2 * self.num_classes)

    def _draw(self, patterns: Tensor, rng: torch.Generator) -> ImageSet:
        labels = torch.arange(len(patterns)).repeat(self.per_class)
        noise = torch.randn(len(labels), *self.shape, generator=rng)
        x = patterns[labels] + self.noise * noise
        return ImageSet((x.clamp(0, 1) * 255).round().to(torch.uint8), labels)
