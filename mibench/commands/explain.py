"""The command explain: where one number of a table came from, in words."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.selection import Selection, of_table
from mibench.commands.shared import RefusedError, refusing

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.evaluation import Metric
    from mibench.evaluation.significance import Interval
    from mibench.reporting.contrasts import Contrast
    from mibench.reporting.export import Entry, Results
    from mibench.running.grid import Grid


@click.command()
@of_table
@options.records
@click.argument("row")
@click.argument("metric")
def explain(selection: Selection, row: str, metric: str) -> None:
    """Learn where a number of a table came from and how far to trust it.

    The number is that of METRIC in ROW of TABLE; nothing is computed. METRIC is a metric's name or
    its column's title, in upper or lower case. Without --seeds the number is of as many seeds,
    from 0 on, as the store has of that row.

    Example: mibench explain smoke 'GMI / MID' attack_acc
    """
    from mibench.reporting.contrasts import reference
    from mibench.reporting.export import collect
    from mibench.spec import nearest

    with refusing():
        table = selection.table
        if row not in table.rows:
            near = nearest(row, table.rows)
            raise KeyError(f"no row {row!r} in {table.name}{near}; rows: {', '.join(table.rows)}")
        name = column(table, metric)
        if selection.published is None and "seeds" not in selection.given:
            selection = replace(selection, seeds=count_seeds(selection, row))
        has_controls = "attack_acc" in table.columns
        grid = selection.with_controls(quiet=True) if has_controls else selection.grid
        results = collect(grid)
    labels = filter(None, (row, reference(table, row)))
    missing = [record for label in labels for record in grid.only([label]).missing]
    if not results.found[row]:
        if not missing:  # the records are there, and damaged
            missing = [(row, seed) for seed in range(selection.seeds)]
        how = "; fill it with: " + filling(selection, missing) if not selection.published else ""
        raise RefusedError(f"no record of {row} in {grid.store.root}{how}")
    for line in Number(selection, grid, results, row, name).lines():
        click.echo(line)
    if missing:
        how = "; fill with: " + filling(selection, missing) if not selection.published else ""
        click.echo(f"\nMissing\n  {', '.join(f'{k} (seed {seed})' for k, seed in missing)}{how}")


def column(table: "Table", text: str) -> str:
    """Returns the metric of a column by its name or title, in upper or lower case."""
    from mibench.evaluation import METRICS

    names = {METRICS[name].title.casefold(): name for name in table.columns}
    names |= {name.casefold(): name for name in table.columns}
    if text.strip().casefold() not in names:
        known = ", ".join(table.columns)
        raise KeyError(f"no metric {text!r} in {table.name}; its metrics: {known}")
    return names[text.strip().casefold()]


def count_seeds(selection: Selection, row: str) -> int:
    """Returns how many seeds of a row, from 0 on, are in the store; 1 if none is."""
    from mibench.running.grid import Grid

    table, seeds = selection.table.only([row]), 1
    while seeds in Grid.plan(table, seeds + 1, selection.data, selection.store).done[row]:
        seeds += 1
    return seeds


def filling(selection: Selection, missing: Sequence[tuple[str, int]]) -> str:
    """Returns the command that computes missing records, given as label and seed."""
    rows = dict.fromkeys(label for label, _ in missing)
    return selection.filling(rows, 1 + max(seed for _, seed in missing))


@dataclass(frozen=True)
class Number:
    """One number of a table, to be explained.

    Attributes:
        selection: What the command line says.
        grid: The table in its store.
        results: Its numbers.
        row: Label.
        name: Metric of the column.
    """

    selection: Selection
    grid: "Grid"
    results: "Results"
    row: str
    name: str

    @property
    def entry(self) -> "Entry":
        """The number."""
        return self.results.entries[self.row][self.name]

    @cached_property
    def metric(self) -> "Metric":
        """The metric that fills the column in this row."""
        return self.grid.table.rows[self.row].protocol.metric(self.name)

    @property
    def unit(self) -> str:
        """What follows a value."""
        return " %" if self.metric.unit == "percent" else ""

    def lines(self) -> Iterator[str]:
        """Yields the explanation line by line."""
        yield from self._head()
        if self.entry.mean is not None:
            yield from self._values()
            yield from self._comparisons()
            yield from self._leakage()
            yield from self._parts()
            yield from self._stages()

    def _head(self) -> Iterator[str]:
        from mibench.evaluation import METRICS
        from mibench.reporting.export import show_reported
        from mibench.reporting.holes import readable

        table, metric = self.grid.table, self.metric
        title = METRICS[self.name].title
        fills = f", which fills the column {title}" if metric.name != self.name else ""
        yield f"{metric.title} of {self.row} in {table.name}{fills}"
        better = "It is a yardstick: neither way is better for the defender."
        if metric.better:
            better = f"{metric.better.capitalize()} is better for the defender."
        yield f"  {(metric.compute.__doc__ or '').partition(chr(10))[0]} {better}"
        if self.entry.mean is None:
            yield "  The value of no seed is a finite number."
            stages = self.grid.only([self.row]).done[self.row].values()
            payloads = [read[0] for stage in stages if (read := readable(stage, self.grid.store))]
            for warning in dict.fromkeys(w for payload in payloads for w in payload["warnings"]):
                if warning.startswith(f"{metric.title}: "):
                    yield f"  {warning}"
            return
        seeds = count(len(self.entry.values), "seed")
        yield f"  {self.entry.mean:.2f}{self.unit}, the mean of {seeds}."
        if reported := table.reported.get(self.row, {}).get(self.name):
            yield f"  {table.source} reports {show_reported(reported)}{self.unit}."
        else:
            yield "  No paper's number stands beside it."

    def _values(self) -> Iterator[str]:
        from mibench.evaluation.significance import FEWEST_IDENTITIES, interval

        yield "\nValues"
        spans = []
        for seed, value in self.entry.values.items():
            payload = self.grid.store.load(self.grid.records[self.row][seed])
            score, each = payload["scores"][self.name], []
            line = f"  seed {seed}: {value:.2f}{self.unit}"
            if self.metric.per in ("image", "identity"):
                line += f", over {count(score['n'], self.metric.per)}"
            if score["std"]:
                line += f", spread within the run {score['std']:.2f}{self.unit}"
            yield line
            if self.metric.per != "target":
                repeats = payload["values"].get(self.name, [])
                each = [fmean(v) if isinstance(v, list) else v for v in repeats]
            if len(each) > 1:
                texts = ", ".join(f"{mean:.2f}" for mean in each)
                yield f"    its {len(each)} attacks: {texts}{self.unit}"
                spans.append((seed, interval(each, over="attacks")))
        classes = self.grid.table.rows[self.row].trials.classes
        yield "\nInterval (95 %)"
        about = ""
        if self.entry.interval and self.entry.interval.low is not None:
            about = (
                f"; about targets, priors and attacks of other seeds, the {classes} attacked "
                "classes and the evaluator being these"
            )
        yield f"  {self._span(self.entry.interval)}{about}"
        for seed, span in spans:
            yield f"  seed {seed}, {self._span(span)}; about further attacks on this one target"
        if self.metric.per not in ("image", "identity"):
            yield "  over identities: none, because the metric is not measured on each identity"
        elif classes < FEWEST_IDENTITIES:
            yield (
                f"  over identities: none, because {classes} were attacked, and a bootstrap over "
                f"fewer than {FEWEST_IDENTITIES} covers the truth too rarely"
            )
        else:
            about = "about other identities, the trained targets and the evaluator being these"
            yield f"  {self._span(self.entry.identities)}; {about}"

    def _span(self, span: "Interval | None") -> str:
        """Returns an interval as text, or why there is none."""
        if span is None:
            return "none: a value is not a finite number"
        shown = span.clipped(*self.metric.range)
        if span.half is None:
            return span.method
        ends = f"{shown.low:.2f} to {shown.high:.2f}{self.unit}"
        cut = " (cut off at what the metric can be)" * (shown != span)
        return f"{span.method}: ± {span.half:.2f}{self.unit}, {ends}{cut}"

    def _comparisons(self) -> Iterator[str]:
        from mibench.defenses import NoDefense
        from mibench.evaluation import METRICS

        yield "\nCompared by paired t tests at the same seeds, with Holm's correction"
        if not METRICS[self.name].better:
            yield "  none: a yardstick is not tested"
        elif contrast := self.entry.contrast:
            yield f"  with {contrast.other}: {self._verdict(contrast)}"
        elif isinstance(self.grid.table.rows[self.row].defense, NoDefense):
            yield "  this is the row without a defense"
        else:
            yield "  with no defense: no such row to compare it with"
        for other in self.results.contrasts(self.name):
            if self.row in (other.row, other.other):
                yield f"  {other.row} with {other.other}: {self._verdict(other)}"

    def _verdict(self, contrast: "Contrast") -> str:
        """Returns a difference with its interval and what the test says of it."""
        from mibench.evaluation.significance import FEWEST_VALUES, LEVEL, MOST_SEEDS

        span = contrast.test.interval
        unit = " points" if self.unit else ""
        text = f"{contrast.test.diff:+.2f}{unit} over {count(len(contrast.seeds), 'seed')}"
        if contrast.p is None:
            return f"{text}; no test: {span.method.removeprefix('none: ')}"
        if span.low is not None:
            text += f" ({span.low:+.2f} to {span.high:+.2f})"
        text += f", p = {contrast.test.p:.3g}"
        text += f", corrected for {count(contrast.tests, 'test')} p = {contrast.p:.3g}: "
        text += "not " * (not contrast.significant)
        text += f"significantly different at {100 * LEVEL:g} %"
        if contrast.significant or len(contrast.seeds) < FEWEST_VALUES:
            return text
        more = f"more than {MOST_SEEDS}" if contrast.more is None else f"about {contrast.more}"
        return f"{text}; a test that shows this difference needs {more} more seeds"

    def _leakage(self) -> Iterator[str]:
        """Yields what the row's Attack Acc says about leakage, if its table shows any."""
        from mibench.evaluation.significance import FEWEST_VALUES, LEVEL
        from mibench.reporting.cautions import CONTROL_TITLE, cautions, is_above

        reasons = cautions(self.results).get(self.row, [])
        control = self.results.controls.get(self.row)
        if not reasons and control is None:
            return
        yield "\nWhat Attack Acc says about leakage"
        for reason in reasons:
            yield f"  {reason[0].upper()}{reason[1:]}."
        if control and control.mean is None:
            command = f"{self.selection.filling([self.row], self.results.seeds)} --controls"
            yield f"  {CONTROL_TITLE}: not computed; compute it with: {command}"
        elif control:
            yield f"  {CONTROL_TITLE}: {control.mean:.2f} %, without an attack on the same target"
        if control and (contrast := control.contrast):
            test = contrast.test
            over = "seeds" if len(contrast.seeds) >= FEWEST_VALUES else "classes"
            text = f"no test: {test.interval.method.removeprefix('none: ')}"
            if test.p is not None:
                above = "" if is_above(contrast) else "not "
                text = f"p = {test.p:.3g}: {above}significantly above at {100 * LEVEL:g} %"
            yield f"  the attack's less that: {test.diff:+.2f} points, paired over {over}, {text}"

    def _parts(self) -> Iterator[str]:
        from mibench.spec import brief

        cell = self.grid.table.rows[self.row]
        evaluator = cell.setting.evaluators[0]
        yield "\nMade of (fields that are not at their default)"
        parts: dict[str, Iterable[object]] = {
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
        for accuracy, rows in self.results.evaluators.items():
            if self.row in rows:
                yield f"  The evaluator is right about {accuracy:.2f} % of its test images."

    def _stages(self) -> Iterator[str]:
        from mibench.machine import in_words
        from mibench.running.stages import graph

        store, records = self.grid.store, self.grid.records[self.row]
        stages = {}
        seeds: dict[str, list[int]] = {}
        for seed, record in enumerate(records):
            for stage in graph([record]):
                stages[stage.key] = stage
                seeds.setdefault(stage.key, []).append(seed)
        yield "\nStages"
        machines: dict[str, None] = {}
        for key, stage in stages.items():
            state = store.state(stage)
            own = f"seed{'s' * (len(seeds[key]) > 1)} {', '.join(map(str, seeds[key]))}"
            text = f"{stage.describe()}, version {stage.version}, {own}: {state}"
            yield f"  {stage.kind}/{key}  {text}"
            if state in ("done", "recorded"):
                machines[in_words(store.meta(stage))] = None
        done = self.grid.only([self.row]).done[self.row].values()
        versions = {dict(record.metrics)[self.name] for record in done}
        now = self.metric.version
        text = f"version {', '.join(map(str, sorted(versions)))}"
        text += f" (this mibench has version {now})" if versions != {now} else ""
        yield f"  Metric {self.metric.name}, {text}; {'; '.join(machines)}"


def count(n: int, noun: str) -> str:
    """Returns a number with its noun."""
    plural = "identities" if noun == "identity" else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"
