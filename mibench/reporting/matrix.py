"""All attacks of a table against all its defenses: heat map, worst cases, ranks, best judges."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.defenses import Release
from mibench.evaluation.significance import FEWEST_IDENTITIES, FEWEST_VALUES, RESAMPLES
from mibench.reporting.canvas import new_figure, own_style, save
from mibench.reporting.contrasts import reference, twins
from mibench.reporting.results import by_identity, readable
from mibench.running.grid import Grid
from mibench.spec import fingerprint

VERSION = 3
WITHIN = 5.0
"""How many points of Attack Acc a judge may miss of a defense's worst case."""
DIGITS = 9
"""Decimals of a mean; differences below are of the order in which numbers were added."""
WHOLE = "the attack sees the whole target, and the defense changes answers only"
ABSENT = "not in the table"
MISSING = "not computed, or not at every seed"
COLUMNS = (
    "attack", "defense", "seeds", "attack_acc", "low", "high",
    "compared_with", "higher_by", "higher_low", "higher_high", "why_not",
)  # fmt: skip
WORST = ("defense", "worst attack", "Attack Acc, %", "rank (1: least leaks)")
LESS = ("defense", "compared with", "Attack Acc higher by, mean over these attacks")
JUDGES = ("attack", "points below the worst attack, mean over these defenses")
ROUGH = (
    "Intervals: 95 %, bootstrap over seeds and persons together, the worst attack of each defense "
    "held fixed; each by itself, so of twenty that should hold 0 one misses it by chance. "
    "With few seeds they are rough: too wide where single persons are found with one "
    "seed and not with another, too narrow where seeds differ as a whole. The largest of several "
    "noisy means is more often too high than too low."
)
NONE = (
    f"No intervals: they need {FEWEST_VALUES} seeds and {FEWEST_IDENTITIES} persons or more. The "
    "largest of several noisy means is more often too high than too low."
)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Attack Acc of every attack against every defense, in percent.

    Attributes:
        attacks: Names of those that have a number, in the table's order.
        defenses: Names with weights of those that have a number, in the table's order.
        values: Mean of each identity at each seed; NaN in cells that have no number.
        gaps: (attack, defense) → why a cell of the table has none.
        others: Defense → the one that it is compared with, its undefended twin where there is a
            row of it, else no defense; of those that both have a number.
    """

    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    values: Float[np.ndarray, "attacks defenses seeds identities"]
    gaps: dict[tuple[str, str], str]
    others: dict[str, str] = field(default_factory=dict)

    @property
    def means(self) -> Float[np.ndarray, "attacks defenses"]:
        """Mean over seeds and identities; NaN where there is none."""
        return np.asarray(self.values.mean((2, 3)).round(DIGITS))

    @property
    def has_intervals(self) -> bool:
        """Whether there are seeds and identities enough for intervals."""
        seeds, identities = self.values.shape[2:]
        return bool(seeds >= FEWEST_VALUES and identities >= FEWEST_IDENTITIES)

    @cached_property
    def drawn(self) -> Float[np.ndarray, "resamples attacks defenses"]:
        """The means of 2000 draws of seeds and, beside them, of identities; always the same."""
        rng = np.random.default_rng(0)
        seeds, identities = self.values.shape[2:]
        means = []
        for _ in range(RESAMPLES):
            own = self.values[:, :, rng.integers(seeds, size=seeds)].mean(2)
            means.append(own[:, :, rng.integers(identities, size=identities)].mean(2))
        return np.stack(means).round(DIGITS)

    def parts(self) -> list["Matrix"]:
        """Returns matrices without a gap, in which all defenses have met the same attacks.

        One for each set of attacks that is all that some defense has met, the largest first: these
        attacks, and all defenses that have met them, at least two unless there is only one.
        """
        there = ~np.isnan(self.means)
        met = dict.fromkeys(map(tuple, there.T.tolist()))
        parts = []
        for own in sorted(met, key=sum, reverse=True):
            attacks = np.array(own)
            defenses = there[attacks].all(0)
            if defenses.sum() > 1 or len(self.defenses) == 1:
                parts.append(self._only(attacks, defenses))
        return parts

    def _only(self, attacks: NDArray[np.bool_], defenses: NDArray[np.bool_]) -> "Matrix":
        names = tuple(d for d, kept in zip(self.defenses, defenses, strict=True) if kept)
        return Matrix(
            tuple(a for a, kept in zip(self.attacks, attacks, strict=True) if kept),
            names,
            self.values[attacks][:, defenses],
            {},
            {d: other for d, other in self.others.items() if {d, other} <= set(names)},
        )

    @cached_property
    def winners(self) -> list[int]:
        """Which attack has the largest mean, of each defense; of equals, the first."""
        winners: list[int] = self.means.argmax(0).tolist()
        return winners

    def _winning(
        self, means: Float[np.ndarray, "n attacks defenses"]
    ) -> Float[np.ndarray, "n defenses"]:
        return np.stack([means[:, a, d] for d, a in enumerate(self.winners)], 1)

    def worst(self) -> list[tuple[str, float, float, float]]:
        """Returns of each defense its worst attack, that attack's mean, and its interval."""
        own, spans = self._winning(self.means[None])[0], span(self._winning(self.drawn))
        names = [self.attacks[a] for a in self.winners]
        return [(a, float(x), *s) for a, x, s in zip(names, own, spans, strict=True)]

    def ranks(self) -> list[tuple[float, float, float]]:
        """Returns of each defense its rank by its worst attack, and the interval; 1: least leaks.

        Defenses that leak equally share the mean of their ranks.
        """
        own = ranked(self._winning(self.means[None]))[0]
        spans = span(ranked(self._winning(self.drawn)))
        return [(float(r), *s) for r, s in zip(own, spans, strict=True)]

    def missed(self) -> list[tuple[str, float, float, float]]:
        """Returns of each attack how far it is below worst attacks, and the interval.

        Mean over defenses, in points; the best single judge comes first.
        """
        own, spans = self._below(self.means[None])[0], span(self._below(self.drawn))
        lines = [(a, float(x), *s) for a, x, s in zip(self.attacks, own, spans, strict=True)]
        return sorted(lines, key=lambda line: line[1])

    def _below(
        self, means: Float[np.ndarray, "n attacks defenses"]
    ) -> Float[np.ndarray, "n attacks"]:
        return np.asarray((self._winning(means)[:, None] - means).mean(2))

    def differences(self) -> list[tuple[str, str, float, float, float]]:
        """Returns of each defense with whom it is compared, the difference, and the interval.

        Attack Acc less that of the other, mean over attacks, in points.
        """
        own, spans = self._less(self.means[None])[0], span(self._less(self.drawn))
        pairs = zip(self.others.items(), own, spans, strict=True)
        return [(d, other, float(x), *s) for (d, other), x, s in pairs]

    def _less(
        self, means: Float[np.ndarray, "n attacks defenses"]
    ) -> Float[np.ndarray, "n pairs"]:
        place = {d: i for i, d in enumerate(self.defenses)}
        averages = means.mean(1)
        pairs = [averages[:, place[d]] - averages[:, place[o]] for d, o in self.others.items()]
        return np.stack(pairs, 1) if pairs else np.empty((len(means), 0))

    def judges(self) -> tuple[tuple[str, ...], float]:
        """Returns the fewest attacks of which one is near each defense's worst attack.

        Returns:
            Their names; and in which share of the draws the same attacks are near, too.
        """
        found = fewest(self.means)
        missed = self._winning(self.drawn) - self.drawn[:, list(found)].max(1)
        share = float((missed.round(DIGITS) <= WITHIN).all(1).mean())
        return tuple(self.attacks[a] for a in found), share


def span(draws: Float[np.ndarray, "resamples n"]) -> list[tuple[float, float]]:
    """Returns the 95 % interval of each column, by percentiles."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def ranked(worst: Float[np.ndarray, "n defenses"]) -> Float[np.ndarray, "n defenses"]:
    """Returns ranks within each line, from 1; equal numbers share the mean of their ranks."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(worst, axis=1))


def fewest(
    means: Float[np.ndarray, "attacks defenses"], within: float = WITHIN
) -> tuple[int, ...]:
    """Returns the smallest set of attacks of which one is near each defense's worst attack.

    Of equally small ones, that whose largest miss is smallest.

    Args:
        means: Of all attacks against all defenses.
        within: What "near" is, in points.
    """
    missed = (means.max(0) - means).round(DIGITS)
    near = missed <= within
    for size in range(1, len(means) + 1):
        sets: Int[np.ndarray, "sets size"] = np.array(list(combinations(range(len(means)), size)))
        enough = sets[near[sets].any(1).all(1)]
        if len(enough):
            largest = missed[enough].min(1).max(1)
            return tuple(enough[int(largest.argmin())].tolist())
    raise AssertionError("all attacks together always reach the worst case")


def matrix(grid: Grid) -> Matrix:
    """Returns the matrix of a table, of all seeds of its finished rows.

    A row that lacks some of them has no number.

    Raises:
        ValueError: If no row has all seeds, or rows are of several tasks or numbers of classes.
    """
    done = {label: own for label, own in grid.done.items() if own}
    cells = [grid.table.rows[label] for label in done]
    attacked = {(cell.setting.task, cell.trials.classes) for cell in cells}
    if len(attacked) > 1:
        raise ValueError(
            f"the rows of {grid.table.name} attack different classes: choose some with --rows"
        )
    seeds = sorted({seed for own in done.values() for seed in own})
    full = {label: own for label, own in done.items() if len(own) == len(seeds)}
    if not full:
        raise ValueError(
            f"no row of {grid.table.name} has all {len(seeds)} seeds of the others: ask for fewer "
            "with --seeds"
            if seeds
            else f"no row of {grid.table.name} is finished"
        )
    rows = [Row.of(label) for label in grid.table.rows]
    attacks = tuple(dict.fromkeys(row.attack for row in rows))
    defenses = tuple(dict.fromkeys(row.defended for row in rows))
    ((_, classes),) = attacked
    values: Numbers = np.full((len(attacks), len(defenses), len(seeds), classes), np.nan)
    for label, own in full.items():
        row = Row.of(label)
        for s, seed in enumerate(seeds):
            read = readable(own[seed], grid.store)
            if read is not None and (repeats := read[0]["values"].get("attack_acc")):
                place = attacks.index(row.attack), defenses.index(row.defended), s
                values[place] = by_identity(repeats, classes)
    values[np.isnan(values).any((2, 3))] = np.nan  # a cell has all seeds or none
    gaps = {
        (attack, defense): why_not(grid.table, attack, defense)
        for a, attack in enumerate(attacks)
        for d, defense in enumerate(defenses)
        if np.isnan(values[a, d]).any()
    }
    some = ~np.isnan(values.mean((2, 3)))
    if not some.any():
        raise ValueError(f"the records have no Attack Acc of {grid.table.name}")
    kept = tuple(d for d, kept in zip(defenses, some.any(0), strict=True) if kept)
    return Matrix(
        tuple(a for a, kept in zip(attacks, some.any(1), strict=True) if kept),
        kept,
        values[some.any(1)][:, some.any(0)],
        gaps,
        {d: other for d, other in compared(grid.table).items() if {d, other} <= set(kept)},
    )


def compared(table: Table) -> dict[str, str]:
    """Returns defense → its twin if the table has a row of it, else no defense."""
    own = twins(table)
    others = {label: own.get(label, reference(table, label)) for label in table.rows}
    return {
        Row.of(label).defended: Row.of(other).defended
        for label, other in others.items()
        if other is not None
    }


def why_not(table: Table, attack: str, defense: str) -> str:
    """Returns why a cell has no number."""
    rows = {(Row.of(label).attack, Row.of(label).defended): c for label, c in table.rows.items()}
    if (attack, defense) in rows:
        return MISSING
    attacks = [c.attack for (a, _), c in rows.items() if a == attack]
    defenses = [c.defense for (_, d), c in rows.items() if d == defense]
    if attacks[0].access == "white" and isinstance(defenses[0], Release):
        return WHOLE
    return ABSENT


def table_text(m: Matrix) -> str:
    """Returns the cells as CSV; the same bytes for the same records."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)

    def numbers(mean: float, draws: Numbers) -> list[str]:
        if np.isnan(mean):
            return [""] * 3
        ends = np.quantile(draws, [0.025, 0.975]) if m.has_intervals else ()
        return [f"{x:.4f}" for x in (mean, *ends)] + [""] * (2 - len(ends))

    for a, d in np.ndindex(*m.means.shape):
        own = numbers(float(m.means[a, d]), m.drawn[:, a, d])
        other = m.others.get(m.defenses[d], "")
        less = [""] * 3
        if other:
            o = m.defenses.index(other)
            by = float(m.means[a, d] - m.means[a, o])
            less = numbers(by, m.drawn[:, a, d] - m.drawn[:, a, o])
        names = [m.attacks[a], m.defenses[d], m.values.shape[2]]
        why = m.gaps.get((m.attacks[a], m.defenses[d]), "")
        writer.writerow([*names, *own, other, *less, why])
    return text.getvalue()


@dataclass(frozen=True)
class Conclusions:
    """What defenses that met the same attacks are found to leak, as text.

    Attributes:
        title: How many defenses met how many attacks.
        attacks: Names of these, if other attacks of the table are not among them.
        tables: Headings and rows: worst cases by rank; differences from twins; and, of several
            attacks, how far each is below the worst.
        fewest: The fewest attacks of which one is near each defense's worst attack.
    """

    title: str
    attacks: str
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]]
    fewest: str


def conclusions(m: Matrix) -> Iterator[Conclusions]:
    """Yields what the matrix says, of each set of attacks apart."""

    def shown(mean: str, low: float, high: float) -> str:
        return f"{mean} ({low:.1f} to {high:.1f})" if m.has_intervals else mean

    for part in m.parts():
        every = "all" if len(part.attacks) == len(m.attacks) else "the"
        lines = zip(part.defenses, part.worst(), part.ranks(), strict=True)
        worst = [
            (name, attack, shown(f"{mean:.1f}", *ends), shown(f"{rank:g}", *places))
            for name, (attack, mean, *ends), (rank, *places) in sorted(
                lines, key=lambda v: v[2][0]
            )
        ]
        differences = [
            (name, other, shown(f"{x:+.1f}", *ends))
            for name, other, x, *ends in part.differences()
        ]
        judges = [(attack, shown(f"{mean:.1f}", *ends)) for attack, mean, *ends in part.missed()]
        several = len(judges) > 1
        tables: list[tuple[tuple[str, ...], Sequence[tuple[str, ...]]]] = [
            (WORST, worst), (LESS, differences), (JUDGES, judges if several else []),
        ]  # fmt: skip
        found, share = part.judges()
        draws = f" In {share:.0%} of the draws the same are." if m.has_intervals else ""
        yield Conclusions(
            f"{_count(part.defenses, 'defense')} that met {every} "
            f"{_count(part.attacks, 'attack')}",
            "" if every == "all" else "; ".join(part.attacks),
            [(heads, [*rows]) for heads, rows in tables if rows],
            f"Fewest attacks of which one is within {WITHIN:g} points of each defense's worst "
            f"attack: {len(found)} ({'; '.join(found)}).{draws}"
            if several
            else "",
        )


def _count(names: tuple[str, ...], noun: str) -> str:
    return f"{len(names)} {noun}{'s' * (len(names) > 1)}"


def remarks(m: Matrix) -> list[str]:
    """Returns why cells have no number, and what the intervals are worth."""
    reasons = list(m.gaps.values())
    counts = {why: reasons.count(why) for why in reasons}
    return [
        *(f"Cells without a number: {n}: {why}." for why, n in counts.items()),
        ROUGH if m.has_intervals else NONE,
    ]


def sentences(m: Matrix) -> Iterator[str]:
    """Yields the conclusions as lines of Markdown."""
    seeds, persons = m.values.shape[2:]
    for part in conclusions(m):
        names = f" ({part.attacks})" if part.attacks else ""
        yield f"**{part.title}**{names}, {seeds} seeds, {persons} persons:"
        yield ""
        for heads, rows in part.tables:
            for cells in (heads, ("---",) * len(heads), *rows):
                yield f"| {' | '.join(cells)} |"
            yield ""
        if part.fewest:
            yield part.fewest
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
            path.write_text(table_text(m), encoding="utf-8")
        elif path.suffix == ".md":
            path.write_text("\n".join(sentences(m)) + "\n", encoding="utf-8")
        else:
            draw(m, path)
