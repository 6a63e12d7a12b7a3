"""The command report: tables as a web page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from mibench.commands import options
from mibench.commands.selection import Selection, selecting
from mibench.commands.shared import check_writable, refusing


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@selecting
@options.records
@options.out(options.folder, "Folder of the page.", "mibench-out/report")
@options.controls
@options.private
@click.option(
    "--identities", type=click.IntRange(1, 256), default=16, show_default=True,
    help="Reconstructions of a row, at most.",
)  # fmt: skip
def report(
    selection: Selection, tables: Sequence[str], out: Path, controls: bool, with_private: bool,
    identities: int,
) -> None:  # fmt: skip
    """Write one web page of tables, to read or to hand on.

    The page is one file, and nothing is computed for it. A page from records has no images, no
    values class by class and no curves of training.

    Example: mibench report digits -o report
    """
    from mibench.reporting.page import page
    from mibench.store import put

    with refusing():
        if with_private and selection.published is not None:
            raise ValueError("--with-private shows images, and --records has none: give one")
        chapters = []
        for name in tables:
            chosen = replace(selection, name=name)
            grid = chosen.with_controls() if controls else chosen.grid
            if not any(grid.done.values()):
                raise ValueError(chosen.gap())
            chapters.append((grid, chosen.arguments(grid.seeds) + ["--controls"] * controls))
        text = page(chapters, with_private=with_private, identities=identities)
        check_writable(out)
        path = out / "index.html"
        put(path, text)
    click.echo(path)
