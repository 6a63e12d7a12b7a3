"""Where one number of a table came from, in words."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from statistics import fmean

from mibench.evaluation import METRICS, Metric
from mibench.evaluation.significance import (
    FEWEST_IDENTITIES,
    FEWEST_VALUES,
    LEVEL,
    MOST_SEEDS,
    Interval,
    interval,
)
from mibench.machine import in_words
from mibench.reporting.cautions import CONTROL_TITLE, cautions, is_above, p_above
from mibench.reporting.contrasts import Contrast
from mibench.reporting.reading import readable
from mibench.reporting.results import Entry, Results
from mibench.reporting.sheet import show_reported
from mibench.running.grid import Grid
from mibench.running.stages import graph
from mibench.spec import brief

PERCENT = f"{100 * LEVEL:g} %"


@dataclass(frozen=True)
class Number:
    """One number of a table, to be explained.

    Attributes:
        grid: The table in its store.
        results: Its numbers.
        row: Label.
        name: Metric of the column.
        command: The call of ``mibench run`` that computes the row.
    """

    grid: Grid
    results: Results
    row: str
    name: str
    command: str

    @property
    def entry(self) -> Entry:
        """The number."""
        return self.results.entries[self.row][self.name]

    @cached_property
    def metric(self) -> Metric:
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
        elif self.entry.identities is None and self.grid.table.rows[self.row].unequal_blocks:
            yield "  over identities: none, because the mean is over blocks of unequal size"
        else:
            about = "about other identities, the trained targets and the evaluator being these"
            yield f"  {self._span(self.entry.identities)}; {about}"

    def _span(self, span: Interval | None) -> str:
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
        yield "\nCompared by paired t tests at the same seeds, with Holm's correction"
        if not METRICS[self.name].better:
            yield "  none: a yardstick is not tested"
        elif contrast := self.entry.contrast:
            yield f"  with {contrast.other}: {self._verdict(contrast)}"
        elif self.grid.table.rows[self.row].defense.undefended:
            yield "  this is the row without a defense"
        else:
            yield "  with no defense: no such row to compare it with"
        if twin := self.entry.twin:
            yield f"  with its twin, {twin.other}: {self._verdict(twin)}"
        for other in self.results.contrasts(self.name):
            if self.row in (other.row, other.other):
                yield f"  {other.row} with {other.other}: {self._verdict(other)}"

    def _verdict(self, contrast: Contrast) -> str:
        """Returns a difference with its interval and what the test says of it."""
        span = contrast.test.interval
        unit = " points" if self.unit else ""
        text = f"{contrast.test.diff:+.2f}{unit} over {count(len(contrast.seeds), 'seed')}"
        if not self.entry.values.keys() >= set(contrast.seeds):
            text += " at which attacks met this target"
        if contrast.p is None:
            return f"{text}; no test: {span.method.removeprefix('none: ')}"
        if span.low is not None:
            text += f" ({span.low:+.2f} to {span.high:+.2f})"
        text += f", p = {contrast.test.p:.3g}"
        text += f", corrected for {count(contrast.tests, 'test')} p = {contrast.p:.3g}: "
        text += "not " * (not contrast.significant)
        text += f"significantly different at {PERCENT}"
        if contrast.significant or len(contrast.seeds) < FEWEST_VALUES:
            return text
        more = f"more than {MOST_SEEDS}" if contrast.more is None else f"about {contrast.more}"
        return f"{text}; a test that shows this difference needs {more} more seeds"

    def _leakage(self) -> Iterator[str]:
        """Yields what the row's Attack Acc says about leakage, if its table shows any."""
        reasons = cautions(self.results).get(self.row, [])
        control = self.results.controls.get(self.row)
        if not reasons and control is None:
            return
        yield "\nWhat Attack Acc says about leakage"
        for reason in reasons:
            yield f"  {reason[0].upper()}{reason[1:]}."
        if control and control.mean is None:
            yield f"  {CONTROL_TITLE}: not computed; compute it with: {self.command} --controls"
        elif control:
            yield f"  {CONTROL_TITLE}: {control.mean:.2f} %, without an attack on the same target"
        if control and (contrast := control.contrast):
            test = contrast.test
            text = f"no test: {test.interval.method.removeprefix('none: ')}"
            if test.p is not None:
                above = "" if is_above(contrast) else "not "
                text = (
                    f"p = {p_above(test):.3g}, one-sided: {above}significantly above at {PERCENT}"
                )
            yield f"  the attack's less that: {test.diff:+.2f} points, paired over classes, {text}"

    def _parts(self) -> Iterator[str]:
        cell = self.grid.table.rows[self.row]
        evaluator = cell.setting.evaluators[0]
        yield "\nMade of (fields that are not at their default)"
        setting, attack = cell.setting, cell.attack
        for part, *specs in (
            ("task", setting.task), ("target", *_nested(setting.network), cell.recipe),
            ("defense", *_nested(cell.defense)), ("prior", *_nested(attack.prior)),
            ("attack", attack),
            ("trials", cell.trials), ("evaluator", evaluator.network, evaluator.recipe),
            ("protocol", cell.protocol),
        ):  # fmt: skip
            yield f"  {part:10s} {', '.join(map(brief, specs))}"
        for accuracy, rows in self.results.evaluators.items():
            if self.row in rows:
                yield f"  The evaluator is right about {accuracy:.2f} % of its test images."

    def _stages(self) -> Iterator[str]:
        store, records = self.grid.store, self.grid.records[self.row]
        stages = {}
        seeds: dict[str, list[int]] = {}
        for seed, record in enumerate(records):
            for stage in graph([record]):
                stages[stage.key] = stage
                seeds.setdefault(stage.key, []).append(seed)
        yield "\nStages"
        metas = [meta for record in records for meta in store.runs(record, graph([record]))]
        machines = dict.fromkeys(map(in_words, metas))
        for key, stage in stages.items():
            state = store.state(stage)
            own = f"seed{'s' * (len(seeds[key]) > 1)} {', '.join(map(str, seeds[key]))}"
            text = f"{stage.describe()}, version {stage.version}, {own}: {state}"
            yield f"  {stage.kind}/{key}  {text}"
        done = self.grid.only([self.row]).done[self.row].values()
        versions = {dict(record.metrics)[self.name] for record in done}
        now = self.metric.version
        text = f"version {', '.join(map(str, sorted(versions)))}"
        text += f" (this mibench has version {now})" if versions != {now} else ""
        yield f"  Metric {self.metric.name}, {text}; {'; '.join(machines)}"


def _nested(spec: object) -> Iterator[object]:
    """Yields a spec and those in its fields, such as the weights that a network starts from."""
    yield spec
    for f in fields(spec) if is_dataclass(spec) else ():
        if is_dataclass(value := getattr(spec, f.name)):
            yield from _nested(value)


def count(n: int, noun: str) -> str:
    """Returns a number with its noun."""
    plural = "identities" if noun == "identity" else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"
