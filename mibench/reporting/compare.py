"""Two sets of runs side by side: how scores differ, and which fields of the specs do."""

import json
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose, isnan, nan
from typing import TYPE_CHECKING, Any

from mibench.attacks import CONTROLS
from mibench.evaluation import METRICS
from mibench.evaluation.significance import (
    FEWEST_VALUES,
    SAME,
    Equivalence,
    Interval,
    equivalence,
    paired,
)
from mibench.reporting.runs import Run, differences, in_words
from mibench.spec import fingerprint

if TYPE_CHECKING:
    from rich.table import Table as Grid

Number = float | None
Seeds = tuple[int, int, int]
"""Of target, prior and attack."""


@dataclass(frozen=True)
class Difference:
    """A metric of a row on both sides.

    Attributes:
        metric: Its name.
        a: Mean over A's seeds.
        b: Mean over B's seeds.
        half: Half of the 95 % interval of b - a; None with fewer than three seeds, or if all
            differ alike.
        paired: Whether it rests on the seeds that both sides have, pair by pair.
        seeds: How many seeds of A and of B it rests on.
    """

    metric: str
    a: float
    b: float
    half: Number
    paired: bool
    seeds: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """Two sets of runs.

    Attributes:
        rows: Label → metric by metric.
        fields: Label → (path, value in A, value in B) of spec fields that differ.
        only: Labels that one side lacks: those of A, those of B.
        within: (label, metric, test) of whether B - A lies within that metric's margin, row by
            row and then of each seed's mean over the rows, under a label that says so.
        unclear: In words, the scores left out since a side has different ones of a cell and seed.
    """

    rows: Mapping[str, Sequence[Difference]]
    fields: Mapping[str, Sequence[tuple[str, Any, Any]]]
    only: tuple[Sequence[str], Sequence[str]]
    within: Sequence[tuple[str, str, Equivalence]] = ()
    unclear: Sequence[str] = ()


def compare(
    a: Sequence[Run], b: Sequence[Run], margins: Mapping[str, float] | None = None
) -> Comparison:
    """Returns what both have in common and how it differs.

    Rows are paired by their labels or, if a run has none, all by their cells in a few words. If
    a label stands for several cells on either side, its rows are paired by their cells.

    Args:
        a: One side.
        b: The other.
        margins: Metric → greatest mean difference that does not matter.

    Raises:
        ValueError: If no row has values of a metric with a margin at equal seeds.
    """
    named = all(run.label for run in (*a, *b))
    disputes: list[str] = []
    sides = [_grouped(runs, x, disputes, named=named) for x, runs in (("A", a), ("B", b))]
    unclear = {label for side in sides for label, cells in side.items() if len(cells) > 1}
    left, right = (_told_apart(side, unclear) for side in sides)
    both = [label for label in left if label in right]
    return Comparison(
        {label: _row(left[label], right[label]) for label in both},
        {label: _fields(left[label][0], right[label][0]) for label in both},
        ([x for x in left if x not in right], [x for x in right if x not in left]),
        _within({x: (left[x], right[x]) for x in both}, margins or {}),
        disputes,
    )


def _seedless(run: Run) -> dict[str, Any]:
    return {k: v for k, v in run.cell.items() if k != "seeds"}


def _grouped(
    runs: Sequence[Run], side: str, disputes: list[str], *, named: bool
) -> dict[str, dict[str, list[Run]]]:
    """Returns label → fingerprint of a cell → one run per seed, with the scores of all of these.

    Tables that share a cell can have other columns. A metric of which they have different values
    is left out; ``disputes`` gets a sentence that says so.
    """
    cells: dict[str, dict[str, dict[Seeds, list[Run]]]] = {}
    for run in runs:
        label = run.label if named and run.label else in_words(run.cell)
        alike = cells.setdefault(label, {}).setdefault(fingerprint(_seedless(run)), {})
        alike.setdefault(run.seed, []).append(run)
    return {
        label: {
            key: [_joined(own, f"{side}, {label}", disputes) for own in alike.values()]
            for key, alike in kinds.items()
        }
        for label, kinds in cells.items()
    }


def _joined(runs: Sequence[Run], where: str, disputes: list[str]) -> Run:
    """Returns the first of some runs of one cell and seed, with the scores of all."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for metric, score in run.scores.items():
            values.setdefault(metric, []).append(score)
    clear = {k: v for k, v in values.items() if all(isclose(v[0], x, rel_tol=SAME) for x in v)}
    for metric, each in values.items():
        if metric not in clear:
            seeds, told = (", ".join(map(str, v)) for v in (runs[0].seed, dict.fromkeys(each)))
            disputes.append(f"{where}, seeds {seeds}: {metric} is {told}")
    return replace(runs[0], scores={k: v[0] for k, v in clear.items()})


def _told_apart(
    cells: Mapping[str, Mapping[str, list[Run]]], unclear: Container[str]
) -> dict[str, list[Run]]:
    """Returns label → runs; of labels that stand for several cells on a side, each cell's own."""
    return {
        f"{label} [{key[:6]}]" if label in unclear else label: alike
        for label, kinds in cells.items()
        for key, alike in kinds.items()
    }


def _fields(a: Run, b: Run) -> list[tuple[str, Any, Any]]:
    return list(differences(_seedless(a), _seedless(b)))


def _row(a: Sequence[Run], b: Sequence[Run]) -> list[Difference]:
    row = []
    for metric in METRICS:
        xs = {r.seed: r.scores[metric] for r in a if metric in r.scores}
        ys = {r.seed: r.scores[metric] for r in b if metric in r.scores}
        if not xs or not ys:
            continue
        both = [s for s in xs if s in ys]
        in_pairs = len(both) > 1 or len(both) == len(xs) == len(ys)
        if in_pairs:
            xs, ys = ({s: values[s] for s in both} for values in (xs, ys))
            half = paired(list(ys.values()), list(xs.values())).interval.half
        else:
            half = _welch(list(xs.values()), list(ys.values()))
        means = statistics.mean(xs.values()), statistics.mean(ys.values())
        row.append(Difference(metric, *means, half, in_pairs, (len(xs), len(ys))))
    return row


def _within(
    rows: Mapping[str, tuple[Sequence[Run], Sequence[Run]]], margins: Mapping[str, float]
) -> list[tuple[str, str, Equivalence]]:
    """Returns the tests of :attr:`Comparison.within`; rows that are controls are left out."""
    tests: list[tuple[str, str, Equivalence]] = []
    means: list[tuple[str, str, Equivalence]] = []
    for metric, margin in margins.items():
        by_row = {
            label: pairs
            for label, (a, b) in rows.items()
            if a[0].cell["attack"]["is"] not in CONTROLS and (pairs := _pairs(a, b, metric))
        }
        if not by_row:
            raise ValueError(f"no row has values of {metric} on both sides at equal seeds")
        for label, pairs in by_row.items():
            ys, xs = zip(*pairs.values(), strict=True)
            tests.append((label, metric, equivalence(ys, xs, margin)))
        if len(by_row) > 1:
            mean = _mean(list(by_row.values()), margin)
            means.append((f"mean of {len(by_row)} rows", metric, mean))
    order = list(rows)
    return sorted(tests, key=lambda test: order.index(test[0])) + means


def _mean(rows: Sequence[Mapping[Seeds, tuple[float, float]]], margin: float) -> Equivalence:
    """Returns the test of each seed's mean over rows: seeds → (B's value, A's value).

    It takes the seeds that all rows have. If these are too few there is no test, and no mean of
    none.
    """
    seeds = sorted(set.intersection(*map(set, rows)))
    each = [[statistics.fmean(v) for v in zip(*(r[s] for r in rows), strict=True)] for s in seeds]
    if len(seeds) < FEWEST_VALUES:
        why = f"none: all rows share {len(seeds)} of the {FEWEST_VALUES} seeds that it takes"
        mean = statistics.fmean(y - x for y, x in each) if each else nan
        return Equivalence(margin, None, Interval(mean, None, None, len(seeds), why))
    ys, xs = zip(*each, strict=True)
    return equivalence(ys, xs, margin)


def _pairs(a: Sequence[Run], b: Sequence[Run], metric: str) -> dict[Seeds, tuple[float, float]]:
    """Returns seed → (B's value, A's value) of the seeds that have both."""
    xs = {r.seed: r.scores[metric] for r in a if metric in r.scores}
    return {
        r.seed: (r.scores[metric], xs[r.seed]) for r in b if metric in r.scores and r.seed in xs
    }


def _welch(xs: Sequence[float], ys: Sequence[float]) -> Number:
    """Returns half of Welch's 95 % interval for the difference of means, if there can be one."""
    if min(len(xs), len(ys)) < FEWEST_VALUES:
        return None
    if statistics.stdev(xs) == statistics.stdev(ys) == 0:
        return None
    from scipy.stats import ttest_ind

    interval = ttest_ind(ys, xs, equal_var=False).confidence_interval(0.95)
    return float(interval.high - interval.low) / 2


def in_text(comparison: Comparison) -> str:
    """Returns the comparison for a terminal."""
    from rich.console import Console
    from rich.text import Text

    grid = _grid("", "", "A", "B", "B - A", "seeds")
    for label, metrics in comparison.rows.items():
        for i, d in enumerate(metrics):
            spread = "" if d.half is None else f" ± {d.half:.2f}"
            seeds = f"{d.seeds[0]}, {d.seeds[1]}" + (
                " paired" if d.paired and d.seeds[0] > 1 else ""
            )
            grid.add_row(
                Text(" ".join(label.split()) if i == 0 else ""), METRICS[d.metric].title,
                f"{d.a:.2f}", f"{d.b:.2f}", f"{d.b - d.a:+.2f}{spread}", seeds,
                end_section=i == len(metrics) - 1,
            )  # fmt: skip
    console = Console(width=1000, no_color=True, highlight=False, markup=False)
    with console.capture() as capture:
        if comparison.rows:
            console.print(grid)
            console.print(
                "± is half of the 95 % interval of the difference: Student's over pairs of equal "
                "seeds, Welch's where the seeds differ. Where there is none, as with one seed, a "
                "difference may be chance."
            )
        if comparison.within:
            console.print(_margins(comparison.within))
            console.print(
                "Equivalent: two one-sided paired t tests at a level of 0.05, so that the 90 % "
                "interval of B - A over equal seeds lies within ± the margin. Not equivalent: it "
                "lies outside. A mean of rows is taken at each seed first. Margins mean something "
                "only if they were chosen before the values were seen."
            )
        for dispute in comparison.unclear:
            console.print(f"Left out, since two records of it differ: {dispute}")
        for path, a, b, where in _merged(comparison):
            console.print(f"{path}: {_brief(a)} in A, {_brief(b)} in B ({where})")
        if comparison.rows and not any(comparison.fields.values()):
            console.print("The specs of all rows are the same.")
        for side, labels in zip("AB", comparison.only, strict=True):
            if labels:
                console.print(f"Only in {side}: {'; '.join(' '.join(x.split()) for x in labels)}")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _grid(*columns: str) -> "Grid":
    """Returns an empty table of two columns of words and more of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    grid = Grid(box=SIMPLE_HEAD)
    for i, name in enumerate(columns):
        grid.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
    return grid


def _margins(tests: Sequence[tuple[str, str, Equivalence]]) -> "Grid":
    """Returns the table of the equivalence tests."""
    from rich.text import Text

    grid = _grid("", "", "B - A", "90 % interval", "margin", "p", "seeds", "")
    for i, (label, metric, test) in enumerate(tests):
        new = i == 0 or tests[i - 1][0] != label
        last = i + 1 == len(tests) or tests[i + 1][0] != label
        span = test.interval
        ends = span.method if span.half is None else f"{span.low:+.2f} to {span.high:+.2f}"
        p = "" if test.p is None else f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
        grid.add_row(
            Text(" ".join(label.split()) if new else ""), METRICS[metric].title,
            "" if isnan(span.mean) else f"{span.mean:+.2f}", ends, f"± {test.margin:g}", p,
            str(span.n), test.verdict, end_section=last,
        )  # fmt: skip
    return grid


def _merged(comparison: Comparison) -> list[tuple[str, Any, Any, str]]:
    """Returns each differing field once, with the rows that it differs in."""
    merged: dict[str, tuple[str, Any, Any, list[str]]] = {}
    for label, fields in comparison.fields.items():
        for path, a, b in fields:
            at = merged.setdefault(json.dumps([path, a, b]), (path, a, b, []))
            at[3].append(" ".join(label.split()))
    total = len(comparison.rows)
    return [
        (path, a, b, "all rows" if len(rows) == total else "; ".join(rows))
        for path, a, b, rows in merged.values()
    ]


def _brief(value: Any) -> str:  # noqa: ANN401 - plain data
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
