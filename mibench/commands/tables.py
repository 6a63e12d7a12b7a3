"""The commands that read a table from the store: status, table, events; and list."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mibench.commands.describe import KINDS, registries
from mibench.commands.shared import (
    Records,
    RefusedError,
    choose_table,
    count_states,
    folder,
    gap,
    into,
    note_controls,
    nothing_is_garbage,
    opened,
    plan,
    planned_grid,
    published,
    refusing,
    what,
    with_controls,
)


@click.command()
@what
@nothing_is_garbage()
def status(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path,
) -> None:  # fmt: skip
    """Show for every row of TABLE which stages are done; compute nothing."""
    with refusing():
        records = plan(choose_table(table, rows, settings, protocol), seeds, data)
    show_states(records, store)


@click.command()
@what
@published
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "json", "latex", "markdown"]),
    default="text",
    show_default=True,
)
@click.option(
    "--reported/--measured-only",
    default=True,
    show_default=True,
    help="Whether a paper's numbers stand beside.",
)
@click.option("--standalone", is_flag=True, help="With latex, a whole document.")
@with_controls
@nothing_is_garbage()
def table(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, published: Path | None, form: str, reported: bool, standalone: bool,
    controls: bool,
) -> None:  # fmt: skip
    """Print TABLE from the store or from records alone.

    Gaps print as --, and nothing at all is an error.
    """
    from mibench.reporting.forms import render
    from mibench.reporting.latex import standalone as document
    from mibench.reporting.results import collect

    with refusing():
        if standalone and form != "latex":
            raise ValueError("--standalone goes with --format latex")
        chosen = choose_table(table, rows, settings, protocol)
        done = opened(store, published)
        grid = planned_grid(chosen, seeds, data, done, controls=controls)
        results = collect(grid)
        # Holes say themselves why a row is not there.
        is_empty = not any(results.found.values()) and not results.holes
        if published is None and not is_empty and (controls or form == "text"):
            beside = grid.controls.records if grid.controls else {}
            note_controls(chosen, beside, rows, seeds, store)
    text = render(results, form, reported=reported)
    click.echo(document(text) if standalone else text, nl=False)
    if is_empty:
        raise RefusedError(gap(chosen, rows, seeds, done.root))


@click.command()
@what
@into(folder, "One folder per prior.", "mibench-out/events")
def events(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, out: Path,
) -> None:  # fmt: skip
    """Write how TABLE's priors trained as TensorBoard event files; compute nothing."""
    from mibench.reporting.tensorboard import write_events
    from mibench.running.stages import PriorStage, graph
    from mibench.store import Store

    done = Store(store)
    written = 0
    with refusing():
        records = plan(choose_table(table, rows, settings, protocol), seeds, data)
        for stage in graph(r for rs in records.values() for r in rs):
            if not isinstance(stage, PriorStage) or done.state(stage) != "done":
                continue
            if history := done.load(stage).get("history"):
                path = out / f"{stage.spec.name}-{stage.key}"
                write_events(history, path)
                click.echo(path)
                written += 1
        if not written:
            raise ValueError(f"no finished prior of {table} in {store} has kept statistics")


@click.command("list")
@click.argument("what", type=click.Choice(KINDS))
def list_(what: str) -> None:
    """List names, each with a line that says what it is."""
    for name, line in registry(what):
        click.echo(f"{name:26s} {line}".rstrip())
    if sys.flags.optimize > 1 and what != "tables":
        click.echo("note: Python drops descriptions under PYTHONOPTIMIZE=2 or -OO", err=True)


def show_states(records: Records, store: Path) -> None:
    """Prints a line for every row and seed: which of its stages are in the store."""
    from collections import Counter

    from mibench.reporting.results import reason
    from mibench.running.stages import graph
    from mibench.store import Store

    every = graph(r for rs in records.values() for r in rs)
    states, failed = Store(store).states(every), Store(store).failed()
    texts = {s.key: f"{s.describe()}: {states[s.key]}" for s in every}
    lines = []
    for label, stages in records.items():
        for seed, record in enumerate(stages):
            alike = Counter(texts[s.key] for s in graph([record]))
            told = (f"{text} ({n} times)" if n > 1 else text for text, n in alike.items())
            lines.append(f"{label}, seed {seed}\n  {', '.join(told)}")
            if states[record.key] != "done" and (why := reason(record, Store(store), failed)):
                lines.append(f"  the last time, {why}")
    click.echo("\n".join([*lines, count_states(states)]))


def registry(what: str) -> Iterator[tuple[str, str]]:
    """Yields the names of a kind of component, each with a line that says what it is."""
    for name, component in registries()[what].items():
        if what == "tables":
            yield name, component.caption + f" [{component.source}]" * bool(component.source)
        elif what == "protocols":
            own = ", ".join(f"{field}={value}" for field, value in component.items())
            yield name, own or "the usual one, from which the others differ as told here"
        else:
            documented = component.compute if what == "metrics" else component
            text = documented.__doc__ or ""
            if text.startswith(f"{documented.__name__}("):
                text = ""  # a dataclass's own, where Python runs with -OO
            yield name, text.split("\n")[0]
