"""CIFAR-10, Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html."""

import hashlib
import io
import pickle
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from mibench.data.base import (
    Sizes,
    Splits,
    Task,
    check_labels,
    resize,
    sizes_by_class,
    split_by_class,
)
from mibench.data.images import file_digests, image_files, manifest_digest
from mibench.data.reading import read_images, remark_on_left_out
from mibench.seeding import generator
from mibench.spec import require
from mibench.store import remark
from mibench.types import ImageSet

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
OFFICIAL = "85782e9678eac50150693887f4dc892f1521aa9b8293a28baefe28022713acc3"
"""What :func:`contents` returns of the official images, in whatever order and layout."""


@dataclass(frozen=True)
class CIFAR10(Task):
    """Ten kinds of things; the first are private, the others public (Section 5.1).

    Reads torchvision's layout, ``cifar-10-batches-py``, or a plain tree of images,
    ``cifar10/{train,test}/<class name>/*``.

    Attributes:
        num_classes: Classes 0..num_classes-1 (airplane first) are private.
        size: Height and width in pixels.
        validation: Share of each class's official train part held out for selection.
    """

    name: ClassVar[str] = "cifar10"
    channels = 3
    official: ClassVar[Sizes] = Sizes(private=25_000, evaluation=50_000, public=30_000)

    num_classes: int = 5
    size: int = 32
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(self, num_classes=(2, 8), size=(8, 1024), validation=(0, 0.5))

    def digest(self, root: Path) -> str:
        """Returns the digest of the batches, or of the tree's images."""
        batches, tree = _places(root)
        if batches is not None:
            return manifest_digest(file_digests(root, batches))
        return manifest_digest(file_digests(root, [f for fs in tree.values() for f in fs]))

    def load(self, root: Path) -> Splits:
        """Reads either layout; remarks on images that are not the official ones."""
        batches, tree = _places(root)
        if batches is not None:
            sets = {part: _read_batches(root, part) for part in BATCHES}
        else:
            sets = _read_tree(root, tree)
        if contents(sets.values()) != OFFICIAL:
            remark(
                "The images of CIFAR-10 are not the official ones: this is another data set under "
                "its name, and results are not comparable with those on CIFAR-10."
            )
        train, test = (ImageSet(resize(s.pixels, self.size), s.labels) for s in sets.values())
        rng = generator("cifar10", "validation")
        return split_by_class(train, test, self.num_classes, self.validation, rng)

    def sizes(self, root: Path) -> Sizes:
        """Returns how many images there are; decodes none of a tree's."""
        batches, tree = _places(root)
        if batches is not None:
            train, test = (_read_batches(root, part).labels for part in BATCHES)
        else:
            train, test = (
                torch.tensor([c for (p, c), files in tree.items() if p == part for _ in files])
                for part in BATCHES
            )
        return sizes_by_class(train, test, self.num_classes)

    def classes(self, root: Path) -> list[str]:
        """Returns the names of the private classes."""
        return list(CLASSES[: self.num_classes])

    def download(self, root: Path) -> None:
        """Fetches the batches with torchvision."""
        from torchvision import datasets

        try:
            datasets.CIFAR10(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"CIFAR-10 could not be downloaded: {error}") from error


def contents(parts: Iterable[ImageSet]) -> str:
    """Returns the sha256 of what images and labels each part has, in whatever order."""
    digest = hashlib.sha256()
    for part in parts:
        rows = zip(part.labels.tolist(), part.pixels.numpy(), strict=True)
        digest.update(b"".join(sorted(bytes([y]) + hashlib.sha256(x).digest() for y, x in rows)))
    return digest.hexdigest()


def _places(root: Path) -> tuple[list[Path] | None, dict[tuple[str, int], list[Path]]]:
    """Returns the batch files, or the tree's (part, label) → images.

    Raises:
        FileNotFoundError: If neither is whole.
    """
    folder = root / "cifar-10-batches-py"
    if folder.is_dir():
        files = [folder / name for names in BATCHES.values() for name in names]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"no file {file}; fetch CIFAR-10 again with --download")
        return files, {}
    tree = {}
    for part in BATCHES:
        for label, name in enumerate(CLASSES):
            place = root / "cifar10" / part / name
            tree[part, label] = image_files(place) if place.is_dir() else []
            if not tree[part, label]:
                raise FileNotFoundError(
                    f"neither {folder} nor images in {place}; add --download to fetch CIFAR-10, "
                    "or name the folder that holds it with --data"
                )
    return None, tree


def _read_tree(root: Path, tree: dict[tuple[str, int], list[Path]]) -> dict[str, ImageSet]:
    for part in BATCHES:
        remark_on_left_out(part, root / "cifar10" / part, CLASSES, ())
    files = {p: [(f, c) for (q, c), fs in tree.items() if q == p for f in fs] for p in BATCHES}
    return read_images(files, 32, 3)


class _Arrays(pickle.Unpickler):
    """Reads plain containers and NumPy arrays; whatever else a pickle wants is refused."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Returns one of the few names that an array's pickle needs."""
        import numpy as np

        module = module.replace("numpy._core", "numpy.core")
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _check_memo(data: bytes) -> None:
    """Raises ValueError for a pickle that numbers what it memorises beyond its own length.

    The unpickler makes a list as long as the largest of these numbers.
    """
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name in ("PUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < len(data):
            raise ValueError("it memorises under impossible numbers")


def _encode(text: str, encoding: str) -> bytes:
    """Returns the bytes that an old pickle of an array spells as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


def _read_batches(root: Path, part: str) -> ImageSet:
    pixels, labels = [], []
    for name in BATCHES[part]:
        path = root / "cifar-10-batches-py" / name
        try:
            data = path.read_bytes()
            _check_memo(data)
            batch = _Arrays(io.BytesIO(data), encoding="bytes").load()
            rows = torch.from_numpy(batch[b"data"].reshape(-1, 3, 32, 32).copy())
            mine = torch.tensor(batch[b"labels"])
            if rows.dtype != torch.uint8 or len(rows) != len(mine) or not len(mine):
                raise ValueError("images and labels do not fit")
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(f"{path} is no whole batch of CIFAR-10: {error}") from error
        pixels.append(rows)
        labels.append(mine)
    everyone = torch.cat(labels)
    check_labels(everyone, 10, f"the {part} part of CIFAR-10 under {root}")
    return ImageSet(torch.cat(pixels), everyone)
