"""Attack Acc against the one number in which the attacks of a table differ, such as epochs."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import fmean

from mibench.benchmarks.row import BETWEEN, Row
from mibench.benchmarks.tables.base import Table
from mibench.evaluation.significance import FEWEST_VALUES, Interval, interval
from mibench.reporting.canvas import ATTACK_ACC, finish, look, new_figure, own_style, save
from mibench.reporting.results import Results, readable
from mibench.spec import canonical, fingerprint

VERSION = 1
WIDE = 8
"""From which ratio of the largest number to the smallest the axis is logarithmic."""


@dataclass(frozen=True)
class Point:
    """Attack Acc of a row, in percent; the fields are the columns of the CSV.

    Attributes:
        line: What the row shares with others of its line: attack and defense.
        row: The row's label.
        at: The number in which the rows of a line differ.
        attack_acc: Mean over seeds, or over the attacks of one seed; None if not computed.
        low: Lower end of its 95 % interval by Student's t; None where there is none.
        high: Upper end.
        over: What the interval is over: "seeds", or "attacks" of one seed on one target; "" where
            there is none.
        reported: What a paper reports; None if nothing.
    """

    line: str
    row: str
    at: float
    attack_acc: float | None
    low: float | None
    high: float | None
    over: str
    reported: float | None


def varied(table: Table) -> tuple[str, dict[str, tuple[str, float]]]:
    """Returns the path of the number, and label → the name of its line and the number.

    Rows of a line have the same cell but for that number; a row that has no other on its line is
    left out.

    Raises:
        ValueError: If the rows differ in no number of their attack alone, or in several.
    """
    leaves = {label: dict(_leaves(canonical(cell))) for label, cell in table.rows.items()}
    numbers = {
        path
        for own in leaves.values()
        for path, value in own.items()
        if path.startswith("attack.") and type(value) in (int, float)
    }
    found: dict[str, list[list[str]]] = {}
    for path in sorted(numbers):
        alike: dict[frozenset[tuple[str, object]], list[str]] = {}
        for label, own in leaves.items():
            if path in own:
                rest = frozenset(item for item in own.items() if item[0] != path)
                alike.setdefault(rest, []).append(label)
        if groups := [labels for labels in alike.values() if len(labels) > 1]:
            found[path] = groups
    if len(found) != 1:
        several = " and ".join(found)
        what = f"several numbers ({several}): choose rows with --rows" if found else "no number"
        raise ValueError(f"rows of {table.name} that differ in one number of their attack alone "
                         f"are what this figure joins; they differ in {what}")  # fmt: skip
    ((path, groups),) = found.items()
    return path, {
        label: (_common(labels), float(leaves[label][path]))  # type: ignore[arg-type]
        for labels in groups
        for label in labels
    }


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields the path and the value of all that is no mapping and no list."""
    if not isinstance(value, dict | list):
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in items:
        yield from _leaves(part, f"{path}.{name}" if path else str(name))


def _common(labels: Sequence[str]) -> str:
    """Returns the parts of the labels that all of them have."""
    first, *others = ([*Row.of(k).attack.split(", "), Row.of(k).defended] for k in labels)
    kept = [part for part in first[:-1] if all(part in other for other in others)]
    return f"{', '.join(kept)}{BETWEEN if kept else ''}{first[-1]}"


def points(results: Results) -> tuple[str, list[Point]]:
    """Returns the path of the number and the points, by line and number.

    Raises:
        ValueError: As :func:`varied`; or if no row of a line is computed.
    """
    path, lines = varied(results.table)
    all_points = []
    for label, (line, at) in lines.items():
        span, over = _interval(results, label)
        mean, _ = results.table.reported.get(label, {}).get("attack_acc", (None, None))
        ends = span.clipped(0, 100) if span else None
        low, high = (ends.low, ends.high) if ends else (None, None)
        over = over if low is not None else ""
        all_points.append(
            Point(line, label, at, span.mean if span else None, low, high, over, mean)
        )
    if all(point.attack_acc is None for point in all_points):
        raise ValueError(f"no row of {results.table.name} has Attack Acc")
    names = list(dict.fromkeys(point.line for point in all_points))
    return path, sorted(all_points, key=lambda p: (names.index(p.line), p.at))


def _interval(results: Results, label: str) -> tuple[Interval | None, str]:
    """Returns a row's interval over its seeds; of one seed, over its attacks if it has several."""
    entry = results.entries[label]["attack_acc"]
    if len(entry.values) == 1 and results.grid is not None:
        ((seed, _),) = entry.values.items()
        read = readable(results.grid.records[label][seed], results.grid.store)
        repeats = read[0]["values"].get("attack_acc", []) if read else []
        if len(repeats) >= FEWEST_VALUES:
            return interval([fmean(values) for values in repeats], over="attacks"), "attacks"
    return entry.interval, "seeds"


def table(all_points: Iterable[Point]) -> str:
    """Returns the points as CSV; the same bytes for the same results."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(Point))
    for point in all_points:
        writer.writerow(f"{v:.10g}" if isinstance(v, float) else v for v in astuple(point))
    return text.getvalue()


@own_style()
def draw(name: str, all_points: Sequence[Point], path: Path) -> None:
    """Draws a line for each attack and defense; hollow marks are what a paper reports.

    Args:
        name: Of the number, below the axis.
        all_points: At least one has Attack Acc.
        path: The PNG or PDF.
    """
    figure = new_figure((6.4, 3.6))
    axes = figure.add_subplot(1, 1, 1)
    for number, line in enumerate(dict.fromkeys(point.line for point in all_points)):
        own = [point for point in all_points if point.line == line]
        style = look(number) | {"markersize": 4, "capsize": 2, "elinewidth": 0.6, "linewidth": 1}
        done = [(p.at, p.attack_acc, p) for p in own if p.attack_acc is not None]
        if done:
            x, y, whole = zip(*done, strict=True)
            below = [m - (m if p.low is None else p.low) for _, m, p in done]
            above = [(m if p.high is None else p.high) - m for _, m, p in done]
            bars = [below, above] if any(p.low is not None for p in whole) else None
            axes.errorbar(x, y, yerr=bars, label=line, **style)
        if told := [(p.at, p.reported) for p in own if p.reported is not None]:
            hollow = look(number) | {"linestyle": "", "markersize": 6, "markerfacecolor": "none"}
            axes.plot(*zip(*told, strict=True), **hollow, label=f"{line}, as reported")
    at = [point.at for point in all_points]
    if min(at) > 0 and max(at) >= WIDE * min(at):
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter("")
    axes.set_xticks(sorted(set(at)), [f"{x:g}" for x in sorted(set(at))])
    if over := " or ".join(sorted({point.over for point in all_points} - {""})):
        axes.set_title(f"bars: 95 % intervals over {over}", fontsize=8)
    finish(axes, name, ATTACK_ACC)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, fingerprint(["sweep", VERSION, name, [astuple(p) for p in all_points]]))


def write(results: Results, paths: Iterable[Path]) -> None:
    """Writes the points, by each path's suffix as a picture or as CSV; raises as ``points``."""
    name, all_points = points(results)
    for path in paths:
        if path.suffix == ".csv":
            path.write_text(table(all_points), encoding="utf-8")
        else:
            draw(name, all_points, path)
