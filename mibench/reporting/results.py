"""What a store knows of a table, as numbers."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mibench.benchmarks.cell import Cell
from mibench.benchmarks.row import Row, unknown_row
from mibench.benchmarks.tables.base import Table
from mibench.evaluation import METRICS, Metric
from mibench.evaluation.significance import (
    FEWEST_IDENTITIES,
    FEWEST_VALUES,
    Interval,
    identity_interval,
    interval,
    paired,
)
from mibench.precision import FLOAT32, at
from mibench.reporting.canvas import Mark, own_style, tradeoff_figure
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE, cautions
from mibench.reporting.contrasts import Contrast, between, twins, with_none, with_twin
from mibench.reporting.reading import readable, reason
from mibench.running.grid import Grid
from mibench.store import Payload, precisions_of

if TYPE_CHECKING:
    import pandas as pd

Number = float | None
DECIMALS = 2
"""Of numbers in print."""


@dataclass(frozen=True)
class Entry:
    """A metric of a row.

    Attributes:
        mean: Over seeds; None if nothing is in the store.
        std: Over passes or repeats, averaged over seeds; None where there is only one.
        interval: Student's over seeds, not clipped; None if nothing is in the store.
        values: Seed → the metric's value, of those in the store.
        identities: The bootstrap's over identities; None where there are fewer than 20, the
            metric is not measured on each, or its mean is over blocks of unequal size.
        contrast: The comparison with no defense; None where there is none to compare with.
        twin: The comparison with the defense's undefended twin; None where the table has no row
            of that twin.
        undefined: At how many seeds of the row the metric has no value, though others have one.
    """

    mean: Number = None
    std: Number = None
    interval: Interval | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    identities: Interval | None = None
    contrast: Contrast | None = None
    twin: Contrast | None = None
    undefined: int = 0

    @property
    def half(self) -> Number:
        """Half the width of the interval over seeds; None where there is none."""
        return self.interval.half if self.interval else None


@dataclass(frozen=True)
class Results:
    """What the store knows of a table.

    Attributes:
        table: The table.
        seeds: Number of seeds of the table.
        entries: Label → metric → entry.
        found: Label → how many seeds are in the store.
        evaluators: Test accuracy of the evaluation classifier in percent → the rows that it
            judged. More than one where rows have settings of their own, or came from stores
            in which it was trained on other kinds of machines.
        sizes: Label → reconstructions, real images and dimensions that FID rests on.
        classes: How many classes the evaluator knows.
        warnings: What the records say beside their numbers, such as why one is missing.
        holes: Label → why a seed of it is missing, where a stage failed or is damaged.
        remarks: What was computed otherwise than usual.
        precisions: Label → the precisions at which what it rests on was computed.
        controls: Label → Attack Acc of samples of its prior, where controls were asked for; its
            contrast is that of the row's Attack Acc with it, class by class, means over seeds.
        grid: Where all of it was read; None for numbers made by hand.
    """

    table: Table
    seeds: int
    entries: Mapping[str, Mapping[str, Entry]]
    found: Mapping[str, int]
    evaluators: Mapping[float, Sequence[str]]
    sizes: Mapping[str, tuple[int, int, int]]
    classes: int | None = None
    warnings: tuple[str, ...] = ()
    holes: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    precisions: Mapping[str, frozenset[str]] = field(default_factory=dict)
    controls: Mapping[str, Entry] = field(default_factory=dict)
    grid: Grid | None = None

    @property
    def mixed(self) -> list[str]:
        """Labels of rows of which a part was computed in float32 and a part in bf16."""
        return [label for label, each in self.precisions.items() if len(each) > 1]

    @property
    def evaluator(self) -> Number:
        """The evaluation classifier's test accuracy in percent, if it is the same for all."""
        return next(iter(self.evaluators)) if len(self.evaluators) == 1 else None

    def frame(self) -> "pd.DataFrame":
        """Returns a line per row of the table, seed and metric: plain numbers.

        The columns are "row", the row's label; "attack" and "defense", its parts; "seed";
        "metric"; and "value". Values that are not there have no line.
        """
        import pandas as pd

        lines = [
            (label, Row.of(label).attack, Row.of(label).defended, seed, name, entry.values[seed])
            for label, entries in self.entries.items()
            for seed in sorted({seed for entry in entries.values() for seed in entry.values})
            for name, entry in entries.items()
            if seed in entry.values
        ]
        columns = ["row", "attack", "defense", "seed", "metric", "value"]
        return pd.DataFrame(lines, columns=columns).astype({"seed": "int64", "value": "float64"})

    def images(self, row: str, seed: int = 0) -> Tensor:
        """Returns the reconstructions of a row, of the first repeat of its attack.

        Args:
            row: Its label.
            seed: Which of its seeds.

        Returns:
            Float32 in [0, 1], (samples, classes, c, h, w).

        Raises:
            ValueError: If there is no such row, or the images are not in the store, such as where
                the results come from records.
        """
        if row not in self.entries:
            raise ValueError(unknown_row(row, self.table.name, self.entries))
        stages = self.grid.records[row] if self.grid else ()
        runs = [s.evidence[0].inversion for s in stages[seed : seed + 1] if seed >= 0]
        if self.grid is None or not self.grid.finished(runs):
            raise ValueError(
                f"the reconstructions of {row}, seed {seed}, are not there: they are in the store "
                "that the table was run in, and records do not hold them"
            )
        evidence = stages[seed].evidence[0]
        with at(self.grid.store.meta(evidence).get("precision", FLOAT32)):
            judged = evidence.judged(self.grid.store.load)
        return judged.view(runs[0].samples, runs[0].classes, *judged.shape[1:])

    def summary(self, *, reported: bool = False) -> "pd.DataFrame":
        """Returns one row per label, named "row": plain numbers, NaN where there is none.

        "seeds" is how many the row rests on. Per metric: its mean; ``_std`` within a run;
        ``_t95``, half the width of Student's 95 % interval over seeds; ``_low`` and ``_high``,
        that interval's ends within what the metric can be; ``_diff``, the paired difference from
        no defense, and ``_p``, its p value after Holm's correction; ``_twin_diff`` and
        ``_twin_p``, the same from the defense's twin, if the table has a row of any; ``_id_low``
        and ``_id_high``, the bootstrap's over identities, if any row has 20 or more; a paper's
        ``_reported``. If any row has a metric that is undefined at some of its seeds only,
        ``_seeds`` is how many that metric's numbers rest on.

        With controls, "attack_acc_control" is what samples of the prior get, ``_diff`` the
        attack's Attack Acc less that and ``_p`` its p value, not corrected. If any row's Attack
        Acc says nothing about leakage, "caution" says why.
        """
        import pandas as pd

        rows = []
        cautioned, has_twins = cautions(self), bool(twins(self.table))
        for label, entries in self.entries.items():
            row: dict[str, object] = {"row": label, "seeds": self.found[label]}
            for name in self.table.columns:
                row |= self._numbers(name, entries[name], has_twins=has_twins)
                if reported:
                    mean, std = self.table.reported.get(label, {}).get(name, (None, None))
                    row |= {f"{name}_reported": mean, f"{name}_reported_std": std}
            if self.controls:
                control = self.controls.get(label, Entry())
                test = control.contrast.test if control.contrast else None
                row |= {CONTROL: control.mean}
                row |= {f"{CONTROL}_diff": test.diff if test else None}
                row |= {f"{CONTROL}_p": test.p if test else None}
            if cautioned:
                row |= {"caution": "; ".join(cautioned.get(label, ()))}
            rows.append(row)
        numbers = [c for c in rows[0] if c not in ("row", "seeds", "caution")]
        return pd.DataFrame(rows).set_index("row").astype(dict.fromkeys(numbers, "float64"))

    def _numbers(self, name: str, entry: Entry, *, has_twins: bool) -> dict[str, Number]:
        """Returns the columns of one metric."""
        span = entry.interval and entry.interval.clipped(*METRICS[name].range)
        contrast = entry.contrast
        numbers = {
            name: entry.mean,
            f"{name}_std": entry.std,
            f"{name}_t95": entry.half,
            f"{name}_low": span.low if span else None,
            f"{name}_high": span.high if span else None,
            f"{name}_diff": contrast.test.diff if contrast else None,
            f"{name}_p": contrast.p if contrast else None,
        }
        if has_twins:
            test = entry.twin.test if entry.twin else None
            numbers |= {f"{name}_twin_diff": test.diff if test else None}
            numbers |= {f"{name}_twin_p": entry.twin.p if entry.twin else None}
        if any(_has_identities(METRICS[name], cell) for cell in self.table.rows.values()):
            ids = entry.identities
            numbers |= {f"{name}_id_low": ids.low if ids else None}
            numbers |= {f"{name}_id_high": ids.high if ids else None}
        if any(entries[name].undefined for entries in self.entries.values()):
            numbers |= {f"{name}_seeds": len(entry.values)}
        return numbers

    def tradeoff(self) -> dict[str, Mark]:
        """Returns label → Attack Acc against Accuracy, of the rows that have both.

        The vertical error bar is over passes with one seed, over seeds with more.
        """
        marks = {}
        for label, entries in self.entries.items():
            x, y = entries.get("accuracy", Entry()), entries.get("attack_acc", Entry())
            if x.mean is not None and y.mean is not None:
                dy = y.std if self.seeds == 1 else y.half
                marks[label] = Mark(x.mean, y.mean, x.half, dy)
        return marks

    def plot_tradeoff(self, *, joined: bool = False) -> Any:  # noqa: ANN401 - matplotlib has no stubs
        """Returns a figure of Attack Acc against Accuracy, one panel per attack.

        It is matplotlib's: a notebook shows it, and ``savefig`` writes it.

        Args:
            joined: Whether a line joins the weights of one defense; else each is for itself.

        Raises:
            ValueError: If no row has both numbers.
        """
        marks = self.tradeoff()
        if not marks:
            raise ValueError("no row has both Accuracy and Attack Acc")
        with own_style():
            return tradeoff_figure(marks, joined=joined)

    def contrasts(self, name: str) -> list[Contrast]:
        """Returns a metric's comparisons between defenses under one attack."""
        return between(self.table, name, {k: e[name].values for k, e in self.entries.items()})


def collect(grid: Grid) -> Results:
    """Returns what is in the store, with the grid's controls if it has any; computes nothing."""
    table, store = grid.table, grid.store
    entries: dict[str, dict[str, Entry]] = {}
    found: dict[str, int] = {}
    evaluators: dict[float, dict[str, None]] = {}
    classes = None
    sizes = {}
    warnings: dict[str, list[str]] = {}
    holes: dict[str, str] = {}
    remarks: dict[str, None] = {}
    precisions: dict[str, frozenset[str]] = {}
    beside: dict[str, Entry] = {}
    failed = store.failed()
    done = grid.done
    for label, stages in grid.records.items():
        payloads: dict[int, Payload] = {}
        for seed, stage in enumerate(stages):
            read = readable(stage, store) if seed in done[label] else None
            if read is not None:
                payloads[seed], meta = read
                remarks |= dict.fromkeys(meta.get("remarks", []))
                precisions[label] = precisions.get(label, frozenset()) | precisions_of(stage, meta)
            elif why := reason(stage, store, failed):
                holes.setdefault(label, why)
        found[label] = len(payloads)
        cell = table.rows[label]
        entries[label] = {name: entry_of(name, payloads, cell) for name in table.columns}
        if grid.controls and label in grid.controls.records:
            beside[label] = _control(label, payloads, grid.controls, cell)
        for warning in dict.fromkeys(w for p in payloads.values() for w in p.get("warnings", ())):
            warnings.setdefault(warning, []).append(label)
        for payload in payloads.values():
            evaluators.setdefault(payload["evaluator"]["accuracy"], {})[label] = None
        if payloads:
            payload = next(iter(payloads.values()))
            size = payload["sizes"]
            classes = size["classes"]
            sizes[label] = (size["reconstructions"], size["real"], size["dimensions"])
    for name in table.columns:
        values = {label: row[name].values for label, row in entries.items()}
        for label, contrast in with_none(table, name, values).items():
            entries[label][name] = replace(entries[label][name], contrast=contrast)
        for label, contrast in with_twin(table, name, values).items():
            entries[label][name] = replace(entries[label][name], twin=contrast)
    there = [label for label, count in found.items() if count]
    warned = tuple(
        text if len(labels) == len(there) else f"{together(labels, there)}: {text}"
        for text, labels in warnings.items()
    )
    judged = {accuracy: tuple(labels) for accuracy, labels in evaluators.items()}
    return Results(
        table, grid.seeds, entries, found, judged, sizes, classes, warned, holes, tuple(remarks),
        precisions, beside, grid,
    )  # fmt: skip


def together(labels: Sequence[str], every: Sequence[str]) -> str:
    """Returns labels in one text; those of an attack as its name, where they are all of it."""
    attacks = {label: Row.of(label).attack for label in (*labels, *every)}
    split = {attacks[label] for label in every if label not in labels} | {""}
    names = dict.fromkeys(k if attacks[k] in split else attacks[k] for k in labels)
    return ", ".join(names)


def entry_of(name: str, payloads: Mapping[int, Payload], cell: Cell) -> Entry:
    """Returns a metric over records of a row's cell: seed → payload."""
    scores = {seed: p["scores"][name] for seed, p in payloads.items()}
    means = {seed: s["mean"] for seed, s in scores.items() if _finite(s["mean"])}
    if not means:
        return Entry()
    stds = [s["std"] for s in scores.values() if s["std"] is not None]
    ids = None
    if _has_identities(METRICS[name], cell):
        classes = cell.trials.classes
        each = [by_identity(payloads[seed]["values"][name], classes) for seed in means]
        if all(_finite(v) for seed in each for v in seed):
            ids = identity_interval(each)
    return Entry(
        _mean(list(means.values())),
        _mean(stds) if stds else None,
        interval(list(means.values())),
        means,
        ids,
        undefined=len(scores) - len(means),
    )


def _control(label: str, payloads: Mapping[int, Payload], controls: Grid, cell: Cell) -> Entry:
    """Returns the Attack Acc of a row's control, with the comparison of the row with it."""
    read = {
        seed: record[0]
        for seed, stage in controls.only([label]).done[label].items()
        if (record := readable(stage, controls.store))
    }
    control, attack = (entry_of("attack_acc", p, cell) for p in (read, payloads))
    seeds = tuple(seed for seed in attack.values if seed in control.values)
    if not seeds:
        return control
    by_class = [
        [by_identity(part[seed]["values"]["attack_acc"], cell.trials.classes) for seed in seeds]
        for part in (payloads, read)
    ]
    a, b = ([_mean(values) for values in zip(*each, strict=True)] for each in by_class)
    test = paired(a, b)
    return replace(control, contrast=Contrast(label, CONTROL_TITLE, seeds, test, test.p, 1, None))


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else statistics.mean(values)  # exact, and slow


def _finite(value: Number) -> bool:
    return value is not None and math.isfinite(value)


def _has_identities(metric: Metric, cell: Cell) -> bool:
    """Whether a bootstrap over identities is made."""
    each = metric.per == "identity" or (metric.per == "image" and not cell.unequal_blocks)
    return each and cell.trials.classes >= FEWEST_IDENTITIES


def by_identity(repeats: Sequence[Sequence[float]], classes: int) -> list[float]:
    """Returns each identity's mean; values come pass by pass, a value per identity in each."""
    each = [[statistics.fmean(v[c::classes]) for v in repeats] for c in range(classes)]
    return [statistics.fmean(means) for means in each]


def show(entry: Entry, seeds: int, decimals: int = DECIMALS) -> str:
    """Returns "mean ± spread", by default with two decimals; a gap is "--".

    The spread is that over passes with one seed, half of the interval over seeds with more;
    where one seed of several is there yet, or all agree, none. Where two are there, their values
    stand in its place. "(3/5)" follows where the metric has a value at three of five seeds only.
    """
    if entry.mean is None:
        return "--"
    n = len(entry.values)
    of = f" ({n}/{n + entry.undefined})" if entry.undefined else ""
    if 1 < n < FEWEST_VALUES:
        each = ", ".join(f"{v:.{decimals}f}" for v in entry.values.values())
        return f"{entry.mean:.{decimals}f} ({each}){of}"
    spread = entry.std if seeds == 1 else entry.half
    after = f" ± {spread:.{decimals}f}" if spread is not None else ""
    return f"{entry.mean:.{decimals}f}{after}{of}"
