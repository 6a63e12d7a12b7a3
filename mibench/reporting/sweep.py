"""Attack Acc against a number in which alone the attacks of rows differ, such as epochs."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.evaluation.significance import FEWEST_VALUES, Interval, interval
from mibench.reporting.canvas import ATTACK_ACC, finish, look, new_figure, own_style, save
from mibench.reporting.forms import points_csv
from mibench.reporting.reading import readable
from mibench.reporting.results import Results
from mibench.spec import canonical, fingerprint
from mibench.store import put

VERSION = 1
WIDE = 8
"""From which ratio of the largest number to the smallest the axis is logarithmic."""
FEW = 8
"""Up to how many numbers each has a tick of its own."""
BARS = {"seeds": "seeds", "attacks": "the attacks of one seed: one target, one prior"}
"""What an interval is over → how the figure says so."""


@dataclass(frozen=True)
class Point:
    """Attack Acc of a row, in percent; the fields are the columns of the CSV.

    Attributes:
        line: What the row shares with the others of its line, such as attack and defense.
        row: The row's label.
        at: The number in which the rows of a line differ.
        attack_acc: Mean over seeds, or over the attacks of one seed; None if not computed.
        low: Lower end of its 95 % interval by Student's t; None where there is none.
        high: Upper end.
        over: What the interval is over: "seeds", or "attacks" of one seed on one target, with one
            prior; "" where there is none.
        n: How many values the mean is of.
        reported: What a paper reports; None if nothing.
    """

    line: str
    row: str
    at: float
    attack_acc: float | None
    low: float | None
    high: float | None
    over: str
    n: int
    reported: float | None


def varied(table: Table) -> tuple[str, list[dict[str, float]]]:
    """Returns the path of the number, and of each line its labels with their numbers, in order.

    Rows of a line have the same cell but for that number. A row alone on its line is left out.

    Raises:
        ValueError: If no two rows differ in one number of their attack alone, or some differ in
            one and others in another.
    """
    leaves = {label: dict(_leaves(canonical(cell))) for label, cell in table.rows.items()}
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted({path for own in leaves.values() for path in own}):
        if not path.startswith("attack."):
            continue
        alike: dict[frozenset[tuple[str, object]], dict[str, float]] = {}
        for label, own in leaves.items():
            if type(number := own.get(path)) in (int, float):
                rest = frozenset(item for item in own.items() if item[0] != path)
                alike.setdefault(rest, {})[label] = float(number)  # type: ignore[arg-type]
        if lines := [line for line in alike.values() if len(set(line.values())) > 1]:
            found[path] = lines
    if not found:
        raise ValueError(
            f"no two rows of {table.name} differ in one number of their attack alone, so there is "
            "no line to draw"
        )
    if len(found) > 1:
        raise ValueError(
            f"rows of {table.name} differ in {' and '.join(found)}: choose, with --rows, some "
            "that differ in one of them"
        )
    ((path, lines),) = found.items()
    return path, [dict(sorted(line.items(), key=lambda item: item[1])) for line in lines]


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields path and value of all that is no mapping and no list."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in items:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _names(lines: Sequence[Iterable[str]]) -> list[str]:
    """Returns a name for each line: what all its labels share, or the first label and the last."""
    names, spans = [], []
    for labels in map(list, lines):
        rows = [Row.of(label) for label in labels]
        parts = [row.attack.split(", ") for row in rows]
        shared = [part for part in parts[0] if all(part in other for other in parts)]
        alike = shared and len({row.defended for row in rows}) == 1
        spans.append(f"{labels[0]} … {labels[-1]}")
        names.append(str(Row(", ".join(shared), rows[0].defended)) if alike else spans[-1])
    return [
        name if names.count(name) == 1 else span for name, span in zip(names, spans, strict=True)
    ]


def points(results: Results) -> tuple[str, list[Point]]:
    """Returns the path of the number and the points, by line and number.

    Raises:
        ValueError: As :func:`varied`; or if no row of a line has Attack Acc.
    """
    if "attack_acc" not in results.table.columns:
        raise ValueError(f"{results.table.name} has no column attack_acc, which this figure draws")
    path, lines = varied(results.table)
    all_points = []
    for name, line in zip(_names(lines), lines, strict=True):
        for label, at in line.items():
            span, over = _interval(results, label)
            mean, _ = results.table.reported.get(label, {}).get("attack_acc", (None, None))
            point = Point(name, label, at, None, None, None, "", 0, mean)
            if span is not None:
                point = replace(point, attack_acc=span.mean, n=span.n)
                if span.low is not None:
                    ends = span.clipped(0, 100)
                    point = replace(point, low=ends.low, high=ends.high, over=over)
            all_points.append(point)
    if all(point.attack_acc is None for point in all_points):
        raise ValueError(f"no row of {results.table.name} that could be joined has Attack Acc")
    return path, all_points


def _interval(results: Results, label: str) -> tuple[Interval | None, str]:
    """Returns a row's interval over its seeds; of one seed, over its attacks if it has several."""
    entry = results.entries[label]["attack_acc"]
    if len(entry.values) == 1 and results.grid is not None:
        (seed,) = entry.values
        read = readable(results.grid.records[label][seed], results.grid.store)
        repeats = read[0]["values"].get("attack_acc", []) if read else []
        if len(repeats) >= FEWEST_VALUES:
            return interval([fmean(values) for values in repeats], over="attacks"), "attacks"
    return entry.interval, "seeds"


@own_style()
def draw(caption: str, name: str, all_points: Sequence[Point], path: Path) -> None:
    """Draws a line for each attack and defense; hollow marks are what a paper reports.

    Args:
        caption: Of the table, above.
        name: Of the number, below the axis.
        all_points: At least one has Attack Acc.
        path: The PNG or PDF.
    """
    figure = new_figure((6.4, 3.6))
    axes = figure.add_subplot(1, 1, 1)
    for number, line in enumerate(dict.fromkeys(point.line for point in all_points)):
        own = [point for point in all_points if point.line == line]
        if any(p.attack_acc is not None for p in own):
            mean, low, high = (
                [nan if value is None else value for value in values]
                for values in zip(*((p.attack_acc, p.low, p.high) for p in own), strict=True)
            )
            below = [m - x for m, x in zip(mean, low, strict=True)]
            above = [x - m for m, x in zip(mean, high, strict=True)]
            axes.errorbar(
                [p.at for p in own], mean, yerr=[below, above], label=line, markersize=4,
                capsize=2, elinewidth=0.6, linewidth=1, **look(number),
            )  # fmt: skip
        if told := [(p.at, p.reported) for p in own if p.reported is not None]:
            axes.plot(
                *zip(*told, strict=True), label=f"{line}, as reported", linestyle="",
                markersize=6, markerfacecolor="none", **look(number),
            )  # fmt: skip
    at = sorted({point.at for point in all_points})
    if at[0] > 0 and at[-1] >= WIDE * at[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    if len(at) <= FEW:
        axes.set_xticks(at, [f"{x:.10g}" for x in at])
    bars = " or ".join(BARS[over] for over in BARS if over in {p.over for p in all_points})
    title = textwrap.wrap(caption, 80) + ([f"Bars: 95 % intervals over {bars}."] if bars else [])
    axes.set_title("\n".join(title), fontsize=7)
    finish(axes, name, ATTACK_ACC)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    stamp = fingerprint(["sweep", VERSION, caption, name, [astuple(p) for p in all_points]])
    save(figure, path, stamp)


def write(results: Results, paths: Iterable[Path]) -> None:
    """Writes the points, by each path's suffix as a picture or as CSV; raises as ``points``."""
    name, all_points = points(results)
    for path in paths:
        if path.suffix == ".csv":
            put(path, points_csv(Point, all_points))
        else:
            draw(results.table.caption, name, all_points, path)
