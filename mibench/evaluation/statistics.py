"""From values per image to a mean and its spread."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mibench.evaluation.evidence import Evidence, UndefinedError, own, target_logits
from mibench.evaluation.fid import FIDS
from mibench.evaluation.metric import METRICS, Metric
from mibench.spec import choose, require, unknown
from mibench.store import check_finite

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
        real: How many real images of each attacked class distances compare with, at most: the
            first ones.
        real_part: Of what: the private "train" images, or "all", train before test.
        select: Which samples count, of an attack that keeps earlier ones too: the "last", or
            per class those of the moment at which the "evaluator" liked them best, as released
            for VMI: optimistic, since the attacker does not have it.
        keep: How many reconstructions of each class count: those to which the target gives the
            greatest probability of it; 0 for all.
        acc: Which metric the column attack_acc is.
        acc5: Which one attack_acc5 is.
        fid: Which one fid is.
        least_fid: Repeats of an attack with a lower one are left out, with all their scores;
            0 for none. The first public version of the code for MNIST skipped those below 260
            with BiDO and 190 without: a good attack has a low FID, so it hides good attacks.
    """

    spread: Spread = "pass"
    real: int = 100
    real_part: Literal["train", "all"] = "train"
    select: Literal["last", "evaluator"] = "last"
    keep: int = 0
    acc: Literal["attack_acc", "attack_acc_best"] = "attack_acc"
    acc5: Literal["attack_acc5", "attack_acc_any"] = "attack_acc5"
    fid: Literal[
        "fid", "fid_stretched", "fid_successful", "fid_successful_stretched", "fid_inception",
        "fid_inception_successful",
    ] = "fid"  # fmt: skip
    least_fid: float = 0.0

    def __post_init__(self) -> None:
        choose(self, spread=("block", "pass", "identity"), real_part=("train", "all"))
        choose(self, select=("last", "evaluator"), fid=FIDS)
        choose(self, acc=("attack_acc", "attack_acc_best"), acc5=("attack_acc5", "attack_acc_any"))
        require(self, real=(1, float("inf")), keep=(0, float("inf")))
        require(self, least_fid=(0, float("inf")))

    def metric(self, column: str) -> Metric:
        """Returns the metric that fills a column."""
        stand_ins = {"attack_acc": self.acc, "attack_acc5": self.acc5, "fid": self.fid}
        return METRICS[stand_ins.get(column, column)]

    def counted(self, trials: Sequence[Evidence]) -> list[Evidence]:
        """Returns the repeats that count; one that has no FID does."""

        def counts(e: Evidence) -> bool:
            try:
                return not METRICS[self.fid].compute(e) < self.least_fid
            except UndefinedError:
                return True

        return [e for e in trials if not self.least_fid or counts(e)]

    def view(self, e: Evidence) -> Evidence:
        """Returns the evidence of the reconstructions that count.

        Those that are kept come pass by pass, as all do: their passes are numbered anew within
        each class, in the order in which they were.

        Raises:
            UndefinedError: If some are to be kept and the target's logits were not.
        """
        if not self.keep:
            return e
        logits = target_logits(e).double()
        scores = own(logits if e.released else logits.log_softmax(1), e.labels)
        best = []
        for c in e.classes:
            of_class = (e.labels == c).nonzero()[:, 0]
            first = scores[of_class].argsort(descending=True, stable=True)[: self.keep]
            best.append(of_class[first.sort().values])
        kept = torch.stack(best, dim=1).flatten()  # every class has as many passes
        passes = torch.arange(len(best[0])).repeat_interleave(len(best))
        return replace(e.take(kept), passes=passes)


PROTOCOLS: dict[str, dict[str, str | int]] = {
    "per-pass": {},
    "kdd22": {"spread": "block", "fid": "fid_stretched"},
    "vmi": {"spread": "identity", "real_part": "all", "real": 100},
    "gmi": {"spread": "identity", "acc": "attack_acc_best", "acc5": "attack_acc_any"},
    "lomma": {"fid": "fid_inception_successful"},
    "ppa": {"spread": "identity", "keep": 50, "fid": "fid_inception"},
}
"""Name → the fields in which it differs from ours, "per-pass"; docs/protocols.md has sources.
Whose images ``select`` takes, and but for "vmi" how many real ones, stays as the table says."""


def fields_of(protocol: str) -> dict[str, str | int]:
    """Returns the value of every field that a named protocol decides.

    Raises:
        KeyError: If there is no such protocol; the message lists those that there are.
    """
    if protocol not in PROTOCOLS:
        raise KeyError(unknown("protocol", protocol, PROTOCOLS))
    defaults = asdict(Protocol())
    kept = ("select", "real")  # of the table
    return {k: v for k, v in defaults.items() if k not in kept} | PROTOCOLS[protocol]


@dataclass(frozen=True)
class Score:
    """A metric of one cell.

    Attributes:
        mean: In the metric's unit; None where the metric is undefined.
        std: Sample standard deviation over passes, identities or repeats; None where there
            is only one.
        n: How many values the mean rests on: images, identities, or repeats of the attack.
    """

    mean: float | None
    std: float | None
    n: int


def measure(metric: Metric, trials: Sequence[Evidence]) -> list[Tensor | float] | str:
    """Returns a metric's values on each repeat, or why it has none.

    Raises:
        FloatingPointError: If a value is not finite: a metric must say that it is undefined.
    """
    try:
        values = [metric.compute(e) for e in trials]
    except UndefinedError as error:
        return str(error)
    for v in values:
        check_finite(torch.as_tensor(v), f"{metric.title} of an attack")
    return values


def summarise(metric: Metric, trials: Sequence[Evidence], spread: Spread) -> Score:
    """Returns the score of a metric: :func:`measure`, then :func:`score`."""
    return score(metric, measure(metric, trials), trials, spread)


def score(
    metric: Metric, values: list[Tensor | float] | str, trials: Sequence[Evidence], spread: Spread
) -> Score:
    """Returns a metric's mean and spread over the repeats of an attack.

    Where it is undefined on any repeat there is no mean. A value per image is averaged within
    each pass, or identity, and the means spread as ``spread`` says. A value per identity spreads
    over identities; one of the whole attack over the repeats; one of the target does not.

    Raises:
        ValueError: If values are so large that the mean of some is infinite.
    """
    if isinstance(values, str):
        return Score(None, None, 0)
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
            if not all(map(math.isfinite, group)):
                raise ValueError(f"the values of {metric.title} are too large to average")
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
