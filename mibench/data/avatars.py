"""A task of drawn portraits: as many persons and images as wanted, nobody real, no download."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mibench.data.base import Corpus, Sizes, Splits, Task, hold_out
from mibench.data.portraits import MUTED, TRAITS, people, portraits
from mibench.seeding import derive_seed, generator
from mibench.spec import require
from mibench.types import ImageSet, Shape

Shift = Literal["none", "plain", "tones", "backgrounds", "all"]
PLAIN = {"beard": (0.0, 0.37), "glasses": (0.0, 0.44)}
TONES = {"skin": (0.6, 1.0), "hair_tone": (0.6, 1.0), "ginger": (0.0, 0.2)}
SHIFTS: Mapping[Shift, tuple[Mapping[str, tuple[float, float]], float]] = {
    "none": ({}, MUTED),
    "plain": (PLAIN, MUTED),
    "tones": (TONES, MUTED),
    "backgrounds": ({}, 1.0),
    "all": (PLAIN | TONES, 1.0),
}
"""Shift → what the traits of public persons keep to, and how much colour is behind them."""


@dataclass(frozen=True)
class Avatars(Task):
    """Cartoon portraits, drawn on the spot; private and public persons are different ones.

    One renderer draws both, which is the attacker's best case, as a split of one data set by
    identity is; ``shift`` gives the public persons another distribution.

    Attributes:
        num_classes: Private persons.
        size: Height and width in pixels.
        grey: One channel (BT.601 luma) in place of three.
        images: Train images of each private person.
        tests: Test images of each private person.
        evaluation: Train images of each private person that evaluators get: others than the
            target's.
        strangers: Public persons.
        each: Images of each public person.
        vary: How much scenes (pose, expression, light) vary, as a share of the renderer's
            ranges.
        shift: How public persons differ: "none"; "plain", without beards and glasses;
            "tones", with darker skin and lighter hair; "backgrounds", before bright colours;
            "all" of these.
        cast: Another number draws other persons.
        validation: Share of each person's train images held out for selection.
    """

    name: ClassVar[str] = "avatars"
    traits: ClassVar[tuple[str, ...]] = tuple(TRAITS)

    num_classes: int = 30
    size: int = 32
    grey: bool = False
    images: int = 16
    tests: int = 40
    evaluation: int = 80
    strangers: int = 500
    each: int = 6
    vary: float = 0.8
    shift: Shift = "none"
    cast: int = 0
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(
            self, num_classes=(2, 1000), size=(8, 256), images=(4, 10_000), tests=(1, 10_000),
            evaluation=(4, 10_000), strangers=(1, 100_000), each=(1, 1000), vary=(0, 1),
            validation=(0, 0.5),
        )  # fmt: skip

    @property
    def shape(self) -> Shape:
        """(3, size, size), or (1, size, size) if grey."""
        return (1 if self.grey else 3, self.size, self.size)

    def digest(self, root: Path) -> str:
        """Returns the sha256 of two persons' portraits of each part, drawn as ``load`` does.

        Another renderer, or a machine that rounds otherwise, gives another digest.
        """
        drawn = hashlib.sha256()
        for part in ("private", "public"):
            traits = self._cast(part, 2)
            drawn.update(self._draw(part, traits, 4, 0).pixels.numpy().tobytes())
        return drawn.hexdigest()

    def sizes(self, root: Path) -> Sizes:
        """Returns the products of the fields."""
        mine = self.num_classes
        return Sizes(mine * self.images, mine * self.evaluation, self.strangers * self.each)

    def load(self, root: Path) -> Splits:
        """Draws the splits; ``root`` is not read."""
        persons = self._cast("private", self.num_classes)
        test = self._draw("test", persons, self.tests, 0)

        def corpus(part: str, each: int) -> Corpus:
            train = self._draw(part, persons, each, 0)
            rng = generator("avatars", self.cast, part, "validation")
            return Corpus(
                train, hold_out(train.labels, self.validation, rng), test, self.num_classes
            )

        strangers = self._cast("public", self.strangers)
        return Splits(
            private=corpus("private", self.images),
            evaluation=corpus("evaluation", self.evaluation),
            public=self._draw("public", strangers, self.each, self.num_classes),
        )

    def outliers(self, root: Path) -> ImageSet:
        """Draws as many portraits as there are public ones, of persons no other part shows."""
        traits = self._cast("outliers", self.strangers)
        return self._draw("outliers", traits, self.each, self.num_classes + self.strangers)

    def fresh(self, part: str, count: int) -> tuple[Tensor, Tensor]:
        """Draws one portrait of each of ``count`` persons whom no other part shows.

        Args:
            part: A name: another one gives other persons and scenes.
            count: How many; the first of many are those of fewer.

        Returns:
            Bytes (count, channels, size, size) and the traits behind them, (count, traits).
        """
        traits = self._cast(f"fresh {part}", count)
        return self._draw(f"fresh {part}", traits, 1, 0).pixels, torch.from_numpy(traits)

    def truth(self, labels: Tensor) -> Tensor:
        """Returns the traits of private persons, (len(labels), traits), each in [0, 1]."""
        return torch.from_numpy(self._cast("private", self.num_classes))[labels]

    def _cast(self, part: str, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Draws the traits of the persons of one part."""
        ranges = SHIFTS[self.shift][0] if part == "public" else {}
        return people(derive_seed("avatars", self.cast, part, "persons"), count, ranges)

    def _draw(
        self,
        part: str,
        traits: np.ndarray[tuple[int, int], np.dtype[np.float32]],
        each: int,
        first: int,
    ) -> ImageSet:
        """Draws ``each`` portraits of every person, person by person, labelled from ``first``."""
        pixels = portraits(
            np.repeat(traits, each, axis=0),
            derive_seed("avatars", self.cast, part, "scenes"),
            self.size,
            self.vary,
            SHIFTS[self.shift][1] if part == "public" else MUTED,
        )
        if self.grey:
            red, green, blue = pixels.astype(np.uint32).transpose(1, 0, 2, 3)
            luma = (299 * red + 587 * green + 114 * blue + 500) // 1000
            pixels = luma.astype(np.uint8)[:, None]
        labels = torch.arange(first, first + len(traits)).repeat_interleave(each)
        return ImageSet(torch.from_numpy(pixels), labels)
