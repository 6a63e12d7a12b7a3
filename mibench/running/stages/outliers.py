"""Images that are neither private nor public."""

from dataclasses import dataclass
from typing import ClassVar

from mibench.running.stages.base import Load
from mibench.running.stages.images import ImagesStage
from mibench.store import Payload, Stage, Work
from mibench.types import ImageSet


@dataclass(frozen=True)
class OutlierStage(Stage):
    """A task's outliers, in bytes, for defenses that train with some."""

    kind: ClassVar[str] = "outliers"
    exact: ClassVar[bool] = True

    images: ImagesStage

    def describe(self) -> str:
        """Returns whose they are."""
        return f"outliers {self.images.task.name}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns pixels and labels.

        Raises:
            ValueError: If the task has no outliers, or they are of other files, another shape or
                a class that is private or public.
        """
        task = self.images.task
        self.images.check_files(work)
        outliers, splits = task.outliers(work.data), self.images.splits(load)
        if not len(outliers) or outliers.pixels.shape[1:] != task.shape:
            raise ValueError(
                f"{task.name} must have one outlier or more, of shape {tuple(task.shape)}, got "
                f"{tuple(outliers.pixels.shape)}"
            )
        known = set(range(splits.private.num_classes)) | set(splits.public.labels.tolist())
        if shared := known & set(outliers.labels.tolist()):
            raise ValueError(
                f"classes {sorted(shared)} of {task.name} are among its outliers, and private or "
                "public as well"
            )
        return {"pixels": outliers.pixels, "labels": outliers.labels}

    def outliers(self, load: Load) -> ImageSet:
        """Returns the images from the store."""
        return ImageSet(**load(self))
