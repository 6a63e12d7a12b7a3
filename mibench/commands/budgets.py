"""The command budgets."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import (
    choose_table,
    gap,
    opened,
    planned,
    published,
    refusing,
    what,
)


@click.command()
@what
@published
def budgets(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, published: Path | None,
) -> None:  # fmt: skip
    """Print what TABLE's attacks spent: steps, answers of the target, seconds, memory."""
    from mibench.reporting.budgets import render, spent
    from mibench.running.grid import Grid

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        done = opened(store, published)
        grid = Grid(chosen, planned(chosen, seeds, data, done), done)
        found = spent(grid)
        if not any(found.values()):
            raise ValueError(gap(chosen, rows, seeds, done.root))
    click.echo(render(chosen.caption, found, grid.seeds), nl=False)
