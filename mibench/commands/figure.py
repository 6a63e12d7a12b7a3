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
    planned,
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
    from mibench.reporting import paper
    from mibench.reporting.export import collect

    name = paper.NUMBERS.get(name, name)
    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        if name != "tradeoff":
            refuse_records(published, "no images and no curves of training")
        done = opened(store, published)
        records = planned(chosen, seeds, data, done)
        source = paper.Source(records, collect(chosen, records, done), done)
        check_writable(out)
        faces = any(cell.setting.task.faces for cell in chosen.rows.values())
        for suffix in ("pdf", "png"):
            path = out / f"{chosen.name}-{name}-figure.{suffix}"
            paper.FIGURES[name](source, path, private=with_private or not faces)
            click.echo(path)
    if name == "reconstructions" and faces and not with_private:
        click.echo("note: these are people; private images need --with-private", err=True)
