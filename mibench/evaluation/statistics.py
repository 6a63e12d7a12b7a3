"""From values per image to a mean and its spread, and from seeds to an interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mibench.evaluation.evidence import Evidence
from mibench.evaluation.metrics import Metric
from mibench.spec import choose, require


@dataclass(frozen=True)
class Protocol:
    """How reconstructions become numbers.

    Attributes:
        spread: Over what the standard deviation of a value per image is taken. "block": as
            in the paper, mean and deviation over the passes of each block, then the mean of
            both over blocks (and trials). "pass": over the passes of all classes together.
        real: Real images per attacked class that the FID compares with, the first private
            training images.
        stretch: Whether FID's images are stretched to the full range one by one, as
            released.
    """

    spread: Literal["block", "pass"] = "pass"
    real: int = 100
    stretch: bool = False

    def __post_init__(self) -> None:
        choose(self, spread=("block", "pass"))
        require(self, real=(1, float("inf")))


PROTOCOLS: dict[str, dict[str, str | bool]] = {
    "kdd22": {"spread": "block", "stretch": True},
    "per-pass": {"spread": "pass", "stretch": False},
}
"""Name → fields: the paper's released evaluation, and ours."""


@dataclass(frozen=True)
class Score:
    """A metric of one cell.

    Attributes:
        mean: In the metric's unit.
        std: Sample standard deviation over passes or repeats; None where there is only one.
        n: How many values the mean rests on: images, or repeats of the attack.
    """

    mean: float
    std: float | None
    n: int


def summarise(
    metric: Metric, trials: Sequence[Evidence], spread: Literal["block", "pass"]
) -> Score:
    """Returns a metric's mean and spread over the repeats of an attack.

    A value per image is averaged within each pass; the means of passes spread as ``spread``
    says. A value of the whole attack spreads over the repeats; one of the target does not.
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
        for block in sorted(set(e.block.tolist())) if spread == "block" else [None]:
            inside = e.block >= 0 if block is None else e.block == block
            passes = [
                v[inside & (e.passes == p)].mean().item() for p in sorted(set(e.passes.tolist()))
            ]
            means.append(statistics.mean(passes))
            deviations.append(_stdev(passes))
    known = [d for d in deviations if d is not None]
    return Score(statistics.mean(means), statistics.mean(known) if known else None, n)


def _stdev(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def t_interval(values: Sequence[float], level: float = 0.95) -> float:
    """Returns half the width of Student's t interval for the mean of ``values``.

    Raises:
        ValueError: If there are fewer than two values.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    quantile = float(t.ppf((1 + level) / 2, n - 1))
    return quantile * statistics.stdev(values) / math.sqrt(n)
