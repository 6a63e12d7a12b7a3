"""The command figure: pictures of one kind from the store."""

import os
import re
import shutil
import sys
from pathlib import Path

import click

from mibench.commands import options
from mibench.commands.selection import Selection, of_table
from mibench.commands.shared import check_writable, refusing


@click.command()
@click.argument(
    "name",
    type=click.Choice(
        [
            "1",
            "3",
            "4",
            "training",
            "reconstructions",
            "tradeoff",
            "traits",
            "queries",
            "matrix",
            "sweep",
            "row",
        ]
    ),
)
@of_table
@click.argument("row", required=False)
@options.records
@options.out(options.anywhere, "Folder of the pictures.")
@options.private
@click.option("--open", "open_", is_flag=True, help="Open the picture of a row in a viewer.")
@click.option(
    "--blocks/--no-blocks", default=None,
    help="Draw a row in the terminal too; by default where it has 24-bit colours.",
)  # fmt: skip
def figure(
    selection: Selection, name: str, row: str | None, out: Path, with_private: bool, open_: bool,
    blocks: bool | None,
) -> None:  # fmt: skip
    """Draw a figure of the paper, or what was recovered in one row.

    1 or training: accuracy while the targets of TABLE trained. 3 or reconstructions: what was
    recovered, and the private images most similar to it. 4 or tradeoff: Attack Acc against
    Accuracy, which --records will do for. These are PDF, with its fonts inside, and PNG.

    traits: which traits of a person leak, where the task knows the true ones. CSV too.

    queries: Attack Acc against answers of the target, of rows for which mibench run TABLE
    --until queries has computed it. CSV too.

    matrix: Attack Acc of every attack against every defense. Among targets that met the same
    attacks, as Markdown: each one's worst case, rank and difference from its twin, and which
    attacks find the worst cases. CSV too; --records will do.

    sweep: Attack Acc of rows that differ in one number of their attack alone, such as the epochs
    of its prior, against that number. CSV too; --records will do.

    row: what was recovered in ROW (a label, or a pattern like '*BiDO-HSIC'), as PNG.

    Example: mibench figure row smoke 'GMI / MID'
    """
    from mibench.benchmarks.row import listing
    from mibench.reporting import figures, leaks, matrix, matrix_forms, queries, sweep
    from mibench.reporting.results import collect

    name = figures.NUMBERS.get(name, name)
    with refusing():
        if (name == "row") != (row is not None):
            raise ValueError("figure row TABLE ROW draws one row; the other figures take no ROW")
        if name not in ("tradeoff", "matrix", "sweep"):
            selection.refuse_records("no images and no curves of training")
        table = selection.table.only([row]) if row else selection.table
        grid = selection.grid.only(table.rows)
        private = grid.private(with_private)
        if row and not grid.first:
            labels = listing(grid.records)
            command = selection.filling([row], grid.seeds)
            raise ValueError(f"{labels}: not in {selection.root}; fill it with: {command}")
        if name == "sweep" and not grid.finished(grid.last):
            raise ValueError(selection.gap())
        check_writable(out)
        if row:
            label = next(iter(table.rows)) if len(table.rows) == 1 else row
            paths = [out / f"{table.name}-row-{slug(label)}.png"]
            figures.draw_reconstructions(grid, paths[0], private=private)
        else:
            paths = [out / f"{table.name}-{name}-figure.{suffix}" for suffix in ("pdf", "png")]
            if name in ("traits", "queries", "matrix", "sweep"):
                paths.append(paths[0].with_suffix(".csv"))
            if name == "traits":
                leaks.draw(grid, paths)
            elif name == "matrix":
                paths.append(paths[0].with_suffix(".md"))
                matrix_forms.write(matrix.matrix(grid), paths)
            elif name == "sweep":
                sweep.write(collect(grid), paths)
            elif name == "queries":
                command = selection.filling(selection.rows, grid.seeds) + " --until queries"
                paths = queries.write(queries.points(grid.records, grid.store), paths, command)
            else:
                for path in paths:
                    figures.draw_figure(name, grid, path, private=private)
    if row and (blocks or (blocks is None and has_colours())):
        click.echo(half_blocks(paths[0]), nl=False)
    click.echo("\n".join(map(str, paths)))
    if row and open_:
        click.launch(str(paths[0]))
    if name in ("reconstructions", "row") and not private:
        click.echo("note: these are people; private images need --with-private", err=True)


def slug(label: str) -> str:
    """Returns a row's label, or a pattern of labels, as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.")[:80] or "all"


def has_colours() -> bool:
    """Whether standard output is a terminal that says it has 24-bit colours."""
    return sys.stdout.isatty() and os.environ.get("COLORTERM") in ("truecolor", "24bit")


def half_blocks(path: Path) -> str:
    """Returns a picture as text: each character is two pixels, one above the other."""
    from PIL import Image

    with Image.open(path) as picture:
        width = min(shutil.get_terminal_size().columns, picture.width)
        height = max(2, 2 * round(picture.height * width / picture.width / 2))
        pixels = picture.convert("RGB").resize((width, height)).tobytes()
    lines = []
    for y in range(0, height, 2):
        above, below = (pixels[3 * r * width :][: 3 * width] for r in (y, y + 1))
        line = ""
        for x in range(0, 3 * width, 3):
            colours = ";".join(map(str, above[x : x + 3])), ";".join(map(str, below[x : x + 3]))
            line += "\x1b[38;2;{};48;2;{}m▀".format(*colours)
        lines.append(line + "\x1b[0m\n")
    return "".join(lines)
