"""Two sets of runs side by side: how scores differ, and which fields of the specs do."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mibench.evaluation import METRICS
from mibench.evaluation.significance import FEWEST_VALUES, paired
from mibench.reporting.runs import Run, differences, in_words
from mibench.spec import fingerprint

Number = float | None


@dataclass(frozen=True)
class Difference:
    """A metric of a row on both sides.

    Attributes:
        metric: Its name.
        a: Mean over A's seeds.
        b: Mean over B's seeds.
        half: Half of the 95 % interval of b - a; None with one seed, or if all differ alike.
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
    """

    rows: Mapping[str, Sequence[Difference]]
    fields: Mapping[str, Sequence[tuple[str, Any, Any]]]
    only: tuple[Sequence[str], Sequence[str]]


def compare(a: Sequence[Run], b: Sequence[Run]) -> Comparison:
    """Returns what both have in common and how it differs.

    Rows are paired by their labels or, if a run has none, all by their cells in a few words.
    """
    named = all(run.label for run in (*a, *b))
    left, right = _grouped(a, named=named), _grouped(b, named=named)
    both = [label for label in left if label in right]
    return Comparison(
        {label: _row(left[label], right[label]) for label in both},
        {label: _fields(left[label][0], right[label][0]) for label in both},
        ([x for x in left if x not in right], [x for x in right if x not in left]),
    )


def _seedless(run: Run) -> dict[str, Any]:
    return {k: v for k, v in run.cell.items() if k != "seeds"}


def _grouped(runs: Sequence[Run], *, named: bool) -> dict[str, list[Run]]:
    """Returns label → one run per seed; different cells of one label get labels of their own."""
    cells: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        label = run.label if named and run.label else in_words(run.cell)
        alike = cells.setdefault(label, {}).setdefault(fingerprint(_seedless(run)), [])
        if run.seed not in [r.seed for r in alike]:
            alike.append(run)
    return {
        label if len(kinds) == 1 else f"{label} [{key[:6]}]": alike
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
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE_HEAD)
    for i, name in enumerate(("", "", "A", "B", "B - A", "seeds")):
        grid.add_column(name, justify="left" if i < 2 else "right", no_wrap=True)
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
        for path, a, b, where in _merged(comparison):
            console.print(f"{path}: {_brief(a)} in A, {_brief(b)} in B ({where})")
        if comparison.rows and not any(comparison.fields.values()):
            console.print("The specs of all rows are the same.")
        for side, labels in zip("AB", comparison.only, strict=True):
            if labels:
                console.print(f"Only in {side}: {'; '.join(' '.join(x.split()) for x in labels)}")
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


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
