"""The command explain: where one number of a table came from, in words."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.selection import Selection, of_table
from mibench.commands.shared import RefusedError, refusing

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table


@click.command()
@of_table
@options.records
@click.argument("row", required=False)
@click.argument("metric", required=False)
def explain(selection: Selection, row: str | None, metric: str | None) -> None:
    """Learn where a number of a table came from and how far to trust it.

    The number is that of METRIC in ROW of TABLE; nothing is computed. METRIC is a metric's name or
    its column's title, in upper or lower case. Without --seeds the number is of as many seeds,
    from 0 on, as the store has of that row. Without METRIC, or ROW, it says which there are.

    Example: mibench explain smoke 'GMI / MID' attack_acc
    """
    from mibench.benchmarks.row import listing, unknown_row
    from mibench.reporting.contrasts import reference, twins
    from mibench.reporting.explain import Number
    from mibench.reporting.results import collect

    with refusing():
        table = selection.table
        if row is None:
            raise ValueError(f"name a row of {table.name}: {listing(table.rows)}")
        if row not in table.rows:
            raise KeyError(unknown_row(row, table.name, table.rows))
        if metric is None:
            raise ValueError(f"name a metric of {table.name}: {', '.join(table.columns)}")
        name = column(table, metric)
        if selection.published is None and "seeds" not in selection.given:
            selection = replace(selection, seeds=count_seeds(selection, row))
        has_controls = "attack_acc" in table.columns
        grid = selection.with_controls(quiet=True) if has_controls else selection.grid
        results = collect(grid)
    others = (reference(table, row), twins(table).get(row))
    labels = [label for label in (row, *others) if label]
    missing = [record for label in labels for record in grid.only([label]).missing]
    if not results.found[row] and not missing:  # the records are there, and damaged
        missing = [(row, seed) for seed in range(selection.seeds)]
    command = ""
    if missing and not selection.published:
        rows = dict.fromkeys(label for label, _ in missing)
        command = selection.filling(rows, 1 + max(seed for _, seed in missing))
    if not results.found[row]:
        how = f"; fill it with: {command}" if command else ""
        raise RefusedError(f"no record of {row} in {grid.store.root}{how}")
    own = selection.filling([row], grid.seeds)
    click.echo("\n".join(Number(grid, results, row, name, own).lines()))
    if missing:
        records = ", ".join(f"{label} (seed {seed})" for label, seed in missing)
        click.echo(f"\nMissing\n  {records}" + (f"; fill with: {command}" if command else ""))


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
