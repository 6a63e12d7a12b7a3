"""Rows of one table that were computed on different kinds of machines."""

from collections.abc import Iterable, Mapping

from mibench.machine import each, kind
from mibench.reporting.results import together
from mibench.running.grid import Grid
from mibench.running.stages import graph

DECISIVE = ("classifier", "prior", "inversion")
"""Kinds of stages that end elsewhere on another kind of machine; scores hardly do."""


Kinds = Mapping[str, Mapping[int, frozenset[str]]]
"""Label → finished seed → the kinds of machines on which it was computed."""


def kinds(grid: Grid) -> Kinds:
    """Returns the kinds of machines on which the finished seeds of each row were computed."""
    found: dict[str, dict[int, frozenset[str]]] = {}
    for label, done in grid.done.items():
        for seed, record in done.items():
            metas = grid.store.runs(record, (s for s in graph([record]) if s.kind in DECISIVE))
            own = frozenset(kind(place) for meta in metas for place in each(meta))
            found.setdefault(label, {})[seed] = own
    return found


def kinds_note(found: Kinds, labels: Iterable[str]) -> str:
    """Returns which rows were computed on which kinds; empty if all were on one.

    Args:
        found: What :func:`kinds` returned.
        labels: The rows that are shown.
    """
    every = {k: frozenset[str]().union(*found.get(k, {}).values()) for k in labels}
    there = [label for label, own in every.items() if own]
    groups: dict[frozenset[str], list[str]] = {}
    for label in there:
        groups.setdefault(every[label], []).append(label)
    if len(groups) < 2 and all(len(group) < 2 for group in groups):
        return ""
    *some, (most, _) = sorted(groups.items(), key=lambda group: len(group[1]))
    parts = [f"{together(own, there)} on {' and '.join(sorted(group))}" for group, own in some]
    parts.append(f"{'the others' if some else 'all'} on {' and '.join(sorted(most))}")
    return (
        "Not all was computed on one kind of machine; on another kind the same seed gives another "
        f"result, as another seed would. {'; '.join(parts)}."
    )


def apart_note(found: Kinds, pairs: Iterable[tuple[str, str]]) -> str:
    """Returns which rows are compared with one of another kind of machine; empty if none is.

    Args:
        found: What :func:`kinds` returned.
        pairs: Labels of a row and of the one that it is compared with.
    """
    apart = dict.fromkeys(
        label
        for label, other in pairs
        if any(own and own != (found[other].get(s) or own) for s, own in found[label].items())
    )
    if not apart:
        return ""
    return (
        "Computed on another kind of machine than the row that they are compared with, so that "
        "equal seeds have little or nothing in common there: "
        f"{together(list(apart), list(found))}."
    )
