"""The comparison at equal utility as text, CSV and figure."""

from csv import writer
from io import StringIO
from pathlib import Path

from mibench.evaluation.significance import FEWEST_VALUES, LEVEL, Interval
from mibench.reporting.drawing import new_figure, own_style, save
from mibench.reporting.figures import COLOURS, MARKERS
from mibench.reporting.tradeoff import Comparison, Line, front

HEAD = ("quantity", "level", "curve", "versus", "mean", "t95", "seeds", "p", "p_holm")


def csv(found: Comparison) -> str:
    """Returns every value and difference, a line each; the same bytes for the same store."""
    text = StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(HEAD)
    for line in found.lines:
        i = line.found
        numbers = (i and i.mean, i and i.half, i.n if i else 0, line.p, line.p_holm)
        told = ["" if v is None else f"{v:.10g}" for v in numbers]
        lines.writerow([line.quantity, line.level, line.curve, line.versus, *told])
    return text.getvalue()


def text(found: Comparison) -> str:
    """Returns what a terminal shows: values, and the differences that are told apart."""
    if not found.seeds:
        return "Nothing to compare at equal accuracy yet; not in the store: " + "; ".join(
            found.missing
        )
    own = [line for line in found.lines if not line.versus]
    names = [curve.name for curve in found.curves]
    total = len(found.seeds)
    levels = dict.fromkeys((line.quantity, line.level) for line in own)
    values = {(line.quantity, line.level, line.curve): line.found for line in own}
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
    return "\n".join([*lines, "", *_notes(found), *_differences(found)])


def _notes(found: Comparison) -> list[str]:
    total = len(found.seeds)
    counts = ", ".join(f"{c.name} {len(c.labels)}" for c in found.curves)
    over = f"Over {total} seeds, ± half of Student's 95 % interval."
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
        f"({found.chance:g} % Accuracy, 100 % Attack Acc) to 100 % Accuracy and 0 % Attack Acc; "
        "more is better for the defender. A front takes the best of its points, luck included, so "
        f"it is tested between equal numbers of points only ({counts}).",
    ]
    if found.missing:
        notes.append(f"Not in the store: {'; '.join(found.missing)}.")
    return notes


def _differences(found: Comparison) -> list[str]:
    """Returns the differences in area, and those at equal accuracy that are told apart."""
    lines = []
    for line in found.lines:
        if line.quantity == "hypervolume" and line.versus and line.found:
            lines.append(f"  area: {_told(line)}")
    tests = [line for line in found.lines if line.quantity == "attack_acc" and line.p is not None]
    apart = [line for line in tests if line.p_holm is not None and line.p_holm <= LEVEL]
    lines += [f"  {_where(line.level)}: {_told(line)}" for line in apart]
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


def _told(line: Line) -> str:
    assert line.found is not None
    half, p = line.found.half, line.p_holm
    spread = f" ± {half:.2f}" if half is not None else ""
    tested = f", p = {p:.3f} (Holm)" if p is not None else ""
    return f"{line.curve} − {line.versus} = {line.found.mean:+.2f}{spread}{tested}"


def _show(found: Interval | None, total: int) -> str:
    if found is None:
        return "--"
    spread = f" ± {found.half:.2f}" if found.half is not None else ""
    return f"{found.mean:.2f}{spread}" + (f" ({found.n}/{total})" if found.n < total else "")


@own_style()
def draw(found: Comparison, stem: Path) -> list[Path]:
    """Writes a PNG and a PDF: Attack Acc against Accuracy, a line per defense over its weights.

    Marks are means, bars Student's 95 % intervals, faint marks single seeds; the dashed steps
    are the front of all means. Nothing is written while no seed is whole.
    """
    if not found.seeds:
        return []
    figure = new_figure((5.4, 3.8))
    axes = figure.add_subplot(1, 1, 1)
    means = []
    for j, curve in enumerate(found.curves):
        look = {"color": COLOURS[j % len(COLOURS)], "marker": MARKERS[j % len(MARKERS)]}
        for points in curve.points.values():
            axes.plot(*zip(*points, strict=True), **look, linestyle="", markersize=3, alpha=0.3)
        rows = curve.means()
        means += [(x.mean, y.mean) for x, y in rows]
        axes.errorbar(
            [x.mean for x, _ in rows],
            [y.mean for _, y in rows],
            xerr=[x.half or 0 for x, _ in rows],
            yerr=[y.half or 0 for _, y in rows],
            **look,
            label=curve.name,
            capsize=2,
            linewidth=1.2,
            elinewidth=0.6,
        )
    best = front(means)[::-1]
    axes.step(
        [x for x, _ in best], [y for _, y in best], where="pre", color="#777777",
        linestyle="--", linewidth=1, label="front of means", zorder=1,
    )  # fmt: skip
    axes.set_xlabel("Accuracy of the target, %", fontsize=8)
    axes.set_ylabel("Attack Acc, % (lower is more private)", fontsize=8)
    low = min(x for curve in found.curves for points in curve.points.values() for x, _ in points)
    axes.set_xlim(low - 2, 101)
    axes.set_ylim(-2, 102)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=7)
    return save(figure, stem)
