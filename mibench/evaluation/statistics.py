"""From values per image to a mean and its spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mibench.evaluation.evidence import Evidence
from mibench.evaluation.metrics import Metric
from mibench.spec import choose, require

Spread = Literal["block", "pass", "identity"]


@dataclass(frozen=True)
class Protocol:
    """How reconstructions become numbers.

    Attributes:
        spread: Over what the standard deviation of a value per image is taken. "block": as
            in the paper, mean and deviation over the passes of each block, then the mean of
            both over blocks (and trials). "pass": over the passes of all classes together.
            "identity": over attacked classes, each averaged over its passes, as in the
            paper's evaluation of VMI.
        real: Real images per attacked class that the FID compares with, at most: the first.
        real_part: Of what: the private "train" images, or "all", train before test.
        select: Which samples count, of an attack that keeps earlier ones too: the "last", or
            per class those of the moment at which the "evaluator" liked them best, as released
            for VMI: optimistic, since the attacker does not have it.
        stretch: Whether FID's images are stretched to the full range one by one, as
            released.
    """

    spread: Spread = "pass"
    real: int = 100
    real_part: Literal["train", "all"] = "train"
    select: Literal["last", "evaluator"] = "last"
    stretch: bool = False

    def __post_init__(self) -> None:
        choose(self, spread=("block", "pass", "identity"), real_part=("train", "all"))
        choose(self, select=("last", "evaluator"))
        require(self, real=(1, float("inf")))


PROTOCOLS: dict[str, dict[str, str | int]] = {
    "kdd22": {"spread": "block", "stretch": True, "real_part": "train"},
    "per-pass": {"spread": "pass", "stretch": False, "real_part": "train"},
    "vmi": {"spread": "identity", "stretch": False, "real_part": "all", "real": 100},
}
"""Name → fields: the paper's released evaluation, ours, and the paper's of VMI but for its choice
among moments, which is ``select``."""


@dataclass(frozen=True)
class Score:
    """A metric of one cell.

    Attributes:
        mean: In the metric's unit.
        std: Sample standard deviation over passes, identities or repeats; None where there
            is only one.
        n: How many values the mean rests on: images, identities, or repeats of the attack.
    """

    mean: float
    std: float | None
    n: int


def summarise(metric: Metric, trials: Sequence[Evidence], spread: Spread) -> Score:
    """Returns a metric's mean and spread over the repeats of an attack.

    A value per image is averaged within each pass, or identity, and the means spread as
    ``spread`` says. A value per identity spreads over identities; one of the whole attack over
    the repeats; one of the target does not.
    """
    values = [metric.compute(e) for e in trials]
    whole = [v for v in values if not isinstance(v, Tensor)]
    if whole:
        if metric.per == "target":
            return Score(whole[0], None, 1)
        return Score(statistics.mean(whole), _stdev(whole), len(whole))
    means, deviations, n = [], [], 0
    for e, v in zip(trials, values, strict=True):
        assert isinstance(v, Tensor)
        n += len(v)
        for group in [v.tolist()] if metric.per == "identity" else _grouped(v, e, spread):
            means.append(statistics.mean(group))
            deviations.append(_stdev(group))
    known = [d for d in deviations if d is not None]
    return Score(statistics.mean(means), statistics.mean(known) if known else None, n)


def _grouped(v: Tensor, e: Evidence, spread: Spread) -> list[list[float]]:
    """Returns the means of passes, block by block or all together, or those of identities."""
    blocks = e.block if spread == "block" else torch.zeros_like(e.block)
    units = e.labels if spread == "identity" else e.passes
    return [
        [v[(blocks == b) & (units == u)].mean().item() for u in sorted(set(units.tolist()))]
        for b in sorted(set(blocks.tolist()))
    ]


def _stdev(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
