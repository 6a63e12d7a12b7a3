"""How much the latents of a trained target tell of its input and of the label.

d(X, Z_j) and d(Z_j, Y) by every measure, layer by layer, on train and on test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from mibench.defenses.dependence import KERNELS, MEASURES
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.seeding import generator
from mibench.spec import brief, choose, require
from mibench.store import Payload, Stage, Work, check_finite
from mibench.types import Classifier, ImageSet

BATCHES = 8
"""Batches that a dependence is averaged over, at most."""
PAIRS = ("xz", "zy")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class DependenceStage(Stage):
    """The dependences of a target's latents, by the default kernels and ridges of the measures.

    Kernels are those of Appendix C, Gaussian for X and Z_j and linear for one-hot Y, whatever
    the target was trained with, so that all targets are measured alike. The network is in eval
    mode and images are not augmented.

    Attributes:
        target: Whose.
        measures: Names in MEASURES.
        batch: Images per batch, as in training: the measures depend on it.
        batches: How many batches at most, of different images.
        seed: Draws the images, the same for every target of a task.
    """

    kind: ClassVar[str] = "dependence"
    exact: ClassVar[bool] = True

    target: ClassifierStage
    measures: tuple[str, ...]
    batch: int
    batches: int = BATCHES
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self, measures=MEASURES)
        require(self, batch=(2, math.inf), batches=(1, math.inf))

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The target and its images."""
        return (self.target, self.target.images)

    def describe(self) -> str:
        """Returns whose latents are measured."""
        return f"dependence in {brief(self.target.defense)}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns "values" and, per split, "images": how many they rest on.

        A value is a dict of "layer" (j, from 1), "measure", "pair" ("xz" for d(X, Z_j), "zy"
        for d(Z_j, Y)), "split" ("train", without what selection held out, or "test") and
        "value", the mean over batches.

        Raises:
            FloatingPointError: If a dependence is not finite.
        """
        corpus = self.target.images.splits(load).private
        held_out = self.target.recipe.select == "validation"
        train = corpus.train.take(~corpus.validation) if held_out else corpus.train
        network = self.target.classifier(load, work.device)
        values, images = [], {}
        for i, (split, part) in enumerate(zip(SPLITS, (train, corpus.test), strict=True)):
            means, images[split] = self._mean(network, part, split)
            values += [{**value, "split": split} for value in means]
            work.progress(i + 1, len(SPLITS))
        return {"values": values, "images": images}

    def _mean(
        self, network: Classifier, part: ImageSet, split: str
    ) -> tuple[list[dict[str, str | int | float]], int]:
        order = torch.randperm(len(part), generator=generator(self.seed, "dependence", split))
        size = min(self.batch, len(part))
        starts = range(0, len(part) - size + 1, size)[: self.batches]
        device = next(network.parameters()).device
        rows = [
            dependences(network, part.take(order[s : s + size]).to(device), self.measures)
            for s in starts
        ]
        mean = torch.stack(rows).mean(0)
        check_finite(mean, f"a dependence in {brief(self.target.defense)}")
        values: list[dict[str, str | int | float]] = [
            {"layer": j + 1, "measure": name, "pair": pair, "value": mean[m, p, j].item()}
            for m, name in enumerate(self.measures)
            for p, pair in enumerate(PAIRS)
            for j in range(mean.shape[2])
        ]
        return values, size * len(starts)


@torch.no_grad()
def dependences(network: Classifier, batch: ImageSet, measures: Sequence[str]) -> torch.Tensor:
    """Returns d(X, Z_j) and d(Z_j, Y) of one batch, float64, shape (measures, 2, layers)."""
    x = batch.images
    zs = network.latents(x)
    labels = F.one_hot(batch.labels, network.num_classes).to(x.dtype)
    K_x, *K_zs = KERNELS["gaussian"]([z.flatten(1) for z in (network.own_input(x), *zs)])
    (K_y,) = KERNELS["linear"]([labels])
    K, L = torch.stack(K_zs), torch.stack([K_x, K_y])[:, None]
    return torch.stack([MEASURES[name](K, L).cpu() for name in measures])


def dependence_stage(target: ClassifierStage) -> DependenceStage:
    """Returns what measures a target: every measure, in batches of the size of its training."""
    return DependenceStage(target, tuple(MEASURES), target.recipe.batch_size)
