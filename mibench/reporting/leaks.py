"""Which traits leak: over persons, how what is read in reconstructions goes with the truth."""

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.benchmarks.row import Row
from mibench.evaluation.regressors import TraitReader
from mibench.reporting.canvas import look, new_figure, own_style, save
from mibench.running.grid import Grid
from mibench.running.stages import EvidenceStage, LensStage
from mibench.spec import fingerprint
from mibench.store import Store, put

VERSION = 1
QUANTILE = 1.959964  # of the normal distribution, for 95 %


@dataclass(frozen=True)
class Leak:
    """How one trait leaks in one row; the fields are the columns of the CSV.

    Attributes:
        row: The row's label.
        trait: The trait's name.
        r2: How well the regressor reads it in images that were degraded.
        r2_clean: How well it reads it in images that were not.
        correlation: Pearson's, over attacked persons, of the true trait and the mean of what is
            read in a person's reconstructions of all seeds; None where all readings are equal.
        low: Lower end of its 95 % interval, by Fisher's transformation; None below four persons.
        high: Its upper end.
        persons: How many were attacked.
        seeds: How many seeds are in it.
    """

    row: str
    trait: str
    r2: float
    r2_clean: float
    correlation: float | None
    low: float | None
    high: float | None
    persons: int
    seeds: int


def leaks(grid: Grid) -> list[Leak]:
    """Returns a line per row and trait, the traits that are read best first.

    Rows without a column that reads traits, and those not in the store, are left out.
    """
    lines = []
    for label, seeds in grid.done.items():
        stages = [stage for record in seeds.values() for stage in record.evidence]
        if stages and (lens := reader_of(stages[0])) is not None:
            lines += _of_row(label, stages, lens, grid.store, len(seeds))
    return lines


def reader_of(stage: EvidenceStage) -> LensStage | None:
    """Returns the stage that trained the first regressor by which traits were read, if any."""
    lenses = (v for v in getattr(stage, "lenses", ()) if isinstance(v, LensStage))
    return next((v for v in lenses if isinstance(v.lens, TraitReader)), None)


def correlations(
    a: Float[Tensor, "n t"], b: Float[Tensor, "n t"]
) -> Iterator[tuple[float | None, float | None, float | None]]:
    """Yields of each column Pearson's correlation of two tables, and its 95 % interval.

    The interval is Fisher's: tanh(atanh r ± z / √(n − 3)). None where it is not defined.
    """
    half = QUANTILE / math.sqrt(len(a) - 3) if len(a) > 3 else None
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    scale = a.square().sum(0).sqrt() * b.square().sum(0).sqrt()
    for top, bottom in zip((a * b).sum(0).tolist(), scale.tolist(), strict=True):
        if bottom == 0:
            yield None, None, None
            continue
        r = max(-1.0, min(1.0, top / bottom))
        if half is None or abs(r) == 1:
            yield r, None, None
        else:
            yield r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def draw(grid: Grid, paths: Iterable[Path]) -> None:
    """Writes which traits leak, by each path's suffix as a picture or as CSV.

    Raises:
        ValueError: If no row in the store has read traits.
    """
    lines = leaks(grid)
    if not lines:
        raise ValueError(
            "no row in the store has read traits: give the table a column such as trait_acc, and "
            "a task that knows the traits of its persons"
        )
    for path in paths:
        (_write if path.suffix == ".csv" else _draw)(lines, path)


def _write(lines: list[Leak], path: Path) -> None:
    """Writes the lines as CSV; what is not defined is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(Leak))
    for line in lines:
        writer.writerow(f"{v:.4f}" if isinstance(v, float) else v for v in astuple(line))
    put(path, text.getvalue())


@own_style()
def _draw(lines: list[Leak], path: Path) -> None:
    """Draws correlations with their intervals, a panel per attack and a colour per defense."""
    traits = list(dict.fromkeys(line.trait for line in lines))
    panels: dict[str, dict[str, list[Leak]]] = {}
    for line in lines:
        row = Row.of(line.row)
        panels.setdefault(row.attack, {}).setdefault(row.defended, []).append(line)
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    figure = new_figure((1.6 + 2.9 * len(panels), 1.2 + 0.27 * len(traits)))
    for i, (attack, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        read = {line.trait: line.r2 for row in rows.values() for line in row}
        axes.barh(
            [traits.index(trait) for trait in read], [max(0, r2) ** 0.5 for r2 in read.values()],
            color="#dddddd", label="√R² in new images",
        )  # fmt: skip
        for number, name in enumerate(names):
            known = [line for line in rows.get(name, []) if line.correlation is not None]
            offset = 0.6 * ((number + 0.5) / len(names) - 0.5)
            axes.errorbar(
                [line.correlation for line in known],
                [traits.index(line.trait) + offset for line in known],
                xerr=list(zip(*map(_arms, known), strict=True)) or None,
                **look(number), linestyle="", markersize=3, elinewidth=0.6, label=name,
            )  # fmt: skip
        axes.set_yticks(range(len(traits)), traits if i == 0 else [""] * len(traits))
        axes.set_ylim(len(traits) - 0.4, -0.6)
        axes.set_xlim(-1.02, 1.02)
        axes.axvline(0, color="#777777", linewidth=0.8)
        axes.set_title(attack, fontsize=9)
        axes.set_xlabel("correlation over persons", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(visible=True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, fingerprint(["leaks", VERSION]))


def _arms(line: Leak) -> tuple[float, float]:
    """Returns how far the interval reaches below and above; 0 where it is not known."""
    r = line.correlation or 0.0
    return (r - (r if line.low is None else line.low), (r if line.high is None else line.high) - r)


def _of_row(
    label: str, stages: list[EvidenceStage], lens: LensStage, store: Store, seeds: int
) -> list[Leak]:
    state = store.load(lens)
    reader = lens.lens
    assert isinstance(reader, TraitReader)
    run = stages[0].inversion
    readings = [reader.readings(stage.judged(store.load), state) for stage in stages]
    mean = torch.stack(readings).mean(0).view(run.samples, run.classes, -1).mean(0)
    found = list(correlations(mean, state["truth"][: run.classes]))
    names, r2 = lens.images.task.traits, state["degraded"].tolist()
    return [
        Leak(label, names[t], r2[t], float(state["clean"][t]), *found[t], run.classes, seeds)
        for t in sorted(range(len(names)), key=lambda t: -r2[t])
    ]
