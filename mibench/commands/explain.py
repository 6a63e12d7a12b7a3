"""The command explain: where one number of a table came from, in words."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click

from mibench.commands.shared import (
    Records,
    RefusedError,
    choose_table,
    filling,
    is_default,
    opened,
    plan,
    planned,
    planned_controls,
    published,
    refusing,
    what,
)

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.evaluation import Metric
    from mibench.evaluation.significance import Interval
    from mibench.reporting.contrasts import Contrast
    from mibench.reporting.results import Entry, Results
    from mibench.store import Store


@click.command()
@what
@published
@click.argument("row")
@click.argument("metric")
def explain(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, published: Path | None, row: str, metric: str,
) -> None:  # fmt: skip
    """Say where the number of METRIC in ROW of TABLE came from; compute nothing.

    METRIC is a metric's name or its column's title, in upper or lower case.
    Without --seeds it rests on as many seeds, from 0 on, as the store has of that row.
    """
    from mibench.reporting.results import collect
    from mibench.running.grid import Grid
    from mibench.spec import nearest

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        if row not in chosen.rows:
            near = nearest(row, chosen.rows)
            known = ", ".join(chosen.rows)
            raise KeyError(f"no row {row!r} in {chosen.name}{near}; rows: {known}")
        metric = _metric(chosen, metric)
        done = opened(store, published)
        if published is None and is_default("seeds"):
            seeds = _count_seeds(chosen, row, done, data)
        records = planned(chosen, seeds, data, done)
        controls = None
        if "attack_acc" in chosen.columns:
            controls = planned_controls(chosen.only([row]), seeds, data, done, quiet=True)
        results = collect(Grid(chosen, records, done, controls))
    lacking = list(_lacking(chosen, row, records, done))
    if not results.found[row]:
        if not lacking:  # it is there, and damaged
            lacking = [(row, seed) for seed in range(seeds)]
        raise RefusedError(f"no record of {row} in {done.root}{_filled(lacking, published)}")
    for line in _told(results, row, metric, records, done):
        click.echo(line)
    if lacking:
        told = ", ".join(f"{label} (seed {seed})" for label, seed in lacking)
        click.echo(f"\nMissing\n  {told}{_filled(lacking, published, 'fill with')}")


def _metric(table: "Table", asked: str) -> str:
    """Returns the metric of a column by its name or title, in upper or lower case."""
    from mibench.evaluation import METRICS

    names = {METRICS[name].title.casefold(): name for name in table.columns}
    names |= {name.casefold(): name for name in table.columns}
    if (found := names.get(asked.strip().casefold())) is None:
        known = ", ".join(table.columns)
        raise KeyError(f"no metric {asked!r} in {table.name}; its metrics: {known}")
    return found


def _count_seeds(table: "Table", row: str, store: "Store", data: Path) -> int:
    """Returns how many seeds of a row, from 0 on, are in the store; 1 if none is."""
    alone = table.only([row])
    seeds = 1
    while store.state(plan(alone, seeds + 1, data)[row][seeds]) == "done":
        seeds += 1
    return seeds


def _lacking(
    table: "Table", row: str, records: Records, store: "Store"
) -> Iterator[tuple[str, int]]:
    """Yields the label and seed of every missing record of the row and what it is tested with."""
    from mibench.reporting.contrasts import reference

    for label in (row, reference(table, row)):
        for seed, record in enumerate(records[label] if label else []):
            if label and store.state(record) != "done":
                yield label, seed


def _filled(
    lacking: Sequence[tuple[str, int]], published: Path | None, how: str = "fill it with"
) -> str:
    """Returns the command that fills what is missing in a store; records are as they are."""
    if published is not None:
        return ""
    labels = dict.fromkeys(label for label, _ in lacking)
    return f"; {how}: {filling(labels, 1 + max(seed for _, seed in lacking))}"


def _told(
    results: "Results", row: str, name: str, records: Records, store: "Store"
) -> Iterator[str]:
    """Yields the explanation line by line."""
    from mibench.evaluation import METRICS
    from mibench.reporting.forms import show_reported
    from mibench.reporting.results import readable

    table, entry = results.table, results.entries[row][name]
    metric = table.rows[row].protocol.metric(name)
    unit = _unit(metric)
    fills = f", which fills the column {METRICS[name].title}" if metric.name != name else ""
    yield f"{metric.title} of {row} in {table.name}{fills}"
    line = (metric.compute.__doc__ or "").split("\n")[0]
    if metric.better:
        yield f"  {line} {metric.better.capitalize()} is better for the defender."
    else:
        yield f"  {line} It is a yardstick: neither way is better for the defender."
    if entry.mean is None:
        yield "  The value of no seed is a finite number."
        there = [r for r in records[row] if store.state(r) == "done"]
        read = [found for r in there if (found := readable(r, store))]
        told = [w for payload, _ in read for w in payload["warnings"]]
        yield from (f"  {w}" for w in dict.fromkeys(told) if w.startswith(f"{metric.title}: "))
        return
    yield f"  {entry.mean:.2f}{unit}, the mean of {_count(len(entry.values), 'seed')}."
    if claimed := table.reported.get(row, {}).get(name):
        yield f"  {table.source} reports {show_reported(claimed)}{unit}."
    else:
        yield "  No paper's number stands beside it."

    yield "\nValues"
    repeats = {}
    for seed, value in entry.values.items():
        payload = store.load(records[row][seed])
        score = payload["scores"][name]
        within = f", spread within the run {score['std']:.2f}{unit}" if score["std"] else ""
        of = {"image": "image", "identity": "identity"}.get(metric.per)
        rests = f", over {_count(score['n'], of)}" if of else ""
        yield f"  seed {seed}: {value:.2f}{unit}{rests}{within}"
        each = [] if metric.per == "target" else _each(payload["values"].get(name, []))
        if len(each) > 1:
            repeats[seed] = each
            yield f"    its {len(each)} attacks: {', '.join(f'{v:.2f}' for v in each)}{unit}"

    yield from _intervals(entry, table.rows[row].trials.classes, metric, repeats)
    yield from _comparisons(results, row, name)
    yield from _worth(results, row)
    yield from _parts(results, row)
    yield from _stages(row, name, metric, records, store)


def _each(values: Sequence[Any]) -> list[float]:
    """Returns the mean of each repeat of the attack."""
    return [fmean(v) if isinstance(v, list) else v for v in values]


def _intervals(
    entry: "Entry", classes: int, metric: "Metric", repeats: Mapping[int, Sequence[float]]
) -> Iterator[str]:
    from mibench.evaluation.significance import FEWEST_IDENTITIES, interval

    yield "\nInterval (95 %)"
    about = ""
    if entry.interval and entry.interval.low is not None:
        about = (
            f"; about targets, priors and attacks of other seeds, the {classes} attacked "
            "classes and the evaluator being these"
        )
    yield f"  {_span(entry.interval, metric)}{about}"
    for seed, each in repeats.items():
        span = interval(each, over="attacks")
        yield f"  seed {seed}, {_span(span, metric)}; about further attacks on this one target"
    if metric.per not in ("image", "identity"):
        yield "  over identities: none, because the metric is not measured on each identity"
    elif classes < FEWEST_IDENTITIES:
        yield (
            f"  over identities: none, because {classes} were attacked, and a bootstrap over "
            f"fewer than {FEWEST_IDENTITIES} covers the truth too rarely"
        )
    else:
        about = "; about other identities, the trained targets and the evaluator being these"
        yield f"  {_span(entry.identities, metric)}{about}"


def _span(span: "Interval | None", metric: "Metric") -> str:

    if span is None:
        return "none: a value is not a finite number"
    shown = span.clipped(*metric.range)
    if span.half is None or shown.low is None or shown.high is None:
        return span.method
    unit = _unit(metric)
    cut = " (cut off at what the metric can be)" * (shown != span)
    return (
        f"{span.method}: ± {span.half:.2f}{unit}, {shown.low:.2f} to {shown.high:.2f}{unit}{cut}"
    )


def _comparisons(results: "Results", row: str, name: str) -> Iterator[str]:
    from mibench.defenses import NoDefense
    from mibench.evaluation import METRICS

    metric = METRICS[name]
    yield "\nCompared by paired t tests at the same seeds, with Holm's correction"
    contrast = results.entries[row][name].contrast
    if not metric.better:
        yield "  none: a yardstick is not tested"
    elif contrast:
        yield f"  with {contrast.other}: {_verdict(contrast, metric)}"
    elif isinstance(results.table.rows[row].defense, NoDefense):
        yield "  this is the row without a defense"
    else:
        yield "  with no defense: no such row to compare it with"
    for other in results.contrasts(name):
        if row in (other.row, other.other):
            yield f"  {other.row} with {other.other}: {_verdict(other, metric)}"


def _verdict(contrast: "Contrast", metric: "Metric") -> str:
    from mibench.evaluation.significance import FEWEST_VALUES, LEVEL, MOST_SEEDS

    span = contrast.test.interval
    unit = " points" if metric.unit == "percent" else ""
    text = f"{contrast.test.diff:+.2f}{unit} over {_count(len(contrast.seeds), 'seed')}"
    if contrast.p is None:
        return f"{text}; no test: {span.method.removeprefix('none: ')}"
    if span.low is not None:
        text += f" ({span.low:+.2f} to {span.high:+.2f})"
    text += f", p = {contrast.test.p:.3g}"
    text += f", corrected for {_count(contrast.tests, 'test')} p = {contrast.p:.3g}: "
    if contrast.significant:
        return f"{text}told apart at {100 * LEVEL:g} %"
    if len(contrast.seeds) < FEWEST_VALUES:
        return f"{text}not told apart at {100 * LEVEL:g} %"
    more = f"more than {MOST_SEEDS}" if contrast.more is None else f"about {contrast.more}"
    return f"{text}not told apart at {100 * LEVEL:g} %; it takes {more} more seeds"


def _worth(results: "Results", row: str) -> Iterator[str]:
    """Yields what the row's Attack Acc says about leakage, if its table shows any."""
    from mibench.evaluation.significance import FEWEST_VALUES, LEVEL
    from mibench.reporting.cautions import CONTROL_TITLE, cautions, is_above

    reasons = cautions(results).get(row, [])
    control = results.controls.get(row)
    if not reasons and control is None:
        return
    yield "\nWhat Attack Acc says about leakage"
    for reason in reasons:
        yield f"  {reason[0].upper()}{reason[1:]}."
    if control and control.mean is None:
        command = f"{filling([row], results.seeds)} --controls"
        yield f"  {CONTROL_TITLE}: not computed; compute it with: {command}"
    elif control:
        yield f"  {CONTROL_TITLE}: {control.mean:.2f} %, without an attack on the same target"
    if control and (contrast := control.contrast):
        test = contrast.test
        over = "seeds" if len(contrast.seeds) >= FEWEST_VALUES else "classes"
        told = f"no test: {test.interval.method.removeprefix('none: ')}"
        if test.p is not None:
            above = "" if is_above(contrast) else "not "
            told = f"p = {test.p:.3g}: {above}significantly above at {100 * LEVEL:g} %"
        yield f"  the attack's less that: {test.diff:+.2f} points, paired over {over}, {told}"


def _parts(results: "Results", row: str) -> Iterator[str]:
    from mibench.spec import brief

    cell = results.table.rows[row]
    evaluator = cell.setting.evaluators[0]
    yield "\nMade of (fields that are not at their default)"
    parts = {
        "task": (cell.setting.task,),
        "target": (cell.setting.network, cell.recipe),
        "defense": (cell.defense,),
        "prior": (cell.attack.prior,),
        "attack": (cell.attack,),
        "trials": (cell.trials,),
        "evaluator": (evaluator.network, evaluator.recipe),
        "protocol": (cell.protocol,),
    }
    for part, specs in parts.items():
        yield f"  {part:10s} {', '.join(map(brief, specs))}"
    for accuracy, rows in results.evaluators.items():
        if row in rows:
            yield f"  The evaluator is right about {accuracy:.2f} % of its test images."


def _stages(
    row: str, name: str, metric: "Metric", records: Records, store: "Store"
) -> Iterator[str]:
    from mibench.machine import in_words
    from mibench.running.stages import graph

    seeds: dict[str, list[int]] = {}
    stages = {}
    for seed, record in enumerate(records[row]):
        for stage in graph([record]):
            stages[stage.key] = stage
            seeds.setdefault(stage.key, []).append(seed)
    yield "\nStages"
    made: dict[str, None] = {}
    for key, stage in stages.items():
        used = ", ".join(map(str, seeds[key]))
        state = store.state(stage)
        yield (
            f"  {stage.kind}/{key}  {stage.describe()}, version {stage.version}, "
            f"{'seed' if len(seeds[key]) == 1 else 'seeds'} {used}: {state}"
        )
        if state in ("done", "recorded"):
            made[in_words(store.meta(stage))] = None
    scored = {dict(r.metrics)[name] for r in records[row] if store.state(r) == "done"}
    now = "" if scored == {metric.version} else f" (this mibench has version {metric.version})"
    versions = ", ".join(map(str, sorted(scored)))
    yield f"  Metric {metric.name}, version {versions}{now}; {'; '.join(made)}"


def _unit(metric: "Metric") -> str:
    return " %" if metric.unit == "percent" else ""


def _count(n: int, what: str | None) -> str:
    plural = {"identity": "identities"}.get(what or "", f"{what}s")
    return f"{n} {what if n == 1 else plural}"
