"""The command figure: the paper's figures from the store."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import (
    check_writable,
    choose_table,
    folder,
    into,
    opened,
    planned_grid,
    published,
    refuse_records,
    refusing,
    what,
)


@click.command()
@click.argument(
    "name", type=click.Choice(["1", "3", "4", "training", "reconstructions", "tradeoff"])
)
@what
@published
@into(folder, "Folder of the PDF and the PNG.")
@click.option("--with-private", is_flag=True, help="Show private images of people too.")
def figure(
    name: str, table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None,
    seeds: int, store: Path, data: Path, published: Path | None, out: Path, with_private: bool,
) -> None:  # fmt: skip
    """Draw a figure of the paper from TABLE, as PDF with its fonts inside and as PNG.

    1 or training: accuracy while the targets trained. 3 or reconstructions: what was recovered,
    and the private images most similar to it. 4 or tradeoff: Attack Acc against Accuracy, which
    --records will do for.
    """
    from mibench.reporting.figures import NUMBERS, draw_figure

    name = NUMBERS.get(name, name)
    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        if name != "tradeoff":
            refuse_records(published, "no images and no curves of training")
        done = opened(store, published)
        grid = planned_grid(chosen, seeds, data, done)
        check_writable(out)
        for suffix in ("pdf", "png"):
            path = out / f"{chosen.name}-{name}-figure.{suffix}"
            draw_figure(name, grid, path, private=grid.private(with_private))
            click.echo(path)
    if name == "reconstructions" and not grid.private(with_private):
        click.echo("note: these are people; private images need --with-private", err=True)
