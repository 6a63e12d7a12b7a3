"""Which rows of a table differ: paired tests of defenses, corrected together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

from mibench.benchmarks.cell import Cell
from mibench.benchmarks.tables.base import Table
from mibench.evaluation import METRICS
from mibench.evaluation.significance import (
    FEWEST_VALUES,
    LEVEL,
    Test,
    holm,
    paired,
    seeds_needed,
    smallest_difference,
)

Values = Mapping[str, Mapping[int, float]]
"""Label → seed → a metric's value."""
Both = dict[int, tuple[float, float]]
"""Seed → the values of two rows that are compared."""


@dataclass(frozen=True)
class Contrast:
    """One row compared with another by one metric.

    Attributes:
        row: Its label.
        other: The label of the row it is compared with.
        seeds: The seeds that both have. Of a metric of the target it is all at which the two
            targets are there, whatever the attack.
        test: Of the row minus the other, at those seeds.
        p: After Holm's correction; None where there is no test.
        tests: How many tests were corrected together.
        more: Estimated number of further seeds until the difference is significant: None if more
            than 100, if there is no estimate, as with fewer than three seeds, or if it is
            significant.
        smallest: Estimate of the smallest true difference that as many seeds find with 80 %
            power, without correction; None without a test, or with fewer than three seeds.
    """

    row: str
    other: str
    seeds: tuple[int, ...]
    test: Test
    p: float | None
    tests: int
    more: int | None
    smallest: float | None = None

    @property
    def significant(self) -> bool:
        """Whether the rows differ at the level of 5 %, after correction."""
        return self.p is not None and self.p <= LEVEL


def reference(table: Table, label: str) -> str | None:
    """Returns the row without a defense, same setting, attack, trials and protocol.

    Of several the one with the same recipe, else the first; None for a row that itself has
    no defense.
    """
    return _reference(table.rows[label], _bare(table))


def _bare(table: Table) -> dict[object, str]:
    """Returns the first row without a defense under conditions, and under them and a recipe."""
    first: dict[object, str] = {}
    for label, cell in table.rows.items():
        if cell.defense.undefended:
            first.setdefault(_conditions(cell), label)
            first.setdefault((_conditions(cell), cell.recipe), label)
    return first


def _reference(cell: Cell, bare: Mapping[object, str]) -> str | None:
    if cell.defense.undefended or not bare:
        return None
    conditions = _conditions(cell)
    return bare.get((conditions, cell.recipe), bare.get(conditions))


def with_none(table: Table, metric: str, values: Values) -> dict[str, Contrast]:
    """Returns label → its comparison with no defense; all of them are corrected together."""
    bare = _bare(table)
    pairs = [(k, other) for k, c in table.rows.items() if (other := _reference(c, bare))]
    return {c.row: c for c in _compare(table, metric, values, pairs)}


def twins(table: Table) -> dict[str, str]:
    """Returns label → the row of the defense's undefended twin, same recipe and all else.

    Among rows of the twin that differ in what changes nothing in it, the equal one comes first.
    Rows whose twin is no defense at all are left out: they are compared with no defense anyway.
    """
    alike, rows = (
        {(_conditions(c), c.recipe, form(c.defense)): label for label, c in table.rows.items()}
        for form in (_without_idle, lambda defense: defense)
    )
    others: dict[str, str] = {}
    for label, cell in table.rows.items():
        where, twin = (_conditions(cell), cell.recipe), cell.defense.twin()
        other = rows.get((*where, twin)) or alike.get((*where, _without_idle(twin)))
        if other not in (None, label) and not twin.undefended:
            others[label] = other
    return others


def _without_idle(defense: Any) -> Any:  # noqa: ANN401 - a dataclass, which its base is not
    """Returns a defense with the defaults of fields that change nothing in its twin."""
    defaults = {f.name: f.default for f in fields(defense) if f.name in defense.idle}
    return replace(defense, **defaults) if defaults else defense


def with_twin(table: Table, metric: str, values: Values) -> dict[str, Contrast]:
    """Returns label → its comparison with its twin; all of them are corrected together."""
    return {c.row: c for c in _compare(table, metric, values, twins(table).items())}


def between(table: Table, metric: str, values: Values) -> list[Contrast]:
    """Returns all comparisons of two defenses under one attack, corrected together."""
    defended = {k: c for k, c in table.rows.items() if not c.defense.undefended}
    pairs = [
        (a, b)
        for a, b in combinations(defended, 2)
        if _conditions(defended[a]) == _conditions(defended[b])
    ]
    return _compare(table, metric, values, pairs)


def _conditions(cell: Cell) -> tuple[object, ...]:
    return cell.setting, cell.attack, cell.trials, cell.protocol


def _compare(
    table: Table, metric: str, values: Values, pairs: Iterable[tuple[str, str]]
) -> list[Contrast]:
    if not METRICS[metric].better:
        return []  # a yardstick: no value of it is better for the defender
    compared: dict[tuple[str, str], Both] = {}
    for a, b in pairs:
        seeds = sorted(values[a].keys() & values[b].keys())
        if seeds:
            compared[a, b] = {seed: (values[a][seed], values[b][seed]) for seed in seeds}
    of_target = METRICS[metric].per == "target"
    asked = _widest(table, compared) if of_target else {pair: pair for pair in compared}
    tested: dict[tuple[str, str], Test] = {}
    for pair in dict.fromkeys(asked.values()):
        own, other = zip(*compared[pair].values(), strict=True)
        tested[pair] = paired(own, other)
    corrected = dict(zip(tested, holm([test.p for test in tested.values()]), strict=True))
    tests = sum(p is not None for p in corrected.values())
    contrasts = []
    for (a, b), pair in asked.items():
        both, p = compared[pair], corrected[pair]
        more = smallest = None
        if p is not None and len(both) >= FEWEST_VALUES:
            diffs = [x - y for x, y in both.values()]
            smallest = smallest_difference(diffs)
            more = seeds_needed(diffs, LEVEL / tests) if p > LEVEL else None
        contrasts.append(Contrast(a, b, tuple(both), tested[pair], p, tests, more, smallest))
    return contrasts


def _widest(
    table: Table, compared: Mapping[tuple[str, str], Both]
) -> dict[tuple[str, str], tuple[str, str]]:
    """Returns pair of rows → the pair of the same two targets that has most seeds.

    One target meets every attack: its accuracy is tested once, not once per attack. On another
    kind of machine the same target is trained to other values, and is another one.
    """
    widest: dict[tuple[str, str], tuple[str, str]] = {}
    tested: dict[object, list[tuple[str, str]]] = {}
    for pair in sorted(compared, key=lambda pair: len(compared[pair]), reverse=True):
        cells = (table.rows[label] for label in pair)
        own = tested.setdefault(tuple((c.setting, c.recipe, c.defense) for c in cells), [])
        equal = (p for p in own if compared[pair].items() <= compared[p].items())
        widest[pair] = next(equal, pair)
        if widest[pair] == pair:
            own.append(pair)
    return {pair: widest[pair] for pair in compared}
