"""CelebA, Liu et al., ICCV 2015, http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.

The split is that of GMI, KED-MI and BiDO, by a rule that gives it from the identity list.
"""

import hashlib
from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from mibench.data.base import NoDownloadError, Sizes, Splits, Task, one_corpus
from mibench.data.images import Box, Frame, file_digests, manifest_digest
from mibench.data.reading import read_images
from mibench.seeding import generator
from mibench.spec import require
from mibench.store import remark
from mibench.types import ImageSet

INF = float("inf")
ALIGNED: Frame = (178, 218)
LIST_MD5 = "32bd1bd63d3c78cd57e08160ec5ed1e2"
"""Of the official identity_CelebA.txt, as torchvision checks it."""


class AlignedFaces(Task):
    """A task of aligned CelebA images; subclasses say who is private and what is cut out."""

    faces = True
    channels = 3
    box: ClassVar[Box]
    """What is cut out of an aligned 178x218 image."""
    size: int
    """Height and width in pixels, resized from ``box``."""

    @abstractmethod
    def split(self, identities: dict[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Returns "train", "test" and "public" → (file, label) of the images in use.

        Args:
            identities: Image file → identity, in the order of the official list.

        Raises:
            ValueError: If there are too few identities or public images.
        """

    def digest(self, root: Path) -> str:
        """Returns the digest of the identity list and of all images in use."""
        parts = self.split(read_identities(root))
        files = [locate(root, name) for part in parts.values() for name, _ in part]
        return manifest_digest(file_digests(root / "celeba", [identity_list(root), *files]))

    def load(self, root: Path) -> Splits:
        """Decodes the images in use."""
        parts = self.split(read_identities(root))
        files = {p: [(locate(root, n), label) for n, label in fs] for p, fs in parts.items()}
        listed = hashlib.md5(identity_list(root).read_bytes(), usedforsecurity=False)
        if listed.hexdigest() != LIST_MD5:
            remark(
                f"{identity_list(root).name} is not the official list of CelebA: its identities "
                "are not those of the paper, and results are not comparable with it."
            )
        sets = read_images(files, self.size, 3, (ALIGNED, self.box))
        rng = generator(self.name, "validation")
        return one_corpus(sets, self.num_classes, self.validation, rng)

    def classes(self, root: Path) -> list[str]:
        """Returns the identities' numbers in the list."""
        identities = read_identities(root)
        owners = {label: identities[name] for name, label in self.split(identities)["train"]}
        return [str(owners[label]) for label in range(self.num_classes)]

    def sizes(self, root: Path) -> Sizes:
        """Returns how many images the identity list gives."""
        parts = {name: len(files) for name, files in self.split(read_identities(root)).items()}
        return Sizes(parts["train"], parts["train"], parts["public"])

    def download(self, root: Path) -> None:
        """Refuses: the images may not be passed on."""
        raise NoDownloadError(HOW)


@dataclass(frozen=True)
class CelebA(AlignedFaces):
    """Aligned faces; private are the first identities with many images.

    With the defaults and the official list: 27,018 train and 3,009 test images of 1,000
    identities, and 30,000 public images of identities with fewer than 30.

    Attributes:
        num_classes: Private identities: the first by number of those with ``min_images``.
        min_images: So many images an identity needs to be private; others are public.
        public: Public images, drawn from all of the public identities.
        size: Height and width in pixels, resized from 108.
        validation: Share of each identity's train images held out for selection.
    """

    name: ClassVar[str] = "celeba"
    official: ClassVar[Sizes] = Sizes(private=27_018, evaluation=27_018, public=30_000)
    box: ClassVar[Box] = (35, 55, 143, 163)  # the central 108x108 pixels

    num_classes: int = 1000
    min_images: int = 30
    public: int = 30_000
    size: int = 64
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(
            self, num_classes=(2, INF), min_images=(2, INF), public=(2, INF), size=(8, 1024),
            validation=(0, 0.5),
        )  # fmt: skip

    def split(self, identities: dict[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Returns the part's files and labels; see :meth:`AlignedFaces.split`.

        Per private identity 90 % of its images, rounded down, are train images; which, and
        which images are public, is drawn by a fixed seed. Labels of public images follow
        those of private ones.
        """
        images = by_identity(identities)
        many = sorted(i for i, names in images.items() if len(names) >= self.min_images)
        if len(many) < self.num_classes:
            raise ValueError(
                f"the identity list has {len(many)} identities with {self.min_images} images or "
                f"more, fewer than the {self.num_classes} of setting.task.num_classes"
            )
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": [], "public": []}
        for label, identity in enumerate(many[: self.num_classes]):
            names = sorted(images[identity])
            order = torch.randperm(len(names), generator=generator("celeba", "test", identity))
            cut = 9 * len(names) // 10
            for part, drawn in (("train", order[:cut]), ("test", order[cut:])):
                parts[part] += [(names[i], label) for i in sorted(drawn.tolist())]
        few = sorted(i for i, names in images.items() if len(names) < self.min_images)
        pool = [(n, self.num_classes + i) for i, f in enumerate(few) for n in sorted(images[f])]
        if len(pool) < self.public:
            raise ValueError(
                f"identities with fewer than {self.min_images} images have {len(pool)} images, "
                f"fewer than the {self.public} of setting.task.public"
            )
        drawn = torch.randperm(len(pool), generator=generator("celeba", "public"))[: self.public]
        parts["public"] = [pool[i] for i in sorted(drawn.tolist())]
        return parts

    def outliers(self, root: Path) -> ImageSet:
        """Decodes all images of identities with ``min_images`` that are not private.

        The digest holds the list that names these files, and not the files.
        """
        images = by_identity(read_identities(root))
        many = sorted(i for i, names in images.items() if len(names) >= self.min_images)
        others = many[self.num_classes :]
        if not others:
            return super().outliers(root)
        first = self.num_classes + len(images) - len(many)  # behind the labels of public images
        files = [
            (locate(root, name), first + k)
            for k, identity in enumerate(others)
            for name in sorted(images[identity])
        ]
        return read_images({"outliers": files}, self.size, 3, (ALIGNED, self.box))["outliers"]


HOW = (
    "CelebA must be fetched by hand, under its own terms: put identity_CelebA.txt and the folder "
    "img_align_celeba of aligned images into DATA/celeba"
)


def identity_list(root: Path) -> Path:
    """Returns the path of the official list."""
    return root / "celeba" / "identity_CelebA.txt"


def read_identities(root: Path) -> dict[str, int]:
    """Returns image file → identity, in the list's order; blank lines at its end do not count.

    Raises:
        FileNotFoundError: If there is no list.
        ValueError: If a line is not "file identity", or files are under two identities.
    """
    path = identity_list(root)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; {HOW}")
    identities: dict[str, int] = {}
    twice: list[str] = []
    text = path.read_text("utf-8", errors="replace").rstrip()
    for number, line in enumerate(text.splitlines(), 1):
        name, *rest = line.split() or [""]
        if len(rest) != 1 or not rest[0].isdigit() or Path(name).name != name:
            raise ValueError(f"{path}, line {number}: expected a file name and an identity")
        identity = int(rest[0])
        if identities.setdefault(name, identity) != identity:
            twice.append(f"{name} under {identities[name]} and {identity} (line {number})")
    if twice:
        raise ValueError(
            f"{path} has {len(twice)} files under two identities, first {twice[0]}; leave each "
            "under the one that it shows"
        )
    return identities


def by_identity(identities: dict[str, int]) -> dict[int, list[str]]:
    """Returns identity → its image files, in the order of ``identities``."""
    images: dict[int, list[str]] = defaultdict(list)
    for name, identity in identities.items():
        images[identity].append(name)
    return images


def locate(root: Path, name: str) -> Path:
    """Returns the aligned image, as the list names it or as PNG.

    Raises:
        FileNotFoundError: If it is there as neither.
    """
    path = root / "celeba" / "img_align_celeba" / name
    for candidate in (path, path.with_suffix(".png")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no image {path}; {HOW}")
