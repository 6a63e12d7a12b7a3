"""A task's images, in bytes."""

from dataclasses import dataclass
from typing import ClassVar

from mibench.data import Corpus, Splits, Task
from mibench.running.stages.base import Load
from mibench.store import Payload, Stage, Work
from mibench.types import ImageSet


@dataclass(frozen=True)
class ImagesStage(Stage):
    """A task's images, decoded and resized once into bytes."""

    kind: ClassVar[str] = "images"
    exact: ClassVar[bool] = True

    task: Task
    digest: str

    def describe(self) -> str:
        """Returns the task's name."""
        return f"images {self.task.name}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the splits, tensor by tensor."""
        self.check_files(work)
        splits = self.task.load(work.data)
        return {
            **{part: _unbuild(getattr(splits, part)) for part in ("private", "evaluation")},
            "public": {"pixels": splits.public.pixels, "labels": splits.public.labels},
        }

    def check_files(self, work: Work) -> None:
        """Raises ValueError unless the raw files are those that the key names."""
        if self.task.digest(work.data) != self.digest:
            raise ValueError(f"the files of {self.task.name} changed while it ran; start again")

    def splits(self, load: Load) -> Splits:
        """Returns the splits from the store."""
        payload = load(self)
        private, evaluation = (_rebuild(payload[p]) for p in ("private", "evaluation"))
        return Splits(private, evaluation, ImageSet(**payload["public"]))


def _unbuild(corpus: Corpus) -> Payload:
    return {
        "train": {"pixels": corpus.train.pixels, "labels": corpus.train.labels},
        "validation": corpus.validation,
        "test": {"pixels": corpus.test.pixels, "labels": corpus.test.labels},
        "num_classes": corpus.num_classes,
    }


def _rebuild(payload: Payload) -> Corpus:
    return Corpus(
        ImageSet(**payload["train"]),
        payload["validation"],
        ImageSet(**payload["test"]),
        payload["num_classes"],
    )
