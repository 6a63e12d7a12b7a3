"""The commands status and table: what a store has of a table."""

from collections import Counter

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
    from mibench.reporting.results import reason
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
@nothing_is_garbage()
def table(
    selection: Selection, form: str, reported: bool, standalone: bool, budgets: bool,
    controls: bool,
) -> None:  # fmt: skip
    """Print a table again, in a form to read, to plot or to publish.

    The numbers of TABLE come from the store or from records alone. What is missing prints as --;
    if all is missing, that is an error.

    Example: mibench table digits --format latex
    """
    from mibench.reporting import budgets as costs
    from mibench.reporting.forms import render
    from mibench.reporting.latex import standalone as document
    from mibench.reporting.results import collect

    with refusing():
        if standalone and form != "latex":
            raise ValueError("--standalone goes with --format latex")
        if budgets and (form != "text" or controls):
            raise ValueError("--budgets prints text, without --controls")
        grid = selection.with_controls() if controls else selection.grid
        if budgets:
            rows = costs.spent(grid)
            if not any(rows.values()):
                raise ValueError(selection.gap())
            click.echo(costs.render(grid.table.caption, rows, grid.seeds), nl=False)
            return
        results = collect(grid)
        # Holes say themselves why a row is not there.
        is_empty = not any(results.found.values()) and not results.holes
        if selection.published is None and not is_empty and (controls or form == "text"):
            selection.note_controls(grid.controls)
    text = render(results, form, reported=reported)
    click.echo(document(text) if standalone else text, nl=False)
    if is_empty:
        raise RefusedError(selection.gap())
