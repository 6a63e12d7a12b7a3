"""What every task provides."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from mibench.sources import Remembered
from mibench.types import ImageSet, Shape


@dataclass(frozen=True)
class Corpus:
    """What one classifier is trained and tested on.

    Attributes:
        train: Training images, in the order of the files.
        validation: Mask over ``train``, True for images that "validation" selection holds
            out; other selections train on them too.
        test: Test images.
        num_classes: Labels are 0..num_classes-1.
    """

    train: ImageSet
    validation: Tensor
    test: ImageSet
    num_classes: int


@dataclass(frozen=True)
class Sizes:
    """How many images a task has, enough to say how long its stages are.

    Attributes:
        private: Train images of the target classifier.
        evaluation: Train images of the evaluation classifiers.
        public: Images that a prior may be trained on.
    """

    private: int
    evaluation: int
    public: int


@dataclass(frozen=True)
class Splits:
    """Images of one task.

    Attributes:
        private: The target classifier's data, classes to be attacked.
        evaluation: The evaluation classifiers' data. Its first classes are the private ones,
            under the same labels; it holds no test image of ``private`` in its train part.
        public: What the adversary may train a prior on. Its labels serve only to prove that
            it shares no class with ``private``.

    Raises:
        ValueError: If a public image belongs to a private class, or there are fewer than two.
    """

    private: Corpus
    evaluation: Corpus
    public: ImageSet

    def __post_init__(self) -> None:
        shared = set(self.public.labels.tolist()) & set(range(self.private.num_classes))
        if shared:
            raise ValueError(f"classes {sorted(shared)} are both private and public")
        if len(self.public) < 2:
            raise ValueError(f"a prior needs two public images or more, here: {len(self.public)}")

    @property
    def sizes(self) -> Sizes:
        """How many images there are to train on."""
        return Sizes(len(self.private.train), len(self.evaluation.train), len(self.public))


class NoDownloadError(ValueError):
    """The raw files of a task come from elsewhere."""


class Task(Remembered, ABC):
    """A classification task with private classes. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    faces: bool = False
    """Whether the images show people; reports then leave private images out."""
    channels: int
    """1 if images are grey, 3 if they are in colour."""
    size: int
    """Height and width of the images in pixels."""
    num_classes: int
    """How many classes are private."""
    validation: float = 0.0
    """Share of each class's train images that "validation" selection holds out."""
    official: ClassVar[Sizes | None] = None
    """Sizes of the task with its default fields, where they are known without its files."""
    traits: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers that make up a person, where the task knows them: see ``truth``."""

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of the images: square, unless a task says otherwise."""
        return (self.channels, self.size, self.size)

    @abstractmethod
    def digest(self, root: Path) -> str:
        """Returns the sha256 of the raw data, which enters every key.

        Raises:
            FileNotFoundError: If the raw files are absent; the message says how to get them.
            ValueError: If a raw file is damaged.
        """

    @abstractmethod
    def load(self, root: Path) -> Splits:
        """Reads and decodes the splits from ``root``; raises like ``digest``."""

    def sizes(self, root: Path) -> Sizes:
        """Returns how many images there are; raises like ``load``.

        Decodes them all; a task whose images are many or large counts them otherwise.
        """
        return self.load(root).sizes

    def classes(self, root: Path) -> list[str]:
        """Returns what the private classes are called, by label; raises like ``digest``."""
        return [str(label) for label in range(self.num_classes)]

    def outliers(self, root: Path) -> ImageSet:
        """Returns images like the task's, of people or things neither private nor public.

        Some defenses train with them. Their labels serve only to prove that they share no class
        with the others; their files, or a list that names these, are part of ``digest``.
        Raises like ``digest``.

        Raises:
            ValueError: If the task has none.
        """
        raise ValueError(
            f"{self.name} has no images that are neither private nor public: a defense that "
            "trains with outliers needs a task that has some"
        )

    def fresh(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        """Returns images of persons whom no other part shows, and their traits.

        Args:
            part: A name: another one gives other persons.
            count: How many persons, one image of each.

        Returns:
            Bytes (count, channels, height, width) and traits (count, len(traits)) in [0, 1].

        Raises:
            ValueError: If the task knows no traits.
        """
        raise ValueError(f"{self.name} knows no traits of its persons")

    def truth(self, labels: Tensor) -> Tensor:
        """Returns the traits of private persons, (len(labels), len(traits)), each in [0, 1].

        Raises:
            ValueError: If the task knows no traits.
        """
        raise ValueError(f"{self.name} knows no traits of its persons")

    def download(self, root: Path) -> None:
        """Fetches the raw files into ``root``.

        Raises:
            NoDownloadError: If nobody may, or can, fetch them by a program.
            ValueError: If it does not succeed.
        """
        raise NoDownloadError(f"{self.name} cannot be downloaded")


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raises ValueError unless the labels are whole numbers from 0 on, all ``classes`` of them.

    Args:
        labels: Of each image.
        classes: How many there are.
        where: What has the labels, for the message.
    """
    if labels.is_floating_point():
        raise ValueError(f"{where} has labels that are no whole numbers")
    given, known = set(labels.tolist()), set(range(classes))
    if strange := sorted(given - known):
        raise ValueError(
            f"{where} has the label {strange[0]}, and labels go from 0 to {classes - 1}"
        )
    if missing := sorted(known - given):
        raise ValueError(f"{where} has no image of class {missing[0]}")


def hold_out(labels: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Returns a mask that is True for ``share`` of each class's images, drawn by ``rng``."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        drawn = members[torch.randperm(len(members), generator=rng)]
        mask[drawn[: round(share * len(members))]] = True
    return mask


def split_by_class(
    train: ImageSet, test: ImageSet, private: int, validation: float, rng: torch.Generator
) -> Splits:
    """Makes the splits of a ten-class task: low classes private, the others public.

    The public set takes the train and the test images of its classes, as in the paper
    (Section 5.1); evaluation classifiers see the train images of all classes.

    Args:
        train: Official training part.
        test: Official test part.
        private: Classes 0..private-1 are private.
        validation: Share of each class held out for selection.
        rng: Draws what is held out.
    """
    mask = hold_out(train.labels, validation, rng)
    mine = train.labels < private
    everything = int(train.labels.max()) + 1
    others = [s.take(s.labels >= private) for s in (train, test)]
    return Splits(
        private=Corpus(train.take(mine), mask[mine], test.take(test.labels < private), private),
        evaluation=Corpus(train, mask, test, everything),
        public=ImageSet(
            torch.cat([s.pixels for s in others]), torch.cat([s.labels for s in others])
        ),
    )


def one_corpus(
    sets: Mapping[str, ImageSet], num_classes: int, validation: float, rng: torch.Generator
) -> Splits:
    """Makes splits whose evaluation classifiers are trained on the private images, too.

    Args:
        sets: "train", "test" and "public" images.
        num_classes: Classes of the former two.
        validation: Share of each class held out for selection.
        rng: Draws what is held out.
    """
    train = sets["train"]
    corpus = Corpus(train, hold_out(train.labels, validation, rng), sets["test"], num_classes)
    return Splits(private=corpus, evaluation=corpus, public=sets["public"])


def sizes_by_class(train: Tensor, test: Tensor, private: int) -> Sizes:
    """Returns the sizes of the splits that :func:`split_by_class` makes, from labels alone."""
    mine = int((train < private).sum())
    return Sizes(mine, len(train), len(train) - mine + int((test >= private).sum()))


def resize(pixels: Tensor, size: int) -> Tensor:
    """Returns uint8 images of ``size`` x ``size``, by bilinear interpolation."""

    def resized(part: Tensor) -> Tensor:
        x = torch.nn.functional.interpolate(
            part.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        return x.round().clamp(0, 255).to(torch.uint8)

    # As floats, all at once would take four times their room in bytes, several times over.
    return torch.cat([resized(part) for part in pixels.split(1024)])  # type: ignore[no-untyped-call]
