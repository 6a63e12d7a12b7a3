"""The commands records ...: files of scores with their provenance; and the command compare."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from mibench.commands import options
from mibench.commands.selection import Selection, labelled, of_table
from mibench.commands.shared import check_writable, escaped, fail, refusing
from mibench.spec import unknown

REPLACED = (
    "note: {} records in {} told other values of the same cells, as another kind of machine gives "
    "them, and are replaced; with --keep they stay"
)


@click.group("records")
def records_() -> None:
    """Write, publish, check and collect record files."""


@records_.command()
@of_table
@options.out(options.folder, "Folder of the files.", "mibench-out/records")
@options.controls
def write(selection: Selection, out: Path, controls: bool) -> None:
    """Write one file for each finished cell, to publish or to keep.

    A record file holds the scores of a cell of TABLE and where they come from. `mibench records
    check` checks such files, and `mibench records board` collects them.

    Example: mibench records write smoke -o records
    """
    from mibench.reporting import records

    with refusing():
        grid = selection.with_controls() if controls else selection.grid
        if not grid.finished(grid.last):
            raise ValueError(selection.gap())
        rows = labelled(grid)
        cells = {record.cell for record in grid.last}
        for label in [label for label in rows if label not in grid.records]:
            # One file for each cell: rows share controls, and a row can be one.
            rows[label] = [record for record in rows[label] if record.cell not in cells]
            cells |= {record.cell for record in rows[label]}
        check_writable(out)
        paths = records.write(replace(grid, records=rows), out)
    for path in paths:
        click.echo(path)


@records_.command()
@click.argument("table")
@click.option(
    "--seeds", type=options.number_of_seeds, default=1, show_default=True, help="How many."
)
@click.option(
    "--store", type=options.folder, help="Write its records first; without it, they are there."
)
@options.data
@click.option(
    "-o", "--out", type=options.folder, default=Path("results"), show_default=True,
    help="Folder of the published tables.",
)  # fmt: skip
@click.option(
    "--keep", is_flag=True, help="With --store: leave records that are there as they are."
)
def publish(table: str, seeds: int, store: Path | None, data: Path, out: Path, keep: bool) -> None:
    """Make the folder OUT/TABLE that others can check and cite.

    It has the records and, made of these alone, the table in every form and the command that
    computes it.

    Example: mibench records publish smoke --store mibench-store
    """
    from mibench.reporting import figures, records
    from mibench.reporting.published import Published, files_of
    from mibench.store import put

    with refusing():
        if keep and store is None:
            raise ValueError("--keep goes with --store, which writes records")
        selection = Selection(table, seeds=seeds, root=store or Path(), data=data)
        chosen = selection.table
        place = out / chosen.name
        at = place / "records"
        if store is not None:
            if not selection.grid.finished(selection.grid.last):
                raise ValueError(f"nothing of {chosen.name} is in {store}: nothing is published")
            check_writable(at)
        there = Published(at)
        if (count := there.seeds(chosen)) > seeds:
            raise ValueError(
                f"{at} has records of {count} seeds: publish them with --seeds {count}, or move "
                "those of further seeds away"
            )
        if store is not None:
            before = there
            written = records.write(
                selection.grid, at, compact=True, there=before if keep else None
            )
            cells = [cell for done in selection.grid.done.values() for cell in done.values()]
            old = [cell for cell in cells if before.state(cell) == "done"]
            files = [] if keep else [path for cell in old for path in before.files(cell)]
            # Under a key of another version; copies in folders below are somebody's own.
            under = [path for path in files if path.parent == at and path not in written]
            records.remove_replaced([path for path in under if path.exists()])
            there = Published(at)
            if changed := [cell for cell in old if before.read(cell)[0] != there.read(cell)[0]]:
                click.echo(REPLACED.format(len(changed), at), err=True)
        texts = files_of(chosen, seeds, there)
        results = there.results(chosen, seeds)
        for name, text in texts.items():
            put(place / name, text)
            click.echo(place / name)
    figures.draw_tradeoff(
        results, place / f"{chosen.name}-tradeoff.png", texts[f"{chosen.name}.csv"]
    )


@records_.command()
@click.argument("paths", nargs=-1, metavar="FILE...", type=options.anywhere)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a record and stop.")
def check(paths: Sequence[Path], schema: bool) -> None:
    """Say which record files are sound.

    FILE can be a folder: then the files in and below it are checked. A sound file has the
    published schema and the content of its sha256; its keys are the hashes of what it says
    decided it; and its scores follow from its values. That finds damage, careless edits and
    scores of another spec. It cannot find values that were made up together with the hashes:
    only running the cell again can. Exit status 1 if a file is not sound.

    Example: mibench records check results
    """
    from mibench.reporting import records, verify

    if schema:
        click.echo(json.dumps(records.schema("record"), indent=2))
        return
    with refusing():
        if not paths:
            raise ValueError("name a record file or a folder of them")
        found = records.find(paths)
        if others := [str(path) for path in paths if not path.is_dir() and path not in found]:
            raise ValueError(
                f"no record file, whose name ends in {' or '.join(records.SUFFIXES)}: "
                f"{', '.join(others)}; leave out what is none"
            )
        if not found:
            raise ValueError(f"there is no record file in {', '.join(map(str, paths))}")
    sound = bad = scores = again = 0
    for verdict in map(verify.check, found):  # each is told once it is checked
        if verdict.record is None:
            bad += 1
            click.echo(escaped(f"bad  {verdict.path}: {verdict.problem}"))
            continue
        sound += 1
        count = len(verdict.record["payload"]["scores"])
        scores += count
        again += verdict.recomputed
        recomputed = f"{verdict.recomputed} of {count} scores computed again"
        click.echo(escaped(f"ok   {verdict.path} ({recomputed})"))
    click.echo(
        f"{len(found)} record files: {sound} sound, {bad} not sound; "
        f"{again} of {scores} scores computed again"
    )
    if bad:
        fail(f"{bad} of {len(found)} record files are not sound")


@records_.command()
@click.argument("sources", nargs=-1, required=True, metavar="DIR...", type=options.anywhere)
@options.out(options.anywhere, "Folder of the page.", "mibench-out/leaderboard")
def board(sources: Sequence[Path], out: Path) -> None:
    """Write one web page of the records of many people.

    Every file in and below DIR is checked as by `mibench records check`. The page names those
    that fail and leaves their numbers out.

    Example: mibench records board results
    """
    from mibench.reporting import records, verify
    from mibench.reporting.page import leaderboard
    from mibench.store import put

    is_page = out.suffix == ".html" and not out.is_dir()
    path = out if is_page else out / "index.html"
    with refusing():
        verdicts = verify.first_told([verify.check(path) for path in records.find(sources)])
        root = sources[0] if len(sources) == 1 else Path()
        text = leaderboard(verdicts, root)
        check_writable(path.parent)
        put(path, text)
    if is_page:
        click.echo(f"note: -o names a folder; {out} was taken for the page itself", err=True)
    for verdict in verdicts:
        if verdict.problem:
            click.echo(escaped(f"left out {verdict.path}: {verdict.problem}"), err=True)
    click.echo(path)


@click.command()
@click.argument("a", type=options.anywhere)
@click.argument("b", type=options.anywhere)
@click.option("--by-key", is_flag=True, help="Say which equal keys have equal bits instead.")
@click.option(
    "--margin", "margins", multiple=True, metavar="METRIC=NUMBER",
    help="Also test whether a metric is equivalent: whether the mean difference over equal seeds "
    "lies within ± NUMBER. May be given for several metrics.",
)  # fmt: skip
def compare(a: Path, b: Path, by_key: bool, margins: Sequence[str]) -> None:
    """Say how two results differ, and whether by more than chance.

    A and B are stores, record files, or folders of those. Rows are paired by label or, with a
    store, which knows none, by task, attack and defense. Differences are B minus A. With
    --by-key results are paired by key: it says how many agree to the bit, which stage is the
    first that differs, and what each side was computed on.

    Example: mibench compare results/digits mibench-store
    """
    from mibench.reporting import bits
    from mibench.reporting.compare import compare as side_by_side
    from mibench.reporting.compare import in_text
    from mibench.reporting.runs import runs

    with refusing():
        within = dict(map(_margin, margins))
        if len(within) < len(margins):
            raise ValueError("--margin takes one number for each metric, and one is named twice")
        if by_key and within:
            raise ValueError("--margin is about scores, and --by-key about bits: give one of them")
        sides = []
        for path in (a, b):
            side, refused = runs(path)
            for verdict in refused:
                click.echo(escaped(f"left out {verdict.path}: {verdict.problem}"), err=True)
            if not side:
                raise ValueError(f"there is no sound record in {path}")
            sides.append(side)
        if by_key:
            text = bits.in_text(bits.agreement(*sides))
        else:
            text = in_text(side_by_side(sides[0], sides[1], within))
    click.echo(text, nl=False)


def _margin(setting: str) -> tuple[str, float]:
    """Returns the metric and the number of METRIC=NUMBER.

    Raises:
        ValueError: If it is not that: an unknown metric, or a number that is not above 0.
    """
    from mibench.evaluation import METRICS

    metric, _, text = setting.partition("=")
    if metric not in METRICS:
        raise ValueError(unknown("metric", metric, METRICS))
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(f"--margin takes METRIC=NUMBER with a number above 0, got {setting!r}")
    return metric, number
