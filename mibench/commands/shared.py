"""What commands share: options, refusals, and the tables they name."""

import gc
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from mibench.commands.output import safe_output

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.data import Task
    from mibench.running.grid import Grid
    from mibench.running.stages import RecordStage
    from mibench.store import Stage, Store

ENDS = (
    "modified", "incomplete", "tradeoff", "training", "samples", "curves", "dependence",
    "reconstructions", "row",
)  # fmt: skip
"""What follows a table's name and a hyphen in names of its files."""

F = TypeVar("F", bound=Callable[..., Any])
Records = dict[str, list["RecordStage"]]


class RefusedError(click.ClickException):
    """Bad input: one sentence on stderr, exit status 2."""

    exit_code = 2


class Commands(click.Group):
    """Commands of which click, too, complains in one sentence, as does what cannot be printed."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Runs the command line that was given, and exits."""
        with safe_output():
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401
        """Parses the group's own options."""
        with in_one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Parses a command's options and runs it."""
        try:
            with in_one_sentence():
                return super().invoke(ctx)
        except OSError as error:
            if type(error).__name__ != "StoreError":  # whose module would import torch
                raise
            fail(str(error))


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Drops the usage lines that click puts before a complaint."""
    try:
        yield
    except click.UsageError as error:
        asks_for_help = type(error).__name__ == "NoArgsIsHelpError"
        if error.ctx is None or asks_for_help:
            raise
        sentence = " ".join(error.format_message().split()).rstrip(".")
        raise RefusedError(f"{sentence}; see {error.ctx.command_path} --help") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what our own code says of bad input into one sentence."""
    try:
        yield
    except KeyError as error:
        raise RefusedError(str(error.args[0])) from error
    except (ValueError, TypeError) as error:
        raise RefusedError(str(error)) from error
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        raise RefusedError(text) from error


class NamedPath(click.Path):
    """A path that is not empty: an unset variable of a script would mean the current folder."""

    def convert(self, value: Any, *context: Any) -> Any:  # noqa: ANN401
        """Refuses the empty text."""
        if value == "":
            self.fail("the path is empty", *context)
        return super().convert(value, *context)


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns a decorator that adds the options in the order given."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


anywhere = NamedPath(path_type=Path)
folder = NamedPath(path_type=Path, file_okay=False)
number_of_seeds = click.IntRange(1, 10_000)  # every seed is planned before one is computed
selection = apply(
    click.option("--rows", multiple=True, metavar="PATTERN", help="Only rows like 'BiDO-HSIC*'."),
    click.option("--set", "settings", multiple=True, metavar="PATH=VALUE",
                 help="Change a field of the cells, for example attack.steps=10."),
    click.option("--protocol", metavar="NAME",
                 help="Convention of evaluation: per-pass, kdd22, vmi, gmi, lomma or ppa."),
    click.option("--seeds", type=number_of_seeds, default=1, show_default=True,
                 help="How many seeds, from 0 on."),
    click.option("--store", type=anywhere, default=Path("mibench-store"),
                 envvar="MIBENCH_STORE", show_default=True, help="Finished stages."),
    click.option("--data", type=anywhere, default=Path("data"),
                 envvar="MIBENCH_DATA", show_default=True, help="Raw data sets."),
)  # fmt: skip
what = apply(click.argument("table"), selection)
with_controls = click.option(
    "--controls",
    is_flag=True,
    help="Also the Attack Acc of unoptimised samples of each row's prior, on the same target.",
)
published = click.option(
    "--records", "published", type=anywhere,
    help="Read the record files in and below this folder, in place of a store and raw data; "
    "without --seeds, all their seeds.",
)  # fmt: skip


def choose_table(
    name: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None
) -> "Table":
    """Returns the named table, or the one in a user's file, as the options change it."""
    from dataclasses import replace

    from mibench.benchmarks.tables import TABLES
    from mibench.evaluation import fields_of
    from mibench.spec import unknown

    if name.endswith(".py"):
        table = table_of(Path(name))
    elif name in TABLES:
        table = TABLES[name]
    else:
        raise KeyError(f"{unknown('table', name, TABLES)}, or a file NAME.py")
    if protocol is not None:
        fields = [f"protocol.{k}={v}" for k, v in fields_of(protocol).items()]
        table = replace(table.modified(fields), caption=f"{table.caption} (protocol {protocol})")
    if rows:
        table = table.only(rows)
    return table.modified(settings)


def table_of(path: Path) -> "Table":
    """Returns the one Table that a user's file defines."""
    from mibench.benchmarks.tables import Table
    from mibench.running.userfile import load_user_file

    module = load_user_file(path)
    tables = {id(v): v for v in vars(module).values() if isinstance(v, Table)}
    own = [t for n, t in vars(module).items() if isinstance(t, Table) and n == "TABLE"]
    if len(own or tables) != 1:
        raise ValueError(
            f"{path} must define one mibench Table (or name one of several TABLE), "
            f"found {len(tables)}"
        )
    table = own[0] if own else next(iter(tables.values()))
    check_name(table, path)
    return table


def check_name(table: "Table", path: Path) -> None:
    """Raises ValueError if an own table's files could not be named by it, or be a shipped one's.

    File systems may take small and capital letters for the same.
    """
    from mibench.benchmarks.tables import TABLES

    name = table.name
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
        raise ValueError(f"{path}: the table's name {name!r} cannot name its files")
    for shipped in TABLES.values():
        rest = name.casefold().removeprefix(shipped.name)
        taken = not rest or rest.startswith(tuple(f"-{word}" for word in ENDS))
        if name.casefold().startswith(shipped.name) and taken and table != shipped:
            raise ValueError(
                f"{path}: a table named {name} would overwrite files of mibench's table "
                f"{shipped.name}; give it another name"
            )


@contextmanager
def nothing_is_garbage() -> Iterator[None]:
    """Stops the collector, which looks through all again and again while a grid piles up."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.freeze()  # and so all counts as old, not as new and to be looked through at once
            gc.unfreeze()
            gc.enable()


@nothing_is_garbage()
def plan(table: "Table", seeds: int, data: Path) -> Records:
    """Returns the last stages of every row; reads the raw data's digest, computes nothing."""
    from mibench.running.grid import record_stages

    return record_stages(table, seeds, data)


def opened(store: Path, published: Path | None) -> "Store":
    """Returns the store, or the folder of records that is to be read as one.

    Raises:
        FileNotFoundError: If there is no such folder of records.
        ValueError: If a record is not sound, or a store is named too.
    """
    from mibench.reporting.published import Published
    from mibench.store import Store

    if published is None:
        return Store(store)
    source = click.get_current_context().get_parameter_source("store")
    if source is click.core.ParameterSource.COMMANDLINE:
        raise ValueError("--records is read in place of --store: name one of them")
    return Published(published)


def planned(table: "Table", seeds: int, data: Path, done: "Store") -> Records:
    """Returns the last stages of every row, as :func:`plan` does, or as the records have them.

    Raises:
        ValueError: If ``done`` is a folder of records, and none is of the table.
    """
    from mibench.reporting.published import Published

    if not isinstance(done, Published):
        return plan(table, seeds, data)
    if not (there := done.seeds(table)):
        others = ", ".join(done.tables())
        raise ValueError(
            f"no record in {done.root} is of a cell of {table.name}; they are of {others}"
            if others
            else f"there is no record file in {done.root}"
        )
    return done.stages(table, there if is_default("seeds") else seeds)


def planned_grid(
    table: "Table", seeds: int, data: Path, done: "Store", *, controls: bool = False
) -> "Grid":
    """Returns a table in a store or in records, with its controls if they are asked for."""
    from mibench.running.grid import Grid

    records = planned(table, seeds, data, done)
    beside = planned_controls(table, seeds, data, done) if controls else None
    return Grid(table, records, done, beside)


def planned_controls(
    table: "Table", seeds: int, data: Path, done: "Store", *, quiet: bool = False
) -> "Grid | None":
    """Returns the samples of each row's prior.

    Where no record is of any, none, and a note says so unless ``quiet``.
    """
    from mibench.reporting.cautions import control_table
    from mibench.reporting.published import Published
    from mibench.running.grid import Grid

    others = control_table(table)
    if not isinstance(done, Published):
        return Grid(others, plan(others, seeds, data), done)
    if not (there := done.seeds(others)):
        if not quiet:
            click.echo(
                f"note: no record in {done.root} is of samples of a prior, so nothing tells "
                "whether a low Attack Acc is privacy or a failed attack",
                err=True,
            )
        return None
    return done.grid(others, there if is_default("seeds") else seeds)


def refuse_records(published: Path | None, lacking: str) -> None:
    """Raises ValueError if records are to be read, which do not hold what is asked for."""
    if published is not None:
        raise ValueError(f"records hold scores and where they come from, but {lacking}; a store "
                         "that the table was run in holds them: --store")  # fmt: skip


def fetch(tasks: "Iterable[Task]", data: Path) -> None:
    """Downloads the raw data of those tasks that are not there."""
    for task in tasks:
        try:
            task.digest(data)
        except (FileNotFoundError, ValueError):
            task.download(data)


def check_writable(*folders: Path) -> None:
    """Makes the folders, and proves that files can be made in them."""
    for path in folders:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}") from error


def into(kind: click.Path, help: str, default: str = "mibench-out") -> Callable[[F], F]:
    """Returns the option that says where a command writes."""
    return click.option(
        "-o", "--out", type=kind, default=Path(default), show_default=True, help=help,
        envvar="MIBENCH_OUT" if default == "mibench-out" else None,
    )  # fmt: skip


def is_default(name: str) -> bool:
    """Whether the option of the running command was not given."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.DEFAULT


def filling(rows: Iterable[str], seeds: int) -> str:
    """Returns the call of run that computes what the running command did not find.

    Args:
        rows: Labels, or patterns of them.
        seeds: How many.
    """
    given = click.get_current_context().params
    words = ["mibench", "run", given["table"]]
    for row in rows:
        words += ["--rows", row]
    for setting in given["settings"]:
        words += ["--set", setting]
    if given["protocol"]:
        words += ["--protocol", given["protocol"]]
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    for name in ("store", "data"):
        if not is_default(name):
            words += [f"--{name}", str(given[name])]
    return shlex.join(words)


def holds_any(records: Records, store: "Store") -> bool:
    """Whether any of the records is in the store."""
    return "done" in store.states(r for rs in records.values() for r in rs).values()


def gap(table: "Table", rows: Iterable[str], seeds: int, store: Path) -> str:
    """Returns a sentence: nothing of a table was found, and the command that fills it."""
    where = f"is in {store}" if store.is_dir() else f"is there: no store at {store}"
    return f"nothing of {table.name} {where}; fill it with: {filling(rows, seeds)}"


def note_controls(
    table: "Table",
    controls: Mapping[str, Sequence["RecordStage"]],
    rows: Iterable[str],
    seeds: int,
    store: Path,
) -> None:
    """Says how to get the controls of a table where they were not asked for or are missing."""
    from mibench.store import Store

    states = Store(store).states(stage for stages in controls.values() for stage in stages)
    told = ""
    if missing := sum(state != "done" for state in states.values()):
        told = f"{missing} of {len(states)} controls are not in {store}; compute them with"
    elif not controls and "attack_acc" in table.columns:
        told = "what samples of the prior get tells a failed attack from privacy; see it with"
    if told:
        click.echo(f"note: {told}: {filling(rows, seeds)} --controls", err=True)


def count_states(states: Mapping[str, str]) -> str:
    """Returns how many stages are in which state."""
    values = list(states.values())
    counts = ", ".join(f"{values.count(s)} {s}" for s in ("done", "partial", "missing"))
    return f"{counts} of {len(values)} stages"


def chosen_stages(records: "Sequence[RecordStage]", until: str | None) -> "list[Stage]":
    """Returns the stages of the records, or those of one kind and what they need."""
    from mibench.running.stages import graph

    stages = graph(records)
    return stages if until is None else graph(s for s in stages if s.kind == until)


def fail(sentence: str) -> NoReturn:
    """Ends with exit status 1."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)
