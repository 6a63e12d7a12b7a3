"""The UCI handwritten digits that scikit-learn ships, Alpaydin & Kaynak 1998.

https://archive.ics.uci.edu/dataset/80. 1,797 images of 8x8 pixels, ten classes: the data set
that is always there.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from mibench.data.base import Splits, Task, hold_out, resize, split_by_class
from mibench.seeding import generator
from mibench.spec import require
from mibench.types import ImageSet

SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
"""Of the 1,797 x 64 pixel bytes and the 1,797 label bytes."""


@dataclass(frozen=True)
class Digits(Task):
    """Handwritten digits, 0-4 private and 5-9 public; nothing to download.

    Attributes:
        num_classes: Digits 0..num_classes-1 are private, the others public.
        size: Height and width in pixels, upsampled from 8.
        test: Share of each class that is the test part.
        validation: Share of each class's train part held out for selection.
    """

    name: ClassVar[str] = "digits"
    channels = 1

    num_classes: int = 5
    size: int = 16
    test: float = 0.25
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(self, num_classes=(2, 8), size=(8, 256), test=(0.05, 0.9), validation=(0, 0.5))

    def digest(self, root: Path) -> str:
        """Returns the known digest; ``load`` checks that it is true."""
        return SHA256

    def load(self, root: Path) -> Splits:
        """Splits the images that scikit-learn ships; ``root`` is not read."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = torch.from_numpy(bunch.data).to(torch.uint8)  # 0..16
        labels = torch.from_numpy(bunch.target).long()
        raw = pixels.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
        if hashlib.sha256(raw).hexdigest() != SHA256:
            raise ValueError("scikit-learn's digits differ from the known ones; reinstall it")
        bytes_ = (pixels.float() * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
        everything = ImageSet(resize(bytes_, self.size), labels)
        test = hold_out(labels, self.test, generator("digits", "test"))
        return split_by_class(
            everything.take(~test),
            everything.take(test),
            self.num_classes,
            self.validation,
            generator("digits", "validation"),
        )
