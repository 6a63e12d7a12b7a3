"""The commands status and table: what a store has of a table."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import click

from mibench.commands import options
from mibench.commands.run import count_states
from mibench.commands.selection import Selection, nothing_is_garbage, of_table
from mibench.commands.shared import RefusedError, refusing


@click.command()
@of_table
@nothing_is_garbage()
def status(selection: Selection) -> None:
    """Show how far a table is, and why stages failed.

    A line for each row and seed of TABLE; nothing is computed.

    Example: mibench status digits
    """
    from mibench.reporting.reading import reason
    from mibench.running.stages import graph

    with refusing():
        grid = selection.grid
    states, failed = grid.store.states(grid.stages()), grid.store.failed()
    lines = []
    for label, records in grid.records.items():
        for seed, record in enumerate(records):
            alike = Counter(f"{s.describe()}: {states[s.key]}" for s in graph([record]))
            texts = (f"{text} ({n} times)" if n > 1 else text for text, n in alike.items())
            lines.append(f"{label}, seed {seed}\n  {', '.join(texts)}")
            if states[record.key] != "done" and (why := reason(record, grid.store, failed)):
                lines.append(f"  the last time, {why}")
    click.echo("\n".join([*lines, count_states(states)]))


def _names(_: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Returns the names that an option lists."""
    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise click.BadParameter("a name is empty: write one comma between names", param=option)
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.BadParameter(f"{twice[0]!r} is named twice", param=option)
    return names


@click.command()
@of_table
@options.records
@click.option(
    "--format", "form", type=click.Choice(["text", "csv", "json", "latex", "markdown"]),
    default="text", show_default=True, help="How to print it.",
)  # fmt: skip
@click.option(
    "--reported/--measured-only", default=True, show_default=True,
    help="Show a paper's numbers too.",
)  # fmt: skip
@click.option("--standalone", is_flag=True, help="With latex, a document that compiles by itself.")
@click.option(
    "--budgets", is_flag=True,
    help="What attacks spent, in place of scores: steps, answers of the target, seconds, memory.",
)  # fmt: skip
@options.controls
@click.option(
    "--columns", metavar="NAME,...", callback=_names,
    help="These metrics, in this order; `mibench list metrics` has their names.",
)  # fmt: skip
@click.option("--caption", default="", metavar="TEXT", help="In place of the table's own.")
@click.option("--decimals", type=click.IntRange(0, 10), help="Of every number. [default: 2]")
@click.option(
    "--notes", type=click.Choice(["none", "short", "full"]), default="full", show_default=True,
    help="Footnotes; short: what numbers, arrows and marks mean.",
)  # fmt: skip
@click.option(
    "--transpose", is_flag=True, help="Metrics as rows, attacks and defenses as columns."
)
@click.option("--label", default="", metavar="NAME", help="With latex, a \\label of the table.")
@nothing_is_garbage()
def table(
    selection: Selection, form: str, reported: bool, standalone: bool, budgets: bool,
    controls: bool, columns: tuple[str, ...], **look: Any,  # noqa: ANN401 - fields of a Look
) -> None:  # fmt: skip
    """Print a table again, in a form to read, to plot or to publish.

    The numbers of TABLE come from the store or from records alone, and TABLE+TABLE prints tables
    side by side. A column that the table was not run with is scored from the evidence in the
    store. What is missing prints as --; if all is missing, that is an error.

    Example: mibench table digits+digits-controls --columns accuracy,attack_acc --decimals 1
    """
    from mibench.reporting import budgets as costs
    from mibench.reporting.forms import side_by_side
    from mibench.reporting.latex import standalone as document
    from mibench.reporting.results import collect
    from mibench.reporting.sheet import Look

    with refusing():
        if standalone and form != "latex":
            raise ValueError("--standalone goes with --format latex")
        given = Look(reported=reported, **look)
        changes = [name for name in look if getattr(given, name) != getattr(Look(), name)]
        if changes and form in ("csv", "json"):
            raise ValueError(f"--{changes[0]} goes with --format text, latex or markdown")
        check_label(given.label, form)
        if budgets and (form != "text" or controls or columns or changes):
            raise ValueError(
                "--budgets prints text, and goes with no option of columns, controls or looks"
            )
        if budgets:
            rows = costs.spent(selection.grid)
            if not any(rows.values()):
                raise ValueError(selection.gap())
            caption = selection.grid.table.caption
            click.echo(costs.render(caption, rows, selection.grid.seeds), nl=False)
            return
        parts = selection.parts
        names = [part.table.name for part in parts]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is named twice: tables side by side have other names")
        tables, gaps = [], []
        for part in parts:
            grid = part.with_columns(columns) if columns else part.grid
            if controls:
                grid = replace(grid, controls=part.with_controls().controls)
            results = collect(grid)
            tables.append(results)
            # Holes say themselves why a row is not there.
            if not any(results.found.values()) and not results.holes:
                gaps.append(part.gap())
            elif (
                part.published is None
                and "attack_acc" in grid.table.columns
                and (controls or form == "text")
            ):
                part.note_controls(grid.controls)
        text = side_by_side(tables, form, given)
    click.echo(document(text) if standalone else text, nl=False)
    if len(gaps) == len(parts):
        raise RefusedError("; ".join(gaps))
    for gap in gaps:
        click.echo(f"note: {gap}", err=True)


def check_label(label: str, form: str) -> None:
    """Raises ValueError if LaTeX could not take a label, or is not printed."""
    if label and form != "latex":
        raise ValueError("--label goes with --format latex")
    if not re.fullmatch(r"[\w:./+-]*", label, re.ASCII):
        raise ValueError(f"--label takes letters, digits and : . _ / + -, got {label!r}")
