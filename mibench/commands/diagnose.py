"""The command diagnose."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.computing import compute, where
from mibench.commands.shared import (
    anywhere,
    check_writable,
    choose_table,
    fail,
    fetch,
    into,
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
@where
@into(anywhere, "CSV, PNG and PDF.")
def diagnose(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, measures: Sequence[str], device: str, executor: str,
    address: str | None, threads: int, download: bool, quiet: bool, verbose: bool, out: Path,
) -> None:  # fmt: skip
    """Measure how TABLE's targets depend on their input, and whether that goes with leakage.

    Trains targets that are not there yet; leakage is of the records that `mibench run` left.
    """
    from mibench.defenses.dependence import MEASURES
    from mibench.reporting import diagnostics
    from mibench.running.executors import Bench, choose_executor
    from mibench.spec import unknown
    from mibench.store import Store

    with refusing():
        if strange := [m for m in measures if m not in MEASURES]:
            raise ValueError(unknown("measure", strange[0], MEASURES))
        chosen = choose_table(table, rows, settings, protocol)
        if download:
            fetch({c.setting.task for c in chosen.rows.values()}, data)
        records = plan(chosen, seeds, data)
        place = choose_executor(executor, address)
        file = Path(table) if table.endswith(".py") else None
        bench = place.check(Bench(store, data, device, threads, file))
        check_writable(store, out)
    from mibench.running.stages import graph

    changed = bool(rows or settings or protocol)

    def show(complete: bool) -> None:
        found = diagnostics.diagnose(records, Store(store))
        if found.values:
            stem = chosen.name + "-modified" * changed + "-incomplete" * (not complete)
            click.echo(diagnostics.text(found, measures) + "\n")
            table = out / f"{stem}-dependence.csv"
            table.write_text(diagnostics.csv(found), encoding="utf-8")
            click.echo(table)
            try:
                for path in diagnostics.draw(found, measures, table.with_suffix("")):
                    click.echo(path)
            except ValueError as error:
                fail(f"could not draw them ({error}); the numbers are whole, and kept")

    stages = graph(s for own in diagnostics.dependence_stages(records).values() for s in own)
    compute(stages, bench, place, show, out, quiet=quiet, verbose=verbose)
