"""The commands of record files: record, verify, compare."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import (
    anywhere,
    check_writable,
    choose_table,
    fail,
    folder,
    gap,
    holds_any,
    into,
    number_of_seeds,
    plan,
    refusing,
    what,
    with_controls,
)


@click.command()
@what
@into(folder, "Folder of the files.", "mibench-out/records")
@with_controls
def record(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, out: Path, controls: bool,
) -> None:  # fmt: skip
    """Write a record file for every finished cell of TABLE: scores with their provenance.

    Such a file is what to publish: `mibench verify` checks it, `mibench leaderboard` collects.
    """
    from mibench.reporting import records
    from mibench.reporting.cautions import control_table
    from mibench.running.grid import Grid
    from mibench.store import Store

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        stages = plan(chosen, seeds, data)
        done = Store(store)
        if not holds_any(stages, done):
            raise ValueError(gap(chosen, rows, seeds, store))
        if controls:
            known = {record.cell for own in stages.values() for record in own}
            for label, own in plan(control_table(chosen), seeds, data).items():
                # One file for each cell: rows share controls, and a row can be one.
                new = [record for record in own if record.cell not in known]
                known |= {record.cell for record in new}
                stages[f"{label}, samples of its prior"] = new
        check_writable(out)
        written = records.write(Grid(chosen, stages, done), out)
    for path in written:
        click.echo(path)


@click.command()
@click.argument("table")
@click.option("--seeds", type=number_of_seeds, default=1, show_default=True)
@click.option("--store", type=folder, help="Write the records in it first; else they are there.")
@click.option(
    "--data",
    type=folder,
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="Raw data sets, with --store.",
)
@click.option("-o", "--out", type=folder, default=Path("results"), show_default=True)
def publish(table: str, seeds: int, store: Path | None, data: Path, out: Path) -> None:
    """Write OUT/TABLE: records, and from these alone the table in every form and its command."""
    from mibench.reporting import figures, published, records
    from mibench.running.grid import Grid
    from mibench.store import Store

    with refusing():
        chosen = choose_table(table, (), (), None)
        place = out / chosen.name
        if store is not None:
            grid = Grid.plan(chosen, seeds, data, Store(store))
            if not grid.finished(grid.last):
                raise ValueError(f"nothing of {chosen.name} is in {store}: nothing is published")
            check_writable(place)
            records.write(grid, place / "records", compact=True)
        told = published.Published(place / "records")
        if (there := told.seeds(chosen)) > seeds:
            raise ValueError(
                f"{place / 'records'} has records of {there} seeds: publish them with --seeds "
                f"{there}, or move those of further seeds away"
            )
        files = published.files_of(chosen, seeds, told)
        results = told.results(chosen, seeds)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
            click.echo(place / name)
    figures.draw_tradeoff(
        results, place / f"{chosen.name}-tradeoff.png", files[f"{chosen.name}.csv"]
    )


@click.command()
@click.argument("paths", nargs=-1, metavar="FILE...", type=anywhere)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a record and stop.")
def verify(paths: Sequence[Path], schema: bool) -> None:
    """Check record FILEs, and those in and below folders.

    A sound file has the published schema and the content of its sha256; its keys are the hashes
    of what it says decided it; and its scores follow from its values. That finds damage,
    careless edits and scores of another spec. It cannot find values that were made up together
    with the hashes: only running the cell again can. Exit status 1 if a file is not sound.
    """
    from mibench.reporting import records
    from mibench.reporting.verify import check

    if schema:
        click.echo(json.dumps(records.schema("record"), indent=2))
        return
    with refusing():
        if not paths:
            raise ValueError("name a record file or a folder of them")
        verdicts = [check(path) for path in records.find(paths)]
        if not verdicts:
            raise ValueError(f"there is no record file in {', '.join(map(str, paths))}")
    for verdict in verdicts:
        if verdict.record is None:
            click.echo(f"bad  {verdict.path}: {verdict.problem}")
        else:
            of = len(verdict.record["payload"]["scores"])
            told = f"{verdict.recomputed} of {of} scores computed again"
            click.echo(f"ok   {verdict.path} ({told})")
    bad = sum(v.record is None for v in verdicts)
    sound = [v for v in verdicts if v.record]
    of = sum(len(v.record["payload"]["scores"]) for v in sound if v.record)
    click.echo(
        f"{len(verdicts)} record files: {len(sound)} sound, {bad} not sound; "
        f"{sum(v.recomputed for v in sound)} of {of} scores computed again"
    )
    if bad:
        fail(f"{bad} of {len(verdicts)} record files are not sound")


@click.command()
@click.argument("a", type=anywhere)
@click.argument("b", type=anywhere)
@click.option("--by-key", is_flag=True, help="Say which equal keys have equal bits instead.")
def compare(a: Path, b: Path, by_key: bool) -> None:
    """Set two results side by side: stores, record files, or folders of those.

    Rows are paired by label or, with a store, which knows none, by task, attack and defense.
    Differences are B minus A. With --by-key results are paired by key: it says how many agree
    to the bit, which stage is the first that differs, and what each side was computed on.
    """
    from mibench.reporting import bits
    from mibench.reporting.compare import compare as side_by_side
    from mibench.reporting.compare import in_text
    from mibench.reporting.runs import runs

    with refusing():
        sides = []
        for path in (a, b):
            found, refused = runs(path)
            for verdict in refused:
                click.echo(f"left out {verdict.path}: {verdict.problem}", err=True)
            if not found:
                raise ValueError(f"there is no sound record in {path}")
            sides.append(found)
        told = bits.in_text(bits.agreement(*sides)) if by_key else in_text(side_by_side(*sides))
    click.echo(told, nl=False)
