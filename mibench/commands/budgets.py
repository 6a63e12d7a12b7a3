"""The command budgets."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import choose_table, gap, plan, refusing, what


@click.command()
@what
def budgets(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path,
) -> None:  # fmt: skip
    """Print what TABLE's attacks spent: steps, answers of the target, seconds, memory."""
    from mibench.benchmarks.budgets import render, spent
    from mibench.store import Store

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        found = spent(plan(chosen, seeds, data), Store(store))
        if not any(found.values()):
            raise ValueError(gap(chosen, rows, seeds, store))
    click.echo(render(chosen.caption, found, seeds), nl=False)
