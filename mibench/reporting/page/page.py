"""The page of one or several tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from mibench.benchmarks.row import Row
from mibench.reporting.notes import footnotes
from mibench.reporting.page import charts, pictures, plots
from mibench.reporting.page.render import render, visible
from mibench.reporting.page.rows import CONTROL_COLUMN, column, row
from mibench.reporting.results import collect
from mibench.running.grid import Grid

IDENTITIES = 16
"""Default number of reconstructions that a row shows at most."""
LEFT_OUT = (
    "Where only records are there, images, values class by class and curves of training are left "
    "out: records hold scores and where they come from."
)


def page(
    grids: Sequence[tuple[Grid, Sequence[str] | None]],
    *,
    with_private: bool = False,
    identities: int = IDENTITIES,
) -> str:
    """Returns the page; reads the store and computes no stage.

    Args:
        grids: What to show, each with the arguments of ``mibench run`` that made it, without
            its rows; None where another command did.
        with_private: Whether private images of people may be shown too.
        identities: Reconstructions of a row, at most.

    Raises:
        ValueError: If a grid has nothing in its store.
    """
    chapters = [
        _chapter(i, grid, command, with_private=with_private, identities=identities)
        for i, (grid, command) in enumerate(grids)
    ]
    title = "mibench: " + ", ".join(grid.table.name for grid, _ in grids)
    return render("page.html.j2", title=title, chapters=chapters)


def _chapter(
    number: int,
    grid: Grid,
    command: Sequence[str] | None,
    *,
    with_private: bool,
    identities: int,
) -> dict[str, Any]:
    table, store = grid.table, grid.store
    results = collect(grid)
    done = grid.first
    if not any(grid.done.values()):
        raise ValueError(f"nothing of {table.name} is in {store.root}")
    held = {k: s for k, s in done.items() if store.state(s.evidence[0]) == "done"}
    private = grid.private(with_private)
    styles = _styles(label for label, own in grid.done.items() if own)
    return {
        "id": f"t{number}",
        "table": table,
        "columns": [
            *(column(name, results) for name in table.columns),
            *([CONTROL_COLUMN] if results.controls else []),
        ],
        "rows": [
            row(f"t{number}r{i}", label, grid, command, results)
            for i, label in enumerate(table.rows)
        ],
        "notes": [
            *map(visible, footnotes(results, "Bold:")),
            *[LEFT_OUT] * (len(held) < len(done)),
        ],
        "faces": grid.faces,
        "private": private,
        "seeds": results.seeds,
        "tradeoff": charts.tradeoff(results, styles),
        "styles": {visible(name): plots.swatch(style) for name, style in styles.items()},
        "crossed": charts.crossed(grid),
        "grids": pictures.grids(f"t{number}", held, store, identities, private=private),
        "mistakes": pictures.mistakes(f"t{number}", held, store, private=private),
        "heats": [
            heat for heat in (charts.leaks(held, store), charts.utility(held, store)) if heat
        ],
        "dependences": charts.dependences(grid),
        "curves": charts.curves(grid.only(done), styles),
    }


def _styles(labels: Iterable[str]) -> dict[str, int]:
    """Returns defense → number of its colour, the same in all plots."""
    names = dict.fromkeys(Row.of(label).defended for label in labels)
    return {name: i for i, name in enumerate(names)}
