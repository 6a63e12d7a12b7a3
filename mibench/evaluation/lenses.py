"""Lenses: the feature spaces in which reconstructions are compared with real images."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.data import Splits, Task
from mibench.seeding import generator
from mibench.store import Payload, Work
from mibench.types import Classifier, Images, predict


@dataclass(frozen=True)
class Tools:
    """What a lens may look with.

    Attributes:
        evaluator: The evaluation classifier that gives the table's numbers.
        stream: Name of the random stream, for a network that draws when it answers.
        work: Says where to compute and where data lie.
        inception: Digest of the weights of Inception-v3; "" if they are not there.
        state: What :meth:`Lens.train` returned; empty for a lens that is not trained.
    """

    evaluator: Classifier
    stream: str
    work: Work
    inception: str = ""
    state: Payload = field(default_factory=dict)


class Lens(ABC):
    """A feature space. Subclasses are frozen dataclasses: their fields are in the keys."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    trained: ClassVar[bool] = False
    """Whether ``train`` makes something that ``features`` needs."""

    @property
    def absent(self) -> str:
        """Why a metric has no value where no features were gathered by this lens."""
        return f"features by the lens {self.name} were not gathered: name it in the metric's needs"

    def suits(self, task: Task) -> bool:
        """Whether it can look at a task's images. If not, ``absent`` should say what it needs."""
        return True

    def train(self, task: Task, splits: Splits, work: Work) -> Payload:
        """Returns what is fitted to a task; called once a task if ``trained``.

        Args:
            task: For what it can draw or knows beyond its splits.
            splits: Its images.
            work: Where state is saved and progress told.
        """
        raise NotImplementedError(f"{type(self).__name__} says trained = True: give it a train")

    @abstractmethod
    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n d"]:
        """Returns the features of images, pixels in [0, 1], one row each, on the CPU."""


@dataclass(frozen=True)
class Evaluator(Lens):
    """The evaluation classifier's last features before its logits."""

    name: ClassVar[str] = "evaluator"

    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n d"]:
        """Returns its features of the images as they are."""
        return predict(tools.evaluator, x, generator(tools.stream))[1]


@dataclass(frozen=True)
class Stretched(Evaluator):
    """The same features of images that are stretched to the full range, one by one."""

    name: ClassVar[str] = "stretched"

    @property
    def absent(self) -> str:
        """Says that they were not gathered."""
        return "features of stretched images were not gathered"

    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n d"]:
        """Returns the evaluator's features of the stretched images."""
        return super().features(stretch(x), tools)


def stretch(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Returns each image with its darkest value moved to 0 and its brightest to 1.

    The released code writes images so before it computes the FID. A constant image becomes 0.
    """
    low = x.amin((1, 2, 3), keepdim=True)
    span = x.amax((1, 2, 3), keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1.0)


EVALUATOR, STRETCHED = Evaluator(), Stretched()
