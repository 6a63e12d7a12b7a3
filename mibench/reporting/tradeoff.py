"""Defenses compared at equal utility, over the weights that a table sweeps.

A point is (Accuracy, Attack Acc) of one target, both in percent; a curve is a defense's points
over its weights, seed by seed. What two curves are compared in: Attack Acc at equal Accuracy,
and the area that a curve dominates.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from csv import writer
from dataclasses import dataclass, replace
from io import StringIO
from itertools import combinations, pairwise

from mibench.evaluation.significance import FEWEST_VALUES, LEVEL, Interval, holm, interval, paired
from mibench.running.grid import Grid

Point = tuple[float, float]
NAN = float("nan")
LEVELS = (99.0, 98.0, 95.0, 90.0, 80.0, 60.0)
"""Accuracies, in percent, at which curves are compared."""


# Of one seed ------------------------------------------------------------------------------


def interpolate(points: Sequence[Point], accuracy: float) -> float:
    """Returns Attack Acc where the curve has ``accuracy``, linear between neighbours.

    Points are taken in the order of their accuracies; those of equal accuracy count as one,
    with the mean of their Attack Acc.

    Args:
        points: (Accuracy, Attack Acc) in any order.
        accuracy: In percent.

    Returns:
        Percent; NaN outside the accuracies that were measured: nothing is extrapolated.
    """
    groups: dict[float, list[float]] = {}
    for x, y in points:
        groups.setdefault(x, []).append(y)
    known = sorted((x, statistics.fmean(ys)) for x, ys in groups.items())
    for x, y in known:
        if x == accuracy:
            return y
    for (x0, y0), (x1, y1) in pairwise(known):
        if x0 < accuracy < x1:
            return y0 + (y1 - y0) * (accuracy - x0) / (x1 - x0)
    return NAN


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats: Pareto's front, by falling accuracy.

    One beats another if its Accuracy is no lower and its Attack Acc no higher, and one of the
    two is better. Equal points count once.
    """
    best: list[Point] = []
    for point in sorted(set(points), key=lambda p: (-p[0], p[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def hypervolume(points: Sequence[Point], chance: float) -> float:
    """Returns the area that the front dominates, in percent of what can be dominated.

    Utility is Accuracy, privacy 100 − Attack Acc. The reference point is (``chance``, 0): a
    target that guesses and gives every class away; the whole area ends at (100, 100).

    Args:
        points: (Accuracy, Attack Acc); those no more accurate than chance add nothing.
        chance: Accuracy of a blind guess, in percent, below 100.
    """
    area, top = 0.0, 0.0
    for accuracy, attack in front(points):
        privacy = 100 - attack
        if accuracy > chance:
            area += (accuracy - chance) * (privacy - top)
            top = privacy
    return area / (100 - chance)


# Over seeds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A defense's points.

    Attributes:
        name: What the table calls the curve.
        labels: The rows, in the order of the sweep.
        points: Seed → one point per row. A seed is there once all its rows are.
    """

    name: str
    labels: tuple[str, ...]
    points: Mapping[int, tuple[Point, ...]]

    def means(self) -> list[tuple[Interval, Interval]]:
        """Returns (Accuracy, Attack Acc) of each row over the seeds."""
        rows = zip(*self.points.values(), strict=True)
        return [(interval([x for x, _ in row]), interval([y for _, y in row])) for row in rows]


@dataclass(frozen=True)
class Line:
    """One line of the comparison: a curve's own value, or its difference to another.

    Attributes:
        quantity: "attack_acc" at equal accuracy, or "hypervolume"; both in percent.
        level: Where: an accuracy in percent, "as NAME" for that of a single-point curve at
            each seed, or "" for an area.
        curve: Whose.
        versus: Whose is subtracted; "" for a curve's own value.
        interval: Over the seeds that have it; None if none has. Of a difference that is not fair
            to test it is the mean alone, and its method says why.
        p: Of the paired t test of a difference; None where there is no test.
        p_holm: After Holm's correction over all differences of the quantity.
    """

    quantity: str
    level: str
    curve: str
    versus: str
    interval: Interval | None
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """The curves of a table at equal utility.

    Attributes:
        curves: The curves, each with the seeds that all of them have.
        lines: Values and differences.
        seeds: Those seeds.
        missing: Rows and seeds that are not in the store.
        chance: Accuracy of a blind guess, in percent.
    """

    curves: tuple[Curve, ...]
    lines: tuple[Line, ...]
    seeds: tuple[int, ...]
    missing: tuple[str, ...]
    chance: float


def compare(grid: Grid) -> Tradeoff:
    """Compares the curves of a table on the seeds of which every row is in the store.

    Raises:
        ValueError: If the table declares no curves.
    """
    table, records = grid.table, grid.records
    if not table.curves:
        raise ValueError(f"{table.name} sweeps nothing: it declares no curves")
    labels = [label for curve in table.curves.values() for label in curve]
    points: dict[tuple[str, int], Point] = {}
    done = grid.only(labels).done
    for label in labels:
        for seed, record in done[label].items():
            scores = grid.store.load(record)["scores"]
            point = (scores["accuracy"]["mean"], scores["attack_acc"]["mean"])
            if None not in point:
                points[label, seed] = point
    missing = [
        f"{label}, seed {seed}"
        for label in labels
        for seed in range(len(records[label]))
        if (label, seed) not in points
    ]
    counts = range(min(len(records[label]) for label in labels))
    seeds = [s for s in counts if all((label, s) in points for label in labels)]
    curves = [
        Curve(name, tuple(rows), {s: tuple(points[label, s] for label in rows) for s in seeds})
        for name, rows in table.curves.items()
    ]
    classes = {table.rows[label].setting.task.num_classes for label in labels}
    chance = 100 / min(classes)
    lines = [*matched(curves, seeds), *areas(curves, seeds, chance)]
    return Tradeoff(tuple(curves), tuple(lines), tuple(seeds), tuple(missing), chance)


def matched(curves: Sequence[Curve], seeds: Sequence[int]) -> list[Line]:
    """Returns Attack Acc at equal Accuracy and all differences, level by level.

    The levels are LEVELS, and for each curve of one point that point's accuracy, seed by seed.
    Levels that no curve reaches are left out.
    """
    levels = {f"{level:g}": [level] * len(seeds) for level in LEVELS}
    for curve in curves:
        if len(curve.labels) == 1:
            levels[f"as {curve.name}"] = [curve.points[s][0][0] for s in seeds]
    values = {
        level: {
            c.name: [interpolate(c.points[s], x) for s, x in zip(seeds, at, strict=True)]
            for c in curves
        }
        for level, at in levels.items()
    }
    return _lines("attack_acc", values)


def areas(curves: Sequence[Curve], seeds: Sequence[int], chance: float) -> list[Line]:
    """Returns the hypervolume of each curve, and all differences.

    Those between curves of unequal numbers of points have no interval and no test: the best of
    more points is better, were they all of one distribution.
    """
    by_curve = {c.name: [hypervolume(c.points[s], chance) for s in seeds] for c in curves}
    points = {c.name: len(c.labels) for c in curves}

    def unfair(curve: str, versus: str) -> str:
        a, b = points[curve], points[versus]
        return "" if a == b else f"not tested: {a} {'points' if a > 1 else 'point'} against {b}"

    return _lines("hypervolume", {"": by_curve}, unfair)


def _lines(
    quantity: str,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    unfair: Callable[[str, str], str] = lambda curve, versus: "",
) -> list[Line]:
    """Returns the lines of level → curve → value of each seed; NaN is no value.

    ``unfair`` says why the difference of two curves cannot be tested; nothing if it can.
    """
    own, differences = [], []
    for level, by_curve in values.items():
        known = {name: [v for v in vs if not math.isnan(v)] for name, vs in by_curve.items()}
        if not any(known.values()):
            continue
        own += [
            Line(quantity, level, name, "", interval(vs) if vs else None)
            for name, vs in known.items()
        ]
        for (a, va), (b, vb) in combinations(by_curve.items(), 2):
            both = [(x, y) for x, y in zip(vb, va, strict=True) if not math.isnan(x + y)]
            test = paired([x for x, _ in both], [y for _, y in both]) if both else None
            p, between = (test.p, test.interval) if test else (None, None)
            if between and (why := unfair(b, a)):
                p, between = None, replace(between, low=None, high=None, method=why)
            differences.append(Line(quantity, level, b, a, between, p))
    adjusted = holm([line.p for line in differences])
    return own + [replace(d, p_holm=p) for d, p in zip(differences, adjusted, strict=True)]


# As text ----------------------------------------------------------------------------------

HEAD = ("quantity", "level", "curve", "versus", "mean", "t95", "seeds", "p", "p_holm")


def csv(compared: Tradeoff) -> str:
    """Returns every value and difference, a line each; the same bytes for the same store."""
    text = StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(HEAD)
    for line in compared.lines:
        i = line.interval
        numbers = (i and i.mean, i and i.half, i.n if i else 0, line.p, line.p_holm)
        cells = ["" if v is None else f"{v:.10g}" for v in numbers]
        lines.writerow([line.quantity, line.level, line.curve, line.versus, *cells])
    return text.getvalue()


def text(compared: Tradeoff) -> str:
    """Returns what a terminal shows: values, and the differences that are significant."""
    if not compared.seeds:
        return "Nothing to compare at equal accuracy yet; not in the store: " + "; ".join(
            compared.missing
        )
    own = [line for line in compared.lines if not line.versus]
    names = [curve.name for curve in compared.curves]
    total = len(compared.seeds)
    levels = dict.fromkeys((line.quantity, line.level) for line in own)
    values = {(line.quantity, line.level, line.curve): line.interval for line in own}
    body = [
        [
            {"hypervolume": "dominated area"}.get(quantity, level),
            *(_show(values[quantity, level, name], total) for name in names),
        ]
        for quantity, level in levels
    ]
    rows = [["Accuracy, %", *names], *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["Attack Acc at equal Accuracy, %:", ""]
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join([*lines, "", *_notes(compared), *_differences(compared)])


def _notes(compared: Tradeoff) -> list[str]:
    total = len(compared.seeds)
    counts = ", ".join(f"{c.name} {len(c.labels)}" for c in compared.curves)
    over = f"Over {total} seeds, ± half the width of the 95 % confidence interval (Student's t)."
    if total == 1:
        over = "One seed carries no interval."
    elif total < FEWEST_VALUES:
        over = f"Over {total} seeds, too few for an interval."
    notes = [
        f"{over} Linear between "
        "the points of a seed's sweep; -- where its accuracies do not reach so far: nothing is "
        f"extrapolated (n/N: n of N seeds reach there; fewer than {FEWEST_VALUES} carry no "
        "interval).",
        "The dominated area is a share of the square from blind guessing "
        f"({compared.chance:g} % Accuracy, 100 % Attack Acc) to 100 % Accuracy and 0 % Attack "
        "Acc; more is better for the defender. A front takes the best of its points, luck "
        f"included, so only between equal numbers of points is there an interval and a test "
        f"({counts}).",
    ]
    if compared.missing:
        notes.append(f"Not in the store: {'; '.join(compared.missing)}.")
    return notes


def _differences(compared: Tradeoff) -> list[str]:
    """Returns the differences in area, and those at equal accuracy that are significant."""
    lines = []
    for line in compared.lines:
        if line.quantity == "hypervolume" and line.versus and line.interval:
            untested = line.interval.method.startswith("not tested")
            why = f" ({line.interval.method})" if untested else ""
            lines.append(f"  area: {_in_words(line)}{why}")
    tests = [
        line for line in compared.lines if line.quantity == "attack_acc" and line.p is not None
    ]
    apart = [line for line in tests if line.p_holm is not None and line.p_holm <= LEVEL]
    lines += [f"  {_where(line.level)}: {_in_words(line)}" for line in apart]
    if tests:
        lines.append(
            f"Of {len(tests)} paired differences of Attack Acc at equal Accuracy {len(apart)} "
            f"differ from 0 at level {100 * LEVEL:g} % after Holm's correction."
        )
    else:
        lines.append("No difference can be tested: that takes two seeds that reach one accuracy.")
    return lines


def _where(level: str) -> str:
    return f"as accurate {level}" if level.startswith("as ") else f"at {level} % Accuracy"


def _in_words(line: Line) -> str:
    assert line.interval is not None
    half, p = line.interval.half, line.p_holm
    spread = f" ± {half:.2f}" if half is not None else ""
    tested = f", p = {p:.3f} (Holm)" if p is not None else ""
    return f"{line.curve} − {line.versus} = {line.interval.mean:+.2f}{spread}{tested}"


def _show(span: Interval | None, total: int) -> str:
    if span is None:
        return "--"
    spread = f" ± {span.half:.2f}" if span.half is not None else ""
    return f"{span.mean:.2f}{spread}" + (f" ({span.n}/{total})" if span.n < total else "")
