"""Rows of one table that were computed on different kinds of machines."""

from collections.abc import Iterable, Mapping

from mibench.machine import each, kind
from mibench.reporting.results import together
from mibench.running.grid import Grid
from mibench.running.stages import graph

DECISIVE = ("classifier", "prior", "inversion")
"""Kinds of stages that end elsewhere on another kind of machine; scores hardly do."""


def kinds(grid: Grid) -> dict[str, frozenset[str]]:
    """Returns label → the kinds of machines on which its finished seeds were computed."""
    found: dict[str, frozenset[str]] = {}
    for label, done in grid.done.items():
        for record in done.values():
            metas = grid.store.runs(record, (s for s in graph([record]) if s.kind in DECISIVE))
            found[label] = found.get(label, frozenset()) | {
                kind(place) for meta in metas for place in each(meta)
            }
    return found


def kinds_note(found: Mapping[str, frozenset[str]], labels: Iterable[str]) -> str:
    """Returns which rows were computed on which kinds; empty if all were on one.

    Args:
        found: What :func:`kinds` returned.
        labels: The rows that are shown.
    """
    there = [label for label in labels if found.get(label)]
    groups: dict[frozenset[str], list[str]] = {}
    for label in there:
        groups.setdefault(found[label], []).append(label)
    if len(groups) < 2 and all(len(group) < 2 for group in groups):
        return ""
    *some, (most, _) = sorted(groups.items(), key=lambda group: len(group[1]))
    parts = [f"{together(own, there)} on {' and '.join(sorted(group))}" for group, own in some]
    parts.append(f"{'the others' if some else 'all'} on {' and '.join(sorted(most))}")
    return (
        "Not all was computed on one kind of machine; on another kind the same seed gives another "
        f"result, as another seed would. {'; '.join(parts)}."
    )
