"""Query curves of a table: Attack Acc against answers of the target, by row and seed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from mibench.evaluation.significance import Interval, interval
from mibench.reporting.canvas import ATTACK_ACC, STYLES, finish, look, new_figure, own_style, save
from mibench.reporting.explain import count
from mibench.reporting.forms import points_csv
from mibench.running.stages import RecordStage
from mibench.running.stages.curve import CurveStage, curve_stage
from mibench.spec import fingerprint
from mibench.store import Store, put

VERSION = 3
SHARED = (
    "Answers that served all classes (of a prior and of students before the attack, of public "
    "images) are divided among the attacked classes."
)


@dataclass(frozen=True)
class Point:
    """What an attack had at one moment; the fields are the columns of the CSV.

    Attributes:
        row: The row's label.
        seed: Of all three kinds.
        mark: Answers for each class whose number was just passed; 0 at the attack's end.
        answers: Answers of the target for each attacked class, the shared ones among them.
        shared: Those that a prior and students had before the attack, for each attacked class.
        attack_acc: In percent.
    """

    row: str
    seed: int
    mark: int
    answers: float
    shared: float
    attack_acc: float


def curve_stages(records: Mapping[str, Sequence[RecordStage]]) -> dict[str, list[CurveStage]]:
    """Returns label → its curves, one per seed."""
    return {label: [curve_stage(record) for record in own] for label, own in records.items()}


def points(records: Mapping[str, Sequence[RecordStage]], store: Store) -> list[Point]:
    """Returns the points of all curves in the store; computes nothing."""
    result = []
    for label, stages in curve_stages(records).items():
        for seed, stage in enumerate(stages):
            if store.state(stage) != "done":
                continue
            payload, classes = store.load(stage), stage.inversion.classes
            shared = payload["shared"] / classes
            for p in payload["points"]:
                answers = p["asked"] / classes + shared
                result.append(Point(label, seed, p["mark"], answers, shared, p["attack_acc"]))
    return result


def table(all_points: Iterable[Point]) -> str:
    """Returns the points as CSV; the same bytes for the same store."""
    return points_csv(Point, all_points)


def means(all_points: Iterable[Point]) -> dict[str, list[tuple[float, Interval]]]:
    """Returns label → answers and Attack Acc, means over all seeds of the row, mark by mark.

    At a mark a seed has what its first round that passed the mark left, whatever further marks
    that round passed. A seed whose attack had ended before stays at its end: with more answers
    to spend it would have found the same.
    """
    rows: dict[str, dict[int, list[Point]]] = {}
    for point in sorted(all_points, key=_passed):
        rows.setdefault(point.row, {}).setdefault(point.seed, []).append(point)
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for label, seeds in rows.items():
        for mark in sorted({_passed(p) for own in seeds.values() for p in own}):
            there = [next((p for p in s if _passed(p) >= mark), s[-1]) for s in seeds.values()]
            answers = statistics.fmean(p.answers for p in there)
            acc = interval([p.attack_acc for p in there])
            lines.setdefault(label, []).append((answers, acc))
    return lines


def _passed(point: Point) -> float:
    """Returns the mark that a point passed; the end has passed all that its attack could."""
    return point.mark or math.inf


def _named(label: str, line: Sequence[tuple[float, Interval]]) -> str:
    """Returns a row's label with the number of seeds that its curve rests on."""
    return f"{label} ({count(line[0][1].n, 'seed')})"


def text(all_points: Sequence[Point]) -> str:
    """Returns what a terminal shows: each row's answers of a class and Attack Acc, in percent."""
    lines = {_named(label, line): line for label, line in means(all_points).items()}
    width = max(map(len, lines))
    shown = [
        f"{name:{width}}  " + "  ".join(f"{x:,.0f}: {y.mean:.2f}" for x, y in line)
        for name, line in lines.items()
    ]
    return "\n".join(["Answers for each class: Attack Acc, %, means over seeds.", *shown, SHARED])


@own_style()
def draw(all_points: Sequence[Point], path: Path) -> bool:
    """Draws a line per row, the bars being Student's 95 % intervals; PNG or PDF.

    A row that asks the target nothing has no place on the axis and is left out.
    """
    lines = {
        label: kept
        for label, line in means(all_points).items()
        if (kept := [point for point in line if point[0] > 0])
    }
    if not lines:
        return False
    figure = new_figure((7.2, 4.2))
    axes = figure.add_subplot(1, 1, 1)
    for number, (label, line) in enumerate(lines.items()):
        x, y = zip(*line, strict=True)
        half = [acc.half or 0 for acc in y]
        axes.errorbar(
            x, [acc.mean for acc in y], yerr=half if any(half) else None,
            label=_named(label, line), markersize=4, linewidth=1, elinewidth=0.6,
            linestyle=STYLES[number % len(STYLES)], **look(number),
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.10g}")  # no powers in TeX's notation, which is off here
    axes.xaxis.set_minor_formatter("")
    finish(axes, "Answers of the target for each attacked class", ATTACK_ACC)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, fingerprint(["queries", VERSION, [astuple(p) for p in all_points]]))
    return True


def write(all_points: Sequence[Point], paths: Iterable[Path], command: str) -> list[Path]:
    """Writes the curves, by each path's suffix as a picture or as CSV; returns what it wrote.

    There is no picture of rows that ask the target nothing.

    Raises:
        ValueError: If there are none.
    """
    if not all_points:
        raise ValueError(f"no row has a query curve in the store; compute them with: {command}")
    written = []
    for path in paths:
        if path.suffix == ".csv":
            put(path, table(all_points))
        elif not draw(all_points, path):
            continue
        written.append(path)
    return written
