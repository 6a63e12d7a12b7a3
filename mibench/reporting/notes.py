"""Footnotes: what a reader must know beside a table's numbers."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.evaluation import METRICS
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.significance import FEWEST_VALUES, LEVEL, interval
from mibench.reporting.cautions import CONTROL_TITLE, cautions
from mibench.reporting.contrasts import Contrast
from mibench.reporting.kinds import apart_note, kinds, kinds_note
from mibench.reporting.reading import common_seeds
from mibench.reporting.results import Entry, Results, show, together

BIAS = (
    "The largest of several noisy means is larger than the truth on average, the more so the "
    "more attacks were tried: compare defenses that met the same attacks, and take its interval, "
    "which is that attack's own, as too narrow."
)


ARROWS = "Arrows point to what is better for the defender."


def footnotes(results: Results, bold: str = "*", *, short: bool = False) -> list[str]:
    """Returns what a reader must know beside the numbers.

    Args:
        results: The table.
        bold: How a number is marked that is better for the defender than without a defense.
        short: Only what the numbers, arrows and marks mean.
    """
    seeds = results.seeds
    if seeds > 1:
        found = max(results.found.values())
        what = "± half the width of its 95 % confidence interval (Student's t)."
        if found < FEWEST_VALUES:
            what = f"with the value of each: an interval takes {FEWEST_VALUES} seeds."
        notes = [f"Mean over {found} seeds {what}" if found > 1 else "One seed so far."]
        notes += significance_notes(results, bold, short=short)
    else:
        notes = [spread_note(results.table)]
    arrows = ARROWS + " A column without one is a yardstick, which is not tested." * any(
        not METRICS[name].better for name in results.table.columns
    )
    if short:
        extra = [*caution_notes(results), *computed_notes(results), *undefined_note(results)]
        extra += fewer_note(results)
        return [*notes, arrows, *extra]
    if results.evaluator is not None:
        notes.append(f"Evaluation classifier: {results.evaluator:.2f} % test accuracy.")
    notes += evaluators_note(results)
    if results.classes is not None:
        chances = {"attack_acc": ("Attack Acc", 1), "attack_acc5": ("Acc5", 5)}
        protocols = [cell.protocol for cell in results.table.rows.values()]
        guesses = ", ".join(
            f"{min(100, 100 * tries / results.classes):.3g} % in {title}"
            for name, (title, tries) in chances.items()
            if all(p.metric(name).name == name for p in protocols)
        )
        scores = f": a blind guess scores {guesses}" if guesses else ""
        notes.append(f"It knows {results.classes} classes{scores}. {arrows}")
    notes += twin_notes(results)
    notes += caution_notes(results)
    notes += computed_notes(results)
    notes += fid_note(results)
    notes += stand_in_notes(results.table)
    if "fid_identity" in results.table.columns:
        notes.append(
            "FID per identity compares few images in many dimensions: most of it is bias. "
            "fid_identity_floor is that between two halves of an identity's real images, which "
            "are fewer still."
        )
    notes += undefined_note(results)
    notes += results.warnings
    if results.table.worst:
        notes += worst_note(results)
    notes += fewer_note(results)
    notes += [f"Missing in {label}: {why}." for label, why in results.holes.items()]
    return [*notes, *results.remarks, *results.table.notes]


def evaluators_note(results: Results) -> list[str]:
    """Returns which rows other evaluation classifiers judged; none if all had the same one."""
    if len(results.evaluators) < 2:
        return []
    there = [label for label, n in results.found.items() if n]
    each = "; ".join(
        f"{accuracy:.2f} % for {together(labels, there)}"
        for accuracy, labels in results.evaluators.items()
    )
    return [f"Evaluation classifiers differ; their test accuracy: {each}."]


def undefined_note(results: Results) -> list[str]:
    """Returns what stands behind numbers of metrics that are undefined at some seeds."""
    partly = {
        METRICS[name].title: f"{name}_seeds"
        for entries in results.entries.values()
        for name, entry in entries.items()
        if entry.undefined
    }
    if not partly:
        return []
    return [
        f"(n/N) in {', '.join(partly)}: at n of the row's N seeds there is a value, and mean, "
        "interval and test are over these alone. They are no fair sample: the others may be those "
        f"at which the attack found least. In CSV and JSON n is {', '.join(partly.values())}."
    ]


def fewer_note(results: Results) -> list[str]:
    """Returns which rows have fewer seeds than were asked for."""
    found = results.found
    few = 2 in found.values() and max(found.values()) >= FEWEST_VALUES
    aside = f" With the value of each of two: an interval takes {FEWEST_VALUES} seeds." * few
    return [note + aside for note in fewer_seeds(found, results.seeds)]


def fewer_seeds(found: Mapping[str, int], seeds: int) -> list[str]:
    """Returns a note on the rows with fewer seeds than were asked for, if there are any.

    Args:
        found: Label → how many seeds are there; rows of none are not named.
        seeds: How many were asked for.
    """
    incomplete = [f"{label} ({n})" for label, n in found.items() if 0 < n < seeds]
    return [f"Fewer seeds so far: {', '.join(incomplete)}."] if incomplete else []


def caution_notes(results: Results) -> list[str]:
    """Returns which rows say nothing about leakage, why, and what controls are."""
    there = [label for label, n in results.found.items() if n]
    reasons: dict[str, list[str]] = {}
    for label, each in cautions(results).items():
        for why in each:
            reasons.setdefault(why, []).append(label)
    notes = [f"‡ {together(labels, there)}: {why}." for why, labels in reasons.items()]
    if results.controls:
        notes.append(
            f"{CONTROL_TITLE}: as many images drawn from the same prior, not optimised, for the "
            "same targets. Attack Acc is compared with it by a one-sided paired t test over the "
            f"attacked classes at {100 * LEVEL:g} %, not corrected."
        )
    if lacking := [k for k, entry in results.controls.items() if entry.mean is None]:
        notes.append(f"{CONTROL_TITLE} is not computed for {together(lacking, there)}.")
    return notes


def computed_notes(results: Results) -> list[str]:
    """Returns which rows were computed in bf16, wholly or in part, and on other machines."""
    there = [label for label, n in results.found.items() if n]
    narrow = [label for label in there if results.precisions.get(label) == frozenset({"bf16"})]
    notes = [f"Networks computed in bf16: {together(narrow, there)}."] * bool(narrow)
    if results.mixed:
        notes.append(
            f"§ {together(results.mixed, there)}: some of the stages were computed in float32 and "
            "some in bf16."
        )
    if results.grid is not None:
        found = kinds(results.grid)
        pairs = [
            (label, c.other)
            for label, entries in results.entries.items()
            for entry in entries.values()
            for c in (entry.contrast, entry.twin)
            if c
        ]
        notes += [text for text in (kinds_note(found, there), apart_note(found, pairs)) if text]
    return notes


def significance_notes(results: Results, bold: str, *, short: bool = False) -> list[str]:
    """Returns what was tested, what more seeds would show, and where there is no interval.

    ``short`` returns the first alone.
    """
    tested = {
        name: {
            label: entries[name].contrast
            for label, entries in results.entries.items()
            if entries[name].contrast
        }
        for name in results.table.columns
    }
    notes = []
    others = dict.fromkeys(
        Row.of(c.other).defended for row in tested.values() for c in row.values() if c
    )
    against = " or ".join(others)
    if others:
        notes.append(
            f"{bold} better, † worse for the defender than {against} of the same attack, by "
            f"paired t tests at the same seeds, at {100 * LEVEL:g} %, with Holm's correction "
            f"over the rows of a column that are shown. What is not marked is not significantly "
            f"different."
        )
    if short:
        return notes
    notes += _power_note(tested, against)
    for why, lacking in (
        ("Seeds agree, which leaves no interval", _agreeing(results)),
        ("Differences agree, which leaves no test", _untested(tested)),
    ):
        if lacking:
            notes.append(f"{why}: {', '.join(dict.fromkeys(lacking))}.")
    return notes


def _power_note(tested: Mapping[str, Mapping[str, Contrast | None]], against: str) -> list[str]:
    """Returns the smallest differences that the seeds find, by column and attack."""
    found: dict[str, dict[str, list[float]]] = {}
    counts: set[int] = set()
    for name, contrasts in tested.items():
        for label, c in contrasts.items():
            if c and c.smallest is not None:
                attack = "" if METRICS[name].per == "target" else Row.of(label).attack
                found.setdefault(METRICS[name].title, {}).setdefault(attack, []).append(c.smallest)
                counts.add(len(c.seeds))
    if not found:
        return []
    each = "; ".join(
        f"{title} " + ", ".join(f"{a} {statistics.median(v):.3g}".strip() for a, v in by.items())
        for title, by in found.items()
    )
    numbers = " to ".join(map(str, sorted({min(counts), max(counts)})))
    return [
        f"With {numbers} seeds a true difference from {against} of this size is found "
        "four times in five, before correction (median over defenses, estimated from the spread "
        f"seen here): {each}."
    ]


def twin_notes(results: Results) -> list[str]:
    """Returns the difference of each row from its defense's twin, a line for each column."""
    notes = []
    for name in results.table.columns:
        said = {
            label: f"{c.test.diff:+.2f}" + (f" (p = {c.p:.2g})" if c.p is not None else "")
            for label, entries in results.entries.items()
            if (entry := entries.get(name)) and (c := entry.twin)
        }
        whose = _whose(name, said)
        shown = dict.fromkeys(f"{whose[label]} {text}" for label, text in said.items())
        if shown:
            notes.append(f"{METRICS[name].title} less that of the twin: {', '.join(shown)}.")
    if notes:
        notes[0] = (
            "A twin has the same recipe and the same change of the network, but no defense; p is "
            f"after Holm's correction over the rows that have one. {notes[0]}"
        )
    return notes


def _agreeing(results: Results) -> list[str]:
    lacking = []
    for name in results.table.columns:
        agree = {
            label: entries[name].half is None
            for label, entries in results.entries.items()
            if len(entries[name].values) >= FEWEST_VALUES
        }
        lacking += _those(name, agree)
    return lacking


def _untested(tested: Mapping[str, Mapping[str, Contrast | None]]) -> list[str]:
    lacking = []
    for name, row in tested.items():
        agree = {label: c.p is None for label, c in row.items() if c and len(c.seeds) > 1}
        lacking += _those(name, agree)
    return lacking


def _those(name: str, agree: Mapping[str, bool]) -> list[str]:
    whose = _whose(name, agree)
    return [f"{METRICS[name].title} of {whose[label]}" for label in agree if agree[label]]


def _whose(name: str, said: Mapping[str, object]) -> dict[str, str]:
    """Returns label → itself, or its defense alone where the attack has no say.

    Args:
        name: The metric's.
        said: Label → what is said of it. The attack has a say where rows of a defense differ in
            it: their targets may be of different kinds of machines.
    """
    if METRICS[name].per != "target":
        return {label: label for label in said}
    of = {label: Row.of(label).defended for label in said}
    different: dict[str, set[object]] = {}
    for label, what in said.items():
        different.setdefault(of[label], set()).add(what)
    return {label: of[label] if len(different[of[label]]) == 1 else label for label in said}


def spread_note(table: Table) -> str:
    """Returns over what the deviations of one run are taken."""
    spreads = {cell.protocol.spread for cell in table.rows.values()}
    usual = "identities" if spreads == {"identity"} else "passes"
    over = {"attack": "repeats of the attack", "identity": "identities"}
    others = [
        f"{metric.title}: over {over[metric.per]}"
        for metric in (METRICS[name] for name in table.columns)
        if over.get(metric.per, usual) != usual
    ]
    aside = f" ({'; '.join(others)})" if others else ""
    return (
        f"± is the standard deviation over {usual} of one run{aside}. One seed carries no "
        "interval: another training may come out otherwise, so ask for several seeds."
    )


def stand_in_notes(table: Table) -> list[str]:
    """Returns what a column is where the protocol puts another metric into it."""
    notes: dict[str, None] = {}
    for cell in table.rows.values():
        for column in table.columns:
            metric = cell.protocol.metric(column)
            if metric.name != column:
                what = (metric.compute.__doc__ or "").split("\n")[0]
                notes[f"{METRICS[column].title} here is {metric.name}: {what}"] = None
    return list(notes)


def fid_note(results: Results) -> list[str]:
    """Returns how many images FID rests on: with few, most of it is bias."""
    if "fid" not in results.table.columns or not results.sizes:
        return []
    groups: dict[tuple[int, int, int], list[str]] = {}
    for label, size in results.sizes.items():
        needs = results.table.rows[label].protocol.metric("fid").needs
        if results.entries[label]["fid"].mean is None or INCEPTION in needs:
            continue  # there is none, or it is of other features
        groups.setdefault(size, []).append(Row.of(label).attack)
    parts = [
        f"{n} reconstructions and {real} private images in {d} dimensions"
        + (f" ({', '.join(dict.fromkeys(attacks))})" if len(groups) > 1 else "")
        for (n, real, d), attacks in groups.items()
    ]
    warning = "; compare it between equal numbers only" if len(groups) > 1 else ""
    return parts and [f"FID rests on {'; '.join(parts)}{warning}."]


@dataclass(frozen=True)
class Worst:
    """The attack that gets most out of a defense.

    Attributes:
        attack: Its part of the row's label; of equals, the first in the table.
        entry: Its score.
        attacks: How many attacks have met the defense; those without a score, or without one of
            the seeds that are compared, do not count.
        missing: How many have no score yet.
    """

    attack: str
    entry: Entry
    attacks: int
    missing: int


def worst_case(results: Results, metric: str = "attack_acc") -> dict[str, Worst]:
    """Returns, per defense, the attack with the worst mean of a metric, at the same seeds.

    A mean of fewer seeds is further from the truth, and so more often the largest.

    Args:
        results: Its labels are "attack / defense".
        metric: Worst is what is worse for the defender.
    """
    sign = 1 if METRICS[metric].better == "lower" else -1
    seeds, lacking = _compared(results, metric)
    met: dict[str, list[tuple[float, str, Entry]]] = {}
    missing: dict[str, int] = {}
    for label, entries in results.entries.items():
        row = Row.of(label)
        attack, defense = row.attack, row.defended
        entry = entries[metric]
        missing.setdefault(defense, 0)
        if not entry.values:
            missing[defense] += 1
        elif label not in lacking:
            values = {seed: entry.values[seed] for seed in seeds}
            over = interval(list(values.values()))
            if values != entry.values:
                entry = replace(entry, mean=over.mean, interval=over, values=values)
            met.setdefault(defense, []).append((sign * over.mean, attack, entry))
    worst = {}
    for defense, tried in met.items():
        _, attack, entry = max(tried, key=lambda t: t[0])
        worst[defense] = Worst(attack, entry, len(tried), missing[defense])
    return worst


def worst_note(results: Results) -> list[str]:
    """Returns a footnote with every defense's worst case; none if nothing is there yet."""
    worst = worst_case(results)
    if not worst:
        return []
    each = [
        f"{defense} {show(w.entry, results.seeds)} ({w.attack}; of {w.attacks} attacks"
        + (f", {w.missing} more to come)" if w.missing else ")")
        for defense, w in worst.items()
    ]
    seeds, lacking = _compared(results, "attack_acc")
    there = {
        k: e["attack_acc"].values for k, e in results.entries.items() if e["attack_acc"].values
    }
    at = ""
    if any(set(own) != set(seeds) for own in there.values()):
        at = f" at seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    aside = f" Left out, without these seeds: {together(lacking, list(there))}." * bool(lacking)
    return [f"Worst case over attacks, Attack Acc{at}: {'; '.join(each)}.{aside} {BIAS}"]


def _compared(results: Results, metric: str) -> tuple[list[int], list[str]]:
    """Returns the seeds at which attacks are compared, and the rows that lack one of them."""
    own = {k: set(e[metric].values) for k, e in results.entries.items() if e[metric].values}
    seeds = common_seeds(list(own.values())) if own else []
    return seeds, [label for label, there in own.items() if not there.issuperset(seeds)]
