"""A data set of your own: folders of images, one per private identity or class."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mibench.data.base import Sizes, Splits, Task, one_corpus
from mibench.data.images import (
    counted,
    file_digests,
    image_files,
    left_out,
    manifest_digest,
    subfolders,
)
from mibench.data.reading import read_images, remark_on_left_out
from mibench.seeding import generator
from mibench.spec import require

INF = float("inf")
READING = "2"
"""Version of how files become pixels; it stands in the digest of the files."""


@dataclass(frozen=True)
class Folder(Task):
    """``private/{train,test}/<identity>/*`` and ``public/*`` below one folder.

    Identities are numbered in the order of their names, the same in train and test; public
    images may lie in folders of their own identities. Images are cut to the largest central
    square and resized. The evaluation classifiers see the private train images.

    Attributes:
        folder: Name of the folder below the data folder.
        num_classes: How many identities are private: the first by name.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey images.
        min_images: A private identity with fewer train images is an error.
        validation: Share of each identity's train images held out for selection.
        faces: Whether the images show people; reports then leave private images out.
    """

    name: ClassVar[str] = "folder"

    folder: str = "images"
    num_classes: int = 10
    size: int = 64
    channels: int = 3
    min_images: int = 2
    validation: float = 0.1
    faces: bool = True

    def __post_init__(self) -> None:
        require(
            self, num_classes=(2, INF), size=(8, 1024), channels=(1, 3), min_images=(1, INF),
            validation=(0, 0.5),
        )  # fmt: skip
        if self.channels == 2:
            raise ValueError("Folder.channels must be 1 or 3, got 2")
        if Path(self.folder).name != self.folder or self.folder in ("", ".", ".."):
            raise ValueError(f"Folder.folder must be the name of one folder, got {self.folder!r}")

    def digest(self, root: Path) -> str:
        """Returns the digest of all files in use, by path and content."""
        files = self.files(root)
        everything = [f for part in files.values() for fs in part.values() for f in fs]
        digests = file_digests(root / self.folder, everything)
        private = {d: n for n, d in digests.items() if n.startswith("private/")}
        for name, digest in digests.items():
            if name.startswith("public/") and digest in private:
                raise ValueError(
                    f"{root / self.folder / name} is also {private[digest]}: public images must "
                    "not be private ones"
                )
        return manifest_digest(digests | {"reading": READING})

    def files(self, root: Path) -> dict[str, dict[str, list[Path]]]:
        """Returns "train", "test" and "public" → identity → image files.

        Raises:
            FileNotFoundError: If a folder is absent or empty.
            ValueError: If an identity has too few images, lacks a test image, or is both
                private and public.
        """
        base = root / self.folder
        parts = {"train": base / "private" / "train", "test": base / "private" / "test"}
        for path in (*parts.values(), base / "public"):
            if not path.is_dir():
                raise FileNotFoundError(
                    f"no folder {path}; the task folder reads private/train/<identity>/*, "
                    f"private/test/<identity>/* and public/* below {base}"
                )
        train, test = (
            {folder.name: image_files(folder) for folder in subfolders(part)}
            for part in parts.values()
        )
        names = list(train)[: self.num_classes]
        if len(names) < self.num_classes:
            raise ValueError(
                f"{parts['train']} has {len(names)} identities, fewer than the "
                f"{self.num_classes} of setting.task.num_classes{_beside(parts['train'], train)}"
            )
        for name in names:
            if len(train[name]) < self.min_images:
                place = parts["train"] / name
                raise ValueError(
                    f"{place} has {len(train[name])} images, fewer than the {self.min_images} of "
                    f"setting.task.min_images{_beside(place)}"
                )
            if not test.get(name):
                place = parts["test"] / name
                raise ValueError(
                    f"{place} has no image to test on" + (_beside(place) if place.is_dir() else "")
                )
        public = {d.name: image_files(d) for d in subfolders(base / "public")}
        public[""] = image_files(base / "public")
        if both := sorted(set(public) & set(train)):
            raise ValueError(f"identity {both[0]!r} is both private and public under {base}")
        if (count := sum(map(len, public.values()))) < 2:
            raise FileNotFoundError(
                f"a prior needs two images or more, {base / 'public'} has {count}"
                f"{_beside(base / 'public')}"
            )
        return {
            "train": {name: train[name] for name in names},
            "test": {name: test[name] for name in names},
            "public": dict(sorted(public.items())),
        }

    def sizes(self, root: Path) -> Sizes:
        """Returns how many image files there are."""
        counts = {
            p: sum(map(len, identities.values())) for p, identities in self.files(root).items()
        }
        return Sizes(counts["train"], counts["train"], counts["public"])

    def load(self, root: Path) -> Splits:
        """Decodes all images; remarks on what is left out or read otherwise than stored."""
        files = self.files(root)
        base = root / self.folder
        every = {d.name for d in subfolders(base / "private" / "train")}
        for part, identities in files.items():
            top = base / "public" if part == "public" else base / "private" / part
            remark_on_left_out(part, top, identities, every - set(identities))
        numbered = {
            part: [
                (path, i + (self.num_classes if part == "public" else 0))
                for i, paths in enumerate(identities.values())
                for path in paths
            ]
            for part, identities in files.items()
        }
        sets = read_images(numbered, self.size, self.channels)
        rng = generator("folder", "validation")
        return one_corpus(sets, self.num_classes, self.validation, rng)

    def classes(self, root: Path) -> list[str]:
        """Returns the identities' names."""
        return list(self.files(root)["train"])


def _beside(place: Path, identities: Collection[str] | None = None) -> str:
    """Returns what a folder holds that is not read, to end a complaint with.

    Args:
        place: The folder.
        identities: Names of the folders in it, where its images lie in these.
    """
    reasons = left_out(place, own=identities is None, within=identities or ())
    return f" (left out: {counted(reasons)})" if reasons else ""
