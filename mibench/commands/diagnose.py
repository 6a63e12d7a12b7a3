"""The command diagnose."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.run import fetch_weights, pick_device, pick_jobs
from mibench.commands.shared import (
    check_writable,
    choose_table,
    fail,
    fetch,
    plan,
    refusing,
    what,
)

SHOWN = ("nhsic", "coco_frobenius")
"""Measures that are printed and drawn unless others are named: those that defenses train with."""


@click.command()
@what
@click.option(
    "--measure",
    "measures",
    multiple=True,
    metavar="NAME",
    default=SHOWN,
    show_default=True,
    help="What is printed and drawn; the CSV has every measure.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--executor", default="auto", show_default=True, help="serial, or local[N].")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads of a stage.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mibench-out"),
    envvar="MIBENCH_OUT",
    show_default=True,
    help="CSV, PNG and PDF.",
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--verbose", is_flag=True, help="A line for every stage that starts and ends.")
def diagnose(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, measures: Sequence[str], device: str, executor: str, threads: int,
    out: Path, download: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Measure how TABLE's targets depend on their input, and whether that goes with leakage.

    Trains targets that are not there yet; leakage is of the records that `mibench run` left.
    """
    from mibench.defenses.dependence import MEASURES

    with refusing():
        if unknown := [m for m in measures if m not in MEASURES]:
            raise ValueError(f"unknown measure {unknown[0]!r}; known: {', '.join(MEASURES)}")
        chosen = choose_table(table, rows, settings, protocol)
        if download:
            fetch({c.setting.task for c in chosen.rows.values()}, data)
        records = plan(chosen, seeds, data)
        bench_device = pick_device(device)
        jobs = pick_jobs(executor, bench_device)
        check_writable(store, out)
    from mibench.benchmarks import diagnostics, diagnostics_files
    from mibench.benchmarks.executors import Bench, execute
    from mibench.benchmarks.progress import display
    from mibench.benchmarks.stages import graph
    from mibench.store import Store

    done = Store(store)
    stages = graph(s for own in diagnostics.dependence_stages(records).values() for s in own)
    missing = [s for s in stages if done.state(s) != "done"]
    with refusing():
        fetch_weights(missing, data)
    file = Path(table) if table.endswith(".py") else None
    watcher = display(len(missing), quiet=quiet, verbose=verbose)
    try:
        outcome = execute(stages, Bench(store, data, bench_device, threads, jobs, file), watcher)
    except KeyboardInterrupt:
        watcher.close()
        fail("interrupted; run the same command again to go on where it was")
    watcher.close()
    found = diagnostics.diagnose(records, done)
    if found.values:
        changed = bool(rows or settings or protocol)
        stem = chosen.name + "-modified" * changed + "-incomplete" * bool(outcome.failures)
        written = diagnostics_files.write(found, measures, out / f"{stem}-dependence")
        click.echo(diagnostics_files.text(found, measures) + "\n")
        click.echo("\n".join(map(str, written)))
    computed = f"{outcome.computed} stages computed, {outcome.cached} found in {store}"
    click.echo("nothing computed: " * (not outcome.computed) + computed, err=True)
    if outcome.failures:
        names = {s.key: s.describe() for s in stages}
        told = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        fail(f"{told} ({len(outcome.skipped)} other stages needed what failed)")
