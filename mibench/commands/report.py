"""The commands report, leaderboard and show: results to look at."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import (
    anywhere,
    check_writable,
    choose_table,
    folder,
    into,
    opened,
    planned_grid,
    published,
    refuse_records,
    refusing,
    selection,
    what,
    with_controls,
)


@click.command()
@click.argument("tables", nargs=-1, required=True, metavar="TABLE...")
@selection
@published
@into(folder, "Folder of the page.", "mibench-out/report")
@with_controls
@click.option(
    "--with-private",
    is_flag=True,
    help="Show private images of people too; other tasks' are shown anyway.",
)
@click.option(
    "--identities",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Reconstructions of a row, at most.",
)
def report(
    tables: Sequence[str], rows: Sequence[str], settings: Sequence[str], protocol: str | None,
    seeds: int, store: Path, data: Path, published: Path | None, out: Path, with_private: bool,
    identities: int, controls: bool,
) -> None:  # fmt: skip
    """Write TABLEs from the store as one web page that needs nothing beside it.

    From records the page has all but images, values class by class and curves of training.
    """
    from mibench.reporting.page import page

    with refusing():
        done = opened(store, published)
        grids = []
        for name in tables:
            chosen = choose_table(name, rows, settings, protocol)
            grid = planned_grid(chosen, seeds, data, done, controls=controls)
            command = arguments(name, settings, protocol, grid.seeds)
            grids.append((grid, command + ["--controls"] * controls))
        text = page(grids, with_private=with_private, identities=identities)
        check_writable(out)
        path = out / "index.html"
        path.write_text(text, encoding="utf-8")
    click.echo(path)


def arguments(name: str, settings: Sequence[str], protocol: str | None, seeds: int) -> list[str]:
    """Returns the arguments of run that ask for the same table."""
    told = [name]
    for setting in settings:
        told += ["--set", setting]
    if protocol is not None:
        told += ["--protocol", protocol]
    return told + (["--seeds", str(seeds)] if seeds > 1 else [])


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="DIR...", type=anywhere)
@into(anywhere, "Folder of the page.", "mibench-out/leaderboard")
def leaderboard(sources: Sequence[Path], out: Path) -> None:
    """Write one web page of the record files in and below DIRs.

    Every file is checked as by verify. One that fails is named there, and its numbers left out.
    """
    from mibench.reporting import records
    from mibench.reporting.page import leaderboard as page
    from mibench.reporting.verify import check

    named = out.suffix == ".html" and not out.is_dir()
    path = out if named else out / "index.html"
    with refusing():
        verdicts = [check(path) for path in records.find(sources)]
        root = sources[0] if len(sources) == 1 else Path()
        text = page(verdicts, root)
        check_writable(path.parent)
        path.write_text(text, encoding="utf-8")
    if named:
        click.echo(f"note: -o names a folder; {out} was taken for the page itself", err=True)
    for verdict in verdicts:
        if verdict.problem:
            click.echo(f"left out {verdict.path}: {verdict.problem}", err=True)
    click.echo(path)


@click.command()
@what
@published
@click.argument("row")
@into(anywhere, "Where the picture goes.")
@click.option("--open", "open_", is_flag=True, help="Open it in the viewer of this desktop.")
@click.option(
    "--blocks/--no-blocks",
    default=None,
    help="Draw in the terminal too; by default where it has 24-bit colours.",
)
@click.option("--with-private", is_flag=True, help="Show private images of people too.")
def show(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, published: Path | None, row: str, out: Path, open_: bool,
    blocks: bool | None, with_private: bool,
) -> None:  # fmt: skip
    """Draw what was reconstructed in ROW of TABLE (a label, or a pattern like '*BiDO-HSIC')."""
    from mibench.reporting import figures
    from mibench.running.grid import Grid
    from mibench.store import Store

    with refusing():
        refuse_records(published, "no images")
        chosen = choose_table(table, rows, settings, protocol).only([row])
        grid = Grid.plan(chosen, seeds, data, Store(store))
        if not grid.first:
            labels = ", ".join(grid.records)
            raise ValueError(f"{labels}: not in {store}; first: mibench run {table}")
        check_writable(out)
    name = slug(next(iter(chosen.rows)) if len(chosen.rows) == 1 else row)
    path = out / f"{chosen.name}-row-{name}.png"
    with refusing():
        figures.draw_reconstructions(grid, path, private=grid.private(with_private))
    if blocks or (blocks is None and has_colours()):
        click.echo(half_blocks(path), nl=False)
    click.echo(path)
    if open_:
        click.launch(str(path))


def slug(label: str) -> str:
    """Returns a row's label, or a pattern of labels, as a part of a file's name."""
    import re

    return re.sub(r"[^\w.+-]+", "-", label).strip("-.")[:80] or "all"


def has_colours() -> bool:
    """Whether standard output is a terminal that says it has 24-bit colours."""
    import os
    import sys

    return sys.stdout.isatty() and os.environ.get("COLORTERM") in ("truecolor", "24bit")


def half_blocks(path: Path, columns: int | None = None) -> str:
    """Returns a picture as text: each character is two pixels, one above the other."""
    import shutil

    from PIL import Image

    columns = columns or shutil.get_terminal_size().columns
    with Image.open(path) as picture:
        wide = min(columns, picture.width)
        tall = max(2, 2 * round(picture.height * wide / picture.width / 2))
        small = picture.convert("RGB").resize((wide, tall))
    pixels = list(small.tobytes())
    lines = []
    for y in range(0, tall, 2):
        line = ""
        for x in range(wide):
            above, below = (tuple(pixels[3 * (r * wide + x) :][:3]) for r in (y, y + 1))
            line += "\x1b[38;2;{};{};{};48;2;{};{};{}m▀".format(*above, *below)
        lines.append(line + "\x1b[0m\n")
    return "".join(lines)
