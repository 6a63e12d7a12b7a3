"""All attacks of a table against all its defenses: worst cases, ranks, twins, best judges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from mibench.attacks import CONTROLS
from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.defenses import Release
from mibench.evaluation.significance import (
    FEWEST_IDENTITIES,
    FEWEST_VALUES,
    RESAMPLES,
    Interval,
    interval,
)
from mibench.reporting.cautions import cautions, control_table
from mibench.reporting.contrasts import reference, twins
from mibench.reporting.notes import computed_notes, evaluators_note
from mibench.reporting.reading import common_seeds, readable
from mibench.reporting.results import by_identity, collect, together
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, record_stage
from mibench.store import Store

WITHIN = 5.0
"""How many points of Attack Acc a judge may miss of a defense's worst case."""
DIGITS = 9
"""Decimals of a mean; differences below are of the order in which numbers were added."""
WHOLE = "the attack sees the whole target, and the defense changes answers only"
ABSENT = "the table, or what was chosen of it, has no such row"
MISSING = "not computed"
FEWER = "not computed at each of these seeds"
CONTROL = "left out as controls, which are no attacks"

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Attack Acc of every attack against every defense, in percent.

    Attributes:
        attacks: Names of those that have a number, in the table's order.
        defenses: Names with weights of those that have a number, in the table's order.
        values: Mean of each identity at each seed; NaN in cells that have no number.
        gaps: (attack, defense) → why this cell has none.
        others: Defense → the one to compare it with, its undefended twin where the table has a
            row of it, else no defense.
        unlike: Defense → why the other is not its twin, where it is not.
        left_out: Name of an attack or defense that has no number at all → why.
        notes: How rows were judged and computed, and which of them say nothing about leakage.
        spent: Attack → answers of the target and gradients of it for each class, those that its
            prior and students asked for included; mean over its targets and seeds.
    """

    attacks: tuple[str, ...]
    defenses: tuple[str, ...]
    values: Float[np.ndarray, "attacks defenses seeds identities"]
    gaps: dict[tuple[str, str], str]
    others: dict[str, str] = field(default_factory=dict)
    unlike: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spent: dict[str, tuple[float, float]] = field(default_factory=dict)

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
        Defenses in none of these are compared by the attacks that they share with another one.
        """
        there = ~np.isnan(self.means)

        def having(attacks: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return np.asarray(there[attacks].all(0))

        def cells(attacks: NDArray[np.bool_]) -> int:
            return int(attacks.sum() * having(attacks).sum())

        least, every = min(2, len(self.defenses)), range(len(self.defenses))
        met = {own.tobytes(): own for own in there.T}.values()
        sets = [own for own in met if having(own).sum() >= least]
        alone = [d for d in every if not any(having(own)[d] for own in sets)]
        while alone:
            shared = [there[:, d] & there[:, o] for d in alone for o in every if o != d]
            widest = max(shared, key=cells)
            if not cells(widest):
                break
            sets.append(widest)
            alone = [d for d in alone if not having(widest)[d]]
        ordered = sorted(sets, key=lambda own: int(own.sum()), reverse=True)
        return [self._only(own, having(own)) for own in ordered]

    def _only(self, attacks: NDArray[np.bool_], defenses: NDArray[np.bool_]) -> "Matrix":
        return Matrix(
            tuple(a for a, kept in zip(self.attacks, attacks, strict=True) if kept),
            tuple(d for d, kept in zip(self.defenses, defenses, strict=True) if kept),
            self.values[attacks][:, defenses],
            {},
            self.others,
            self.unlike,
            spent=self.spent,
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

        Mean over defenses, in points; the best single judge comes first. Each draw has worst
        attacks of its own.
        """
        own, spans = self._below(self.means[None])[0], span(self._below(self.drawn))
        lines = [(a, float(x), *s) for a, x, s in zip(self.attacks, own, spans, strict=True)]
        return sorted(lines, key=lambda line: line[1])

    def _below(
        self, means: Float[np.ndarray, "n attacks defenses"]
    ) -> Float[np.ndarray, "n attacks"]:
        return np.asarray((means.max(1, keepdims=True) - means).mean(2).round(DIGITS))

    def differences(self) -> list[tuple[str, str, float, float, float]]:
        """Returns of each defense with whom it is compared, the difference, and the interval.

        Attack Acc less that of the other, mean over attacks, in points.
        """
        pairs = [(d, o) for d, o in self.others.items() if {d, o} <= set(self.defenses)]
        own, spans = self._less(pairs, self.means[None])[0], span(self._less(pairs, self.drawn))
        return [(*pair, float(x), *s) for pair, x, s in zip(pairs, own, spans, strict=True)]

    def over_seeds(self, defense: str, other: str) -> Interval:
        """Returns Student's interval of the same difference, from one number of each seed."""
        own, than = (self.values[:, self.defenses.index(d)].mean((0, 2)) for d in (defense, other))
        return interval((own - than).round(DIGITS).tolist())

    def not_compared(self) -> list[tuple[str, str]]:
        """Returns defenses, each with the other that has not met these attacks."""
        own = set(self.defenses)
        return [(d, o) for d, o in self.others.items() if d in own and o not in own]

    def _less(
        self, pairs: list[tuple[str, str]], means: Float[np.ndarray, "n attacks defenses"]
    ) -> Float[np.ndarray, "n pairs"]:
        averages = means.mean(1)
        own, other = ([self.defenses.index(pair[i]) for pair in pairs] for i in (0, 1))
        return np.asarray((averages[:, own] - averages[:, other]).round(DIGITS) + 0.0)

    def judges(self) -> tuple[tuple[str, ...], float]:
        """Returns the fewest attacks of which one is near each defense's worst attack.

        Returns:
            Their names; and in which share of the draws one of them is near the worst attack of
            that draw, of each defense.
        """
        found = fewest(self.means)
        missed = self.drawn.max(1) - self.drawn[:, list(found)].max(1)
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
    """Returns the matrix of a table, of the seeds that its rows have.

    Where rows have different seeds, it takes those that ``common_seeds`` names, and rows that lack
    one of them have no number. Controls are left out.

    Raises:
        ValueError: If no row is finished, rows are of several tasks or numbers of classes, or an
            Attack Acc is the mean over blocks of unequal size.
    """
    grid, controls = _attacking(grid)
    done = {label: own for label, own in grid.done.items() if own}
    cells = [grid.table.rows[label] for label in done]
    attacked = {(cell.setting.task, cell.trials.classes) for cell in cells}
    if len(attacked) > 1:
        raise ValueError(
            f"the rows of {grid.table.name} attack different classes: choose some with --rows"
        )
    if any(cell.unequal_blocks for cell in cells):
        raise ValueError(
            f"Attack Acc in {grid.table.name} is a mean over blocks of unequal size, which counts "
            "some classes more than others: name another protocol, such as --protocol per-pass"
        )
    if not done:
        aside = " that is no control" if controls else ""
        raise ValueError(f"no row of {grid.table.name}{aside} is finished")
    seeds = common_seeds([set(own) for own in done.values()])
    full = {label: own for label, own in done.items() if set(seeds) <= set(own)}
    rows = [Row.of(label) for label in grid.table.rows]
    attacks = tuple(dict.fromkeys(row.attack for row in rows))
    defenses = tuple(dict.fromkeys(row.defended for row in rows))
    ((_, classes),) = attacked
    values: Numbers = np.full((len(attacks), len(defenses), len(seeds), classes), np.nan)
    spent: dict[str, list[tuple[float, float]]] = {}
    for label, own in full.items():
        row = Row.of(label)
        for s, seed in enumerate(seeds):
            read = readable(own[seed], grid.store)
            if read is not None and (repeats := read[0]["values"].get("attack_acc")):
                place = attacks.index(row.attack), defenses.index(row.defended), s
                values[place] = by_identity(repeats, classes)
                count = read[0]["budget"]
                asked = count["queries"] + count["prior_queries"]
                spent.setdefault(row.attack, []).append((asked, count["gradients"]))
    values[np.isnan(values).any((2, 3))] = np.nan  # a cell has all seeds or none
    some = ~np.isnan(values.mean((2, 3)))
    if not some.any():
        raise ValueError(f"the records have no Attack Acc of {grid.table.name}")
    kept_attacks = tuple(a for a, kept in zip(attacks, some.any(1), strict=True) if kept)
    kept = tuple(d for d, kept in zip(defenses, some.any(0), strict=True) if kept)
    partly = {(Row.of(k).attack, Row.of(k).defended) for k in done.keys() - full.keys()}
    gaps = {
        (a, d): FEWER if (a, d) in partly else why_not(grid.table, a, d)
        for a in kept_attacks
        for d in kept
        if not some[attacks.index(a), defenses.index(d)]
    }
    others = {d: o for d, o in compared(grid.table).items() if d in kept}
    numbered = {
        label: [own[seed] for seed in seeds]
        for label, own in full.items()
        if some[attacks.index(Row.of(label).attack), defenses.index(Row.of(label).defended)]
    }
    begun = {name for pair in partly for name in pair}
    return Matrix(
        kept_attacks,
        kept,
        values[some.any(1)][:, some.any(0)],
        gaps,
        {d: other for d, (other, _) in others.items()},
        {d: why for d, (_, why) in others.items() if why},
        {
            name: FEWER if name in begun else MISSING
            for name in attacks + defenses
            if name not in kept_attacks + kept
        }
        | dict.fromkeys(controls, CONTROL),
        tuple(_notes(grid, numbered)),
        {name: tuple((np.mean(own, 0) / classes).tolist()) for name, own in spent.items()},
    )


def _attacking(grid: Grid) -> tuple[Grid, list[str]]:
    """Returns the grid without rows of controls, and the names under which those attack."""
    rows = grid.table.rows
    own = {k: c for k, c in rows.items() if c.attack.name not in CONTROLS}
    if len(own) == len(rows):
        return grid, []
    names = dict.fromkeys(Row.of(label).attack for label in rows if label not in own)
    return replace(grid.only(own), table=replace(grid.table, rows=own, curves={})), list(names)


def _notes(grid: Grid, rows: Mapping[str, Sequence[RecordStage]]) -> Iterator[str]:
    """Yields which rows say nothing about leakage, and how rows were judged and computed."""
    table = replace(grid.table, rows={k: grid.table.rows[k] for k in rows}, curves={})
    results = collect(Grid(table, rows, grid.store, _controls(table, rows, grid.store)))
    reasons: dict[str, list[str]] = {}
    for label, each in cautions(results).items():
        for why in each:
            reasons.setdefault(why, []).append(label)
    for why, labels in reasons.items():
        yield f"{together(labels, list(rows))}: {why}."
    yield from evaluators_note(results)
    for note in computed_notes(results):
        yield note.removeprefix("§ ")  # a mark beside rows, of which a matrix shows none


def _controls(
    table: Table, rows: Mapping[str, Sequence[RecordStage]], store: Store
) -> Grid | None:
    """Returns the controls of rows at their seeds, whether or not the store has them."""
    if "attack_acc" not in table.columns:
        return None
    controls, known = control_table(table), dict[object, Any]()
    stages = {
        label: [
            record_stage(
                replace(cell, seeds=record.cell.seeds),
                controls.columns,
                record.evidence[0].images.digest,
                record.evidence[0].inception,
                known,
            )
            for record in rows[label]
        ]
        for label, cell in controls.rows.items()
    }
    return Grid(controls, stages, store)


def compared(table: Table) -> dict[str, tuple[str, str]]:
    """Returns defense → its twin if the table has a row of it, else no defense, and why that one.

    The reason is empty of a twin.
    """
    pairs: dict[str, tuple[str, str]] = {}
    own = twins(table)
    for label, cell in table.rows.items():
        other = own.get(label, reference(table, label))
        if other is None:
            continue
        bare, twin = table.rows[other], cell.defense.twin()
        why = ""
        if bare.recipe != cell.recipe:
            why = "another recipe"
        elif twin != cell.defense and twin != bare.defense:
            why = "its twin has no row"
        name = Row.of(label).defended
        if label in own or name not in pairs:
            pairs[name] = (Row.of(other).defended, why)
    return pairs


def why_not(table: Table, attack: str, defense: str) -> str:
    """Returns why a cell of the table has no number."""
    rows = {(Row.of(label).attack, Row.of(label).defended): c for label, c in table.rows.items()}
    if (attack, defense) in rows:
        return MISSING
    attacks = [c.attack for (a, _), c in rows.items() if a == attack]
    defenses = [c.defense for (_, d), c in rows.items() if d == defense]
    if attacks[0].access == "white" and isinstance(defenses[0], Release):
        return WHOLE
    return ABSENT
