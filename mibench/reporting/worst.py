"""The worst case over attacks: a defense is as good as the attack that hurts it most."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mibench.benchmarks.row import Row
from mibench.evaluation import METRICS

if TYPE_CHECKING:
    from mibench.reporting.export import Entry, Results

BIAS = (
    "The largest of several noisy means is larger than the truth on average, the more so the "
    "more attacks were tried: compare defenses that met the same attacks, and take its interval, "
    "which is that attack's own, as too narrow."
)


@dataclass(frozen=True)
class Worst:
    """The attack that gets most out of a defense.

    Attributes:
        attack: Its part of the row's label; of equals, the first in the table.
        entry: Its score.
        attacks: How many attacks have met the defense; those without a score do not count.
        missing: How many have no score yet.
    """

    attack: str
    entry: "Entry"
    attacks: int
    missing: int


def worst_case(results: "Results", metric: str = "attack_acc") -> dict[str, Worst]:
    """Returns, per defense, the attack with the worst mean of a metric.

    Args:
        results: Its labels are "attack / defense".
        metric: Worst is what is worse for the defender.
    """
    sign = 1 if METRICS[metric].better == "lower" else -1
    met: dict[str, list[tuple[float, str, Entry]]] = {}
    missing: dict[str, int] = {}
    for label, entries in results.entries.items():
        row = Row.of(label)
        attack, defense = row.attack, row.defended
        entry = entries[metric]
        missing.setdefault(defense, 0)
        if entry.mean is None:
            missing[defense] += 1
        else:
            met.setdefault(defense, []).append((sign * entry.mean, attack, entry))
    found = {}
    for defense, tried in met.items():
        _, attack, entry = max(tried, key=lambda t: t[0])
        found[defense] = Worst(attack, entry, len(tried), missing[defense])
    return found


def worst_note(results: "Results") -> list[str]:
    """Returns a footnote with every defense's worst case; none if nothing is there yet."""
    from mibench.reporting.export import show

    found = worst_case(results)
    if not found:
        return []
    each = [
        f"{defense} {show(w.entry, results.seeds)} ({w.attack}; of {w.attacks} attacks"
        + (f", {w.missing} more to come)" if w.missing else ")")
        for defense, w in found.items()
    ]
    return [f"Worst case over attacks, Attack Acc: {'; '.join(each)}. {BIAS}"]
