"""Private images of one task, public images of another: priors from another data set."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mibench.data.base import Sizes, Splits, Task
from mibench.data.digits import Digits
from mibench.data.mnist import MNIST
from mibench.data.synthetic import Blobs
from mibench.types import ImageSet, Shape


@dataclass(frozen=True)
class Pair(Task):
    """Two tasks: the private and evaluation images of one, the public images of the other.

    Within a task no public image is of a private class. Between two data sets nothing proves it:
    choose two that do not show the same classes.

    Attributes:
        private: Its private classes are attacked, and its evaluation part is used.
        public: Its public images teach the prior; they must have the other's shape.
    """

    name: ClassVar[str] = "pair"
    small: ClassVar[Mapping[str, Any]] = {"private": Digits(size=8), "public": Blobs()}

    private: Task = field(default_factory=MNIST)
    public: Task = field(default_factory=lambda: Digits(size=32))

    def __post_init__(self) -> None:
        shapes = {t.name: "x".join(map(str, t.shape)) for t in (self.private, self.public)}
        if self.private.shape != self.public.shape:
            raise ValueError(
                "Pair.private and Pair.public must have images of one shape (channels x height x "
                f"width), got {' and '.join(f'{s} of {n}' for n, s in shapes.items())}: set the "
                "size of one of them"
            )

    @property
    def shape(self) -> Shape:
        """That of both."""
        return self.private.shape

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """Those of ``private``."""
        return self.private.num_classes

    @property
    def validation(self) -> float:  # type: ignore[override]
        """That of ``private``."""
        return self.private.validation

    @property
    def faces(self) -> bool:  # type: ignore[override]
        """Whether ``private`` shows people."""
        return self.private.faces

    def digest(self, root: Path) -> str:
        """Returns the sha256 of both digests."""
        both = f"{self.private.digest(root)} {self.public.digest(root)}"
        return hashlib.sha256(both.encode()).hexdigest()

    def load(self, root: Path) -> Splits:
        """Reads both; labels of public images begin after those of the evaluation classes.

        Raises:
            ValueError: If a public image is a private one.
        """
        mine, other = self.private.load(root), self.public.load(root).public
        own = (mine.private.train, mine.private.test)
        known = {image.numpy().tobytes() for part in own for image in part.pixels}
        if twice := sum(image.numpy().tobytes() in known for image in other.pixels):
            raise ValueError(
                f"{twice} public images of {self.public.name} are private images of "
                f"{self.private.name}: take data sets that share none"
            )
        labels = other.labels - other.labels.min() + mine.evaluation.num_classes
        return Splits(mine.private, mine.evaluation, ImageSet(other.pixels, labels))

    def sizes(self, root: Path) -> Sizes:
        """Returns those of the parts that are used; raises like ``load``."""
        mine = self.private.sizes(root)
        return Sizes(mine.private, mine.evaluation, self.public.sizes(root).public)

    def classes(self, root: Path) -> list[str]:
        """Returns what the private classes are called."""
        return self.private.classes(root)

    def download(self, root: Path) -> None:
        """Fetches what is missing of either; raises as they do."""
        for task in (self.private, self.public):
            try:
                task.digest(root)
            except FileNotFoundError:
                task.download(root)
