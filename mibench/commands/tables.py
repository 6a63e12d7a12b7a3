"""The commands that read a table from the store: status, table, events; and list."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from mibench.commands.shared import (
    Records,
    choose_table,
    count_states,
    folder,
    into,
    note_gap,
    nothing_is_garbage,
    plan,
    refusing,
    what,
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
@nothing_is_garbage()
def table(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, form: str, reported: bool, standalone: bool,
) -> None:  # fmt: skip
    """Print TABLE from the store alone; gaps print as --."""
    from mibench.benchmarks import export
    from mibench.store import Store

    with refusing():
        if standalone and form != "latex":
            raise ValueError("--standalone goes with --format latex")
        chosen = choose_table(table, rows, settings, protocol)
        results = export.collect(chosen, plan(chosen, seeds, data), Store(store))
    if not any(results.found.values()):
        note_gap(chosen, rows, seeds, store)
    text = export.render(results, form, reported=reported)
    click.echo(export.standalone(text) if standalone else text, nl=False)


@click.command()
@what
@into(folder, "One folder per prior.", "mibench-out/events")
def events(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, out: Path,
) -> None:  # fmt: skip
    """Write how TABLE's priors trained as TensorBoard event files; compute nothing."""
    from mibench.benchmarks.stages import PriorStage, graph
    from mibench.benchmarks.tensorboard import write_events
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
        click.echo(f"note: no finished prior in {store} has kept statistics", err=True)


@click.command("list")
@click.argument("what", type=click.Choice(["tables", "attacks", "defenses", "tasks", "metrics"]))
def list_(what: str) -> None:
    """List names, each with a line that says what it is."""
    for name, line in registry(what):
        click.echo(f"{name:26s} {line}".rstrip())
    if sys.flags.optimize > 1 and what != "tables":
        click.echo("note: Python drops descriptions under PYTHONOPTIMIZE=2 or -OO", err=True)


def show_states(records: Records, store: Path) -> None:
    """Prints a line for every row and seed: which of its stages are in the store."""
    from collections import Counter

    from mibench.benchmarks.holes import reason
    from mibench.benchmarks.stages import graph
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
    """Yields the names of a kind of component and their first docstring lines."""
    if what == "tables":
        from mibench.benchmarks.tables import TABLES

        for name, table in TABLES.items():
            yield name, table.caption + (f" [{table.source}]" if table.source else "")
        return
    if what == "metrics":
        from mibench.evaluation import METRICS

        for name, metric in METRICS.items():
            yield name, (metric.compute.__doc__ or "").split("\n")[0]
        return
    from mibench.attacks import ATTACKS
    from mibench.data import TASKS
    from mibench.defenses import DEFENSES

    components: dict[str, dict[str, type]] = {
        "attacks": dict(ATTACKS), "defenses": dict(DEFENSES), "tasks": dict(TASKS),
    }  # fmt: skip
    for name, cls in components[what].items():
        text = cls.__doc__ or ""
        if text.startswith(f"{cls.__name__}("):  # a dataclass's own, where Python runs with -OO
            text = ""
        yield name, text.split("\n")[0]
