"""MNIST, LeCun, Cortes & Burges 1998, in torchvision's layout."""

import gzip
import hashlib
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mibench.data.base import (
    Sizes,
    Splits,
    Task,
    check_labels,
    resize,
    sizes_by_class,
    split_by_class,
)
from mibench.seeding import generator
from mibench.spec import require
from mibench.store import remark
from mibench.types import ImageSet

PARTS = ("train", "t10k")
LARGEST = 2**26
"""Bytes of the largest file that is read; that of the train images has 47,040,016."""
OFFICIAL = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
"""What :meth:`MNIST.digest` returns of the official files."""


@dataclass(frozen=True)
class MNIST(Task):
    """Handwritten digits of MNIST, 0-4 private and 5-9 public (Section 5.1).

    Attributes:
        num_classes: Digits 0..num_classes-1 are private, the others public.
        size: Height and width in pixels, resized from 28.
        validation: Share of each class's official train part held out for selection.
    """

    name: ClassVar[str] = "mnist"
    channels = 1
    official: ClassVar[Sizes] = Sizes(private=30_596, evaluation=60_000, public=34_265)

    num_classes: int = 5
    size: int = 32
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(self, num_classes=(2, 8), size=(8, 256), validation=(0, 0.5))

    def digest(self, root: Path) -> str:
        """Returns the sha256 of the four files' contents, gzipped or not."""
        digest = hashlib.sha256()
        for part in PARTS:
            images, labels = read(root, part)
            digest.update(images.numpy().tobytes())
            digest.update(labels.to(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def load(self, root: Path) -> Splits:
        """Reads ``root``/MNIST/raw; remarks on files that are not the official ones."""
        if self.digest(root) != OFFICIAL:
            remark(
                "The files of MNIST are not the official ones: this is another data set under "
                "its name, and results are not comparable with those on MNIST."
            )
        train, test = (
            ImageSet(resize(images[:, None], self.size), labels.long())
            for images, labels in (read(root, part) for part in PARTS)
        )
        rng = generator("mnist", "validation")
        return split_by_class(train, test, self.num_classes, self.validation, rng)

    def sizes(self, root: Path) -> Sizes:
        """Returns how many images there are, from the labels alone."""
        train, test = (read(root, part)[1] for part in PARTS)
        return sizes_by_class(train, test, self.num_classes)

    def download(self, root: Path) -> None:
        """Fetches the four files with torchvision."""
        from torchvision import datasets

        try:
            datasets.MNIST(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"MNIST could not be downloaded: {error}") from error


def read(root: Path, part: str) -> tuple[Tensor, Tensor]:
    """Returns the images (n, 28, 28) and labels (n,) of an official part, as bytes.

    Raises:
        FileNotFoundError: If a file is absent.
        ValueError: If a file is cut short, or is not what its name says; if a label is none of
            0 to 9, or one of these is missing.
    """
    images = _idx(root, f"{part}-images-idx3-ubyte")
    labels = _idx(root, f"{part}-labels-idx1-ubyte")
    if len(images) != len(labels) or images.shape[1:] != (28, 28):
        raise ValueError(
            f"MNIST under {root}: {len(images)} {part} images of {tuple(images.shape[1:])} pixels "
            f"for {len(labels)} labels; fetch it again with --download"
        )
    check_labels(labels, 10, f"the {part} part of MNIST under {root}")
    return images, labels


def _idx(root: Path, name: str) -> Tensor:
    """Returns the array in an IDX file, gzipped or not (yann.lecun.com's format)."""
    folder = root / "MNIST" / "raw"
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            break
    else:
        raise FileNotFoundError(
            f"no MNIST file {name} in {folder}; add --download to fetch it, or name the folder "
            "that holds MNIST/raw with --data"
        )
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"{path} is larger than any file of MNIST")
        zeros, kind, ndim = struct.unpack(">HBB", data[:4])
        shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again with --download") from error
    body = data[4 + 4 * ndim :]
    if (zeros, kind) != (0, 8) or len(body) != math.prod(shape) or not body:
        raise ValueError(f"{path} is not a whole IDX file; fetch it again with --download")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape)
