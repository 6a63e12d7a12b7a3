"""What a matrix says, as a picture, as Markdown and as CSV."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mibench.evaluation.significance import FEWEST_IDENTITIES, FEWEST_VALUES
from mibench.reporting.canvas import new_figure, own_style, save
from mibench.reporting.matrix import DIGITS, WITHIN, Matrix, Numbers, span
from mibench.spec import fingerprint
from mibench.store import put

VERSION = 3
COLUMNS = (
    "attack", "defense", "seeds", "attack_acc", "low", "high",
    "compared_with", "higher_by", "higher_low", "higher_high", "why_not",
)  # fmt: skip
WORST = ("target", "worst attack", "Attack Acc, %", "rank (1: least leaks)")
LESS = ("target", "compared with", "Attack Acc higher by, mean over these attacks")
STUDENT = "Student's interval, over seeds"
JUDGES = ("attack", "points below the worst attack, mean over these targets")
SPENT = ("answers per class", "gradients per class")
BUDGETS = (
    "Answers are those of the target, and gradients are taken of it, for each class: the mean "
    "over all targets of an attack. What its prior and networks that imitate the target asked "
    "for is included; gradients of these networks are not."
)
RANKS = (
    "Ranks are of trained targets, those without a defense among them. A target of low Accuracy, "
    "or of another network or recipe, may leak little for that alone."
)
BIAS = "The maximum of several noisy means is biased upwards."
ROUGH = (
    "Intervals: 95 %, bootstrap over seeds and classes together; none where both ends agree. For "
    "Attack Acc and ranks the worst attack of each target is held fixed; points below it are "
    "counted from the worst attack of each draw, so these intervals lie rather high. They are "
    "rough with few seeds: too wide where single classes are found with one seed and not with "
    "another, too narrow where seeds differ as a whole. With three seeds, of twenty true "
    "differences of 0, up to five of these intervals leave out 0. Student's intervals rest on one "
    "number of each seed, the mean over attacks and classes; one of twenty leaves out 0 then, and "
    f"they are wide. No interval is corrected for the number of comparisons. {BIAS}"
)
NONE = (
    f"No intervals: they need {FEWEST_VALUES} seeds and {FEWEST_IDENTITIES} classes or more. "
    f"{BIAS}"
)


def table_text(m: Matrix) -> str:
    """Returns the cells as CSV; the same bytes for the same records."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def numbers(mean: float, draws: Numbers) -> list[str]:
        if np.isnan(mean):
            return [""] * 3
        low, high = span(draws[:, None])[0]
        ends = (low, high) if m.has_intervals and low < high else ()
        return [f"{x:.4f}" for x in (mean, *ends)] + [""] * (2 - len(ends))

    for a, d in np.ndindex(*m.means.shape):
        own = numbers(float(m.means[a, d]), m.drawn[:, a, d])
        other = m.others.get(m.defenses[d], "")
        less = [""] * 3
        if other in m.defenses:
            o = m.defenses.index(other)
            draws = (m.drawn[:, a, d] - m.drawn[:, a, o]).round(DIGITS) + 0.0
            less = numbers(round(float(m.means[a, d] - m.means[a, o]), DIGITS) + 0.0, draws)
        seeds = "" if np.isnan(m.means[a, d]) else m.values.shape[2]
        names = [m.attacks[a], m.defenses[d], seeds]
        why = m.gaps.get((m.attacks[a], m.defenses[d]), "")
        writer.writerow([*names, *own, other, *less, why])
    return text.getvalue()


@dataclass(frozen=True)
class Conclusions:
    """What targets that met the same attacks are found to leak, as text.

    Attributes:
        title: How many targets met how many attacks.
        attacks: Names of these, if other attacks of the table are not among them.
        tables: Headings and rows: worst cases by rank; differences from twins; and, of several
            attacks, how far each is below the worst.
        not_compared: Of whom the twin, or no defense, has not met these attacks; may be empty.
        fewest: The fewest attacks of which one is near each target's worst attack.
    """

    title: str
    attacks: str
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]]
    not_compared: str
    fewest: str


def conclusions(m: Matrix) -> Iterator[Conclusions]:
    """Yields what the matrix says, of each set of attacks apart."""

    def shown(mean: str, low: float, high: float) -> str:
        # Draws that all agree do not make an interval zero wide, as seeds do not.
        return f"{mean} ({low:.1f} to {high:.1f})" if m.has_intervals and low < high else mean

    def why(name: str) -> str:
        return f" ({m.unlike[name]})" if name in m.unlike else ""

    for part in m.parts():
        every = "all" if len(part.attacks) == len(m.attacks) > 1 else "the"
        lines = zip(part.defenses, part.worst(), part.ranks(), strict=True)
        worst = [
            (name, attack, shown(f"{mean:.1f}", *ends), shown(f"{rank:g}", *places))
            for name, (attack, mean, *ends), (rank, *places) in sorted(
                lines, key=lambda v: v[2][0]
            )
        ]
        differences = [
            (name, other + why(name), shown(f"{x:+.1f}", *ends), *_ends(part, name, other))
            for name, other, x, *ends in part.differences()
        ]
        judges = [
            (attack, shown(f"{mean:.1f}", *ends), *(f"{n:,.0f}" for n in m.spent.get(attack, ())))
            for attack, mean, *ends in part.missed()
        ]
        several = len(judges) > 1
        tables: list[tuple[tuple[str, ...], Sequence[tuple[str, ...]]]] = [
            (WORST, worst),
            ((*LESS, *[STUDENT] * m.has_intervals), differences),
            ((*JUDGES, *[*SPENT] * bool(m.spent)), judges if several else []),
        ]
        unpaired = [f"{name} with {other}" for name, other in part.not_compared()]
        found, share = part.judges()
        draws = f" So it is in {share:.0%} of the draws." if m.has_intervals else ""
        yield Conclusions(
            f"{_count(part.defenses, 'target')} that met {every} {_count(part.attacks, 'attack')}",
            "" if len(part.attacks) == len(m.attacks) else "; ".join(part.attacks),
            [(heads, [*rows]) for heads, rows in tables if rows],
            f"Not compared, for want of the other's numbers: {'; '.join(unpaired).rstrip('.')}."
            if unpaired
            else "",
            f"Fewest attacks of which one is within {WITHIN:g} points of each target's worst "
            f"attack: {len(found)} ({'; '.join(found)}).{draws}"
            if several
            else "",
        )


def _ends(m: Matrix, name: str, other: str) -> list[str]:
    """Returns the ends of Student's interval of a difference, as a cell of its own, if any."""
    if not m.has_intervals:
        return []
    own = m.over_seeds(name, other)
    return ["none" if own.low is None else f"{own.low:.1f} to {own.high:.1f}"]


def _count(names: tuple[str, ...], noun: str) -> str:
    return f"{len(names)} {noun}{'s' * (len(names) > 1)}"


def remarks(m: Matrix) -> list[str]:
    """Returns why cells have no number, and what the others and their intervals are worth."""
    reasons = list(m.gaps.values())
    counts = {why: reasons.count(why) for why in reasons}
    missing: dict[str, list[str]] = {}
    for name, why in m.left_out.items():
        missing.setdefault(why, []).append(name)
    parts = m.parts()
    alone = [d for d in m.defenses if not any(d in part.defenses for part in parts)]
    return [
        *(f"Cells without a number: {n}: {why}." for why, n in counts.items()),
        *(f"{why.capitalize()}: {'; '.join(names)}." for why, names in missing.items()),
        *([f"Met by attacks that met no other target: {'; '.join(alone)}."] if alone else []),
        *m.notes,
        *([RANKS] if parts else []),
        *([BUDGETS] if m.spent and len(m.attacks) > 1 else []),
        ROUGH if m.has_intervals else NONE,
    ]


def sentences(m: Matrix) -> Iterator[str]:
    """Yields the conclusions as lines of Markdown."""
    seeds, classes = m.values.shape[2:]
    met = f"{seeds} seed{'s' * (seeds > 1)}, {classes} classes"
    for part in conclusions(m):
        names = f" ({part.attacks})" if part.attacks else ""
        yield f"**{part.title}**{names}, {met}:"
        yield ""
        for heads, rows in part.tables:
            for cells in (heads, ("---",) * len(heads), *rows):
                yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
            yield ""
        for sentence in filter(None, (part.not_compared, part.fewest)):
            yield sentence
            yield ""
    yield from remarks(m)


@own_style()
def draw(m: Matrix, path: Path) -> None:
    """Draws the means as a heat map, with each defense's worst case below; PNG or PDF."""
    means = np.vstack([m.means, np.nanmax(m.means, 0)])
    figure = new_figure((2.2 + 0.42 * len(m.defenses), 1.9 + 0.27 * len(means)))
    axes = figure.add_subplot(1, 1, 1)
    image = axes.imshow(means, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_facecolor("#dddddd")
    for y, x in np.ndindex(*means.shape):
        number = means[y, x]
        text = "–" if np.isnan(number) else f"{number:.0f}"
        colour = "black" if np.isnan(number) or number > 60 else "white"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.axhline(len(m.attacks) - 0.5, color="white", linewidth=3)
    axes.set_xticks(range(len(m.defenses)), m.defenses, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(means)), [*m.attacks, "worst of these"], fontsize=7)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("Attack Acc, %", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    save(figure, path, fingerprint(["matrix", VERSION, np.nan_to_num(means, nan=-1).tolist()]))


def write(m: Matrix, paths: Iterable[Path]) -> None:
    """Writes the matrix, by each path's suffix as a picture, as CSV or as Markdown."""
    for path in paths:
        if path.suffix == ".csv":
            put(path, table_text(m))
        elif path.suffix == ".md":
            put(path, "\n".join(sentences(m)) + "\n")
        else:
            draw(m, path)
