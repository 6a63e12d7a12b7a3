"""The commands store ...: what is damaged in a store, and what is not needed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from mibench.commands import options
from mibench.commands.selection import Selection
from mibench.commands.shared import RefusedError, fail, refusing


@click.group("store")
def store_() -> None:
    """Find damage in a store, and delete what is not needed."""


@store_.command()
@click.option(
    "--partial", "which", flag_value="partial", default=True,
    help="What interrupted stages left (default).",
)  # fmt: skip
@click.option(
    "--orphans", "which", flag_value="orphans",
    help="Finished stages that no built-in table needs (at its defaults).",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be.")
@click.option(
    "--seeds", type=options.number_of_seeds, default=10, show_default=True,
    help="Seeds whose stages --orphans keeps.",
)  # fmt: skip
@options.store
@options.data
def clean(which: str, yes: bool, seeds: int, store: Path, data: Path) -> None:
    """Free disk space: list what is not needed, and delete it with --yes.

    Example: mibench store clean --orphans
    """
    from mibench.store.lease import LEASE_SECONDS, is_held

    check_there(store)
    with refusing():
        paths = sorted(left_over(store) if which == "partial" else orphans(store, seeds, data))
    for path in paths:
        if is_held(path.with_name(f"{path.name.partition('.')[0]}.lease"), LEASE_SECONDS):
            click.echo(f"left {path}: its stage is being computed", err=True)
            continue
        with suppress(FileNotFoundError):  # it is gone since: its stage ended in the meantime
            size = sum(f.lstat().st_size for f in (path, *path.rglob("*")) if not f.is_dir())
            if yes:
                delete(path)
            click.echo(f"{'deleted' if yes else 'would delete'} {path} ({size / 1e6:.1f} MB)")
    if not paths:
        click.echo("nothing to delete")


def delete(path: Path) -> None:
    """Deletes a file, a link or a folder with what is in it."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{path.name}.partial.gone")  # half deleted is not done
        shutil.rmtree(path.rename(aside))
    else:
        path.unlink()


def check_there(store: Path) -> None:
    """Refuses a store that is not there."""
    if not store.is_dir():
        raise RefusedError(f"there is no store at {store}")


def left_over(store: Path) -> Iterator[Path]:
    """Yields what interrupted stages left, and what was damaged."""
    from mibench.store import QUARANTINE

    for pattern in ("*/*.partial*", "*/*.gone.*", f"{QUARANTINE}/*/*"):
        yield from store.glob(pattern)
    for suffix in (".lease", ".failed"):
        for path in store.glob(f"*/*{suffix}"):
            if path.with_suffix("").exists():  # it was killed between its last two steps
                yield path


@store_.command()
@options.store
@click.option("--repair", is_flag=True, help="Move what is damaged aside, to be computed anew.")
def check(store: Path, repair: bool) -> None:
    """Read every finished stage and name those that are damaged.

    Exit status 1 if any is.

    Example: mibench store check --repair
    """
    from mibench.store import DamagedError, move_aside, read_stage

    check_there(store)
    checked = damaged = moved = 0
    with refusing():
        for path in finished(store):
            checked += 1
            try:
                read_stage(path)
            except DamagedError as error:
                damaged += 1
                where = f", moved to {move_aside(path)}" if repair else ""
                moved += repair
                click.echo(f"{error}{where}", err=True)
            except OSError as error:
                damaged += 1
                click.echo(f"{path} cannot be read ({error.strerror})", err=True)
    if not checked:
        raise RefusedError(f"there is no finished stage in {store}")
    click.echo(f"{checked} stages read, {damaged} of them damaged")
    if damaged and moved == damaged:
        fail(f"{moved} moved aside; run again to compute them anew")
    if damaged:
        hint = "" if repair else "; --repair moves it aside, and the next run computes it anew"
        fail(f"{store} holds what is damaged{hint}")


def finished(store: Path) -> Iterator[Path]:
    """Yields the folders of finished stages, and what lies where one should, by name."""
    from mibench.store import QUARANTINE

    for path in sorted(store.glob("*/*")):
        if path.parent.name != QUARANTINE and "." not in path.name:
            yield path


def orphans(store: Path, seeds: int, data: Path) -> Iterator[Path]:
    """Yields finished stages that no built-in table needs.

    What belongs to a task whose raw data cannot be read is kept, because nobody knows which of it
    a table needs.
    """
    from mibench.benchmarks.tables import TABLES
    from mibench.reporting.cautions import control_table
    from mibench.reporting.diagnostics import dependence_stages
    from mibench.reporting.queries import curve_stages
    from mibench.running.grid import Grid

    kept: set[str] = set()
    unread: set[str] = set()
    for name, table in TABLES.items():
        try:
            grid = Selection(name, seeds=seeds, root=store, data=data).grid
        except (FileNotFoundError, ValueError):
            unread |= {cell.setting.task.name for cell in table.rows.values()}
            continue
        kept |= {stage.key for stage in grid.stages()}
        if "attack_acc" in table.columns:
            controls = Grid.plan(control_table(table), seeds, data, grid.store)
            kept |= {stage.key for stage in controls.stages()}
        kept |= {s.key for own in dependence_stages(grid.records).values() for s in own}
        curves = (s for own in curve_stages(grid.records).values() for s in own)
        kept |= {stage.key for curve in curves for stage in (curve, curve.inversion)}
    if unread:
        names = ", ".join(sorted(unread))
        click.echo(f"keeping all of {names}: the data is not readable under {data}", err=True)
    tasks = tasks_of(store)
    for path in finished(store):
        if path.is_dir() and path.name not in kept and tasks.get(path.name) not in unread:
            yield path


def tasks_of(store: Path) -> dict[str, str]:
    """Returns stage key → the task it rests on, as the stages' own specs say."""
    tasks: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for path in store.glob("*/*/spec.json"):
        try:
            spec = dict(json.loads(path.read_text(encoding="utf-8")))
            if path.parent.parent.name == "images":
                tasks[path.parent.name] = spec["task"]["is"]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # it is damaged
        listed = [v if isinstance(v, list) else [v] for v in spec.values()]
        fields = [v for values in listed for v in values]
        needs[path.parent.name] = [v["key"] for v in fields if isinstance(v, dict) and "key" in v]
    while more := {
        key: tasks[need]
        for key, others in needs.items()
        if key not in tasks
        for need in others
        if need in tasks
    }:
        tasks |= more
    return tasks
