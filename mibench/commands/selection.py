"""What a command is about: a table as options change it, its seeds, and where its stages are."""

import functools
import gc
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mibench.commands import options

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.reporting.published import Published
    from mibench.running.grid import Grid
    from mibench.running.stages import RecordStage
    from mibench.store import Store

ENDS = (
    "modified", "incomplete", "tradeoff", "training", "samples", "curves", "dependence",
    "queries", "matrix", "sweep", "traits", "reconstructions", "row",
)  # fmt: skip
"""What follows a table's name and a hyphen in names of its files."""


@contextmanager
def nothing_is_garbage() -> Iterator[None]:
    """Stops the garbage collector, which would search a growing grid again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.freeze()  # what is there now counts as old, so it is not searched at once
            gc.unfreeze()
            gc.enable()


@dataclass(frozen=True)
class Selection:
    """What the options that many commands share select.

    Attributes:
        name: Of one of mibench's tables, or the path of a Python file with one.
        rows: Patterns of labels; none selects all rows.
        settings: Changed fields of the cells, each PATH=VALUE.
        protocol: Name of another convention of evaluation.
        seeds: How many, from 0 on.
        root: Folder of the store.
        data: Folder of the raw data.
        published: Folder of record files, read in place of the store and the raw data.
        given: Names of the options that were on the command line.
        keyless: Whether to plan without the raw data; keys of stages then mean nothing.
    """

    name: str
    rows: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    protocol: str | None = None
    seeds: int = 1
    root: Path = Path("mibench-store")
    data: Path = Path("data")
    published: Path | None = None
    given: frozenset[str] = frozenset()
    keyless: bool = False

    @property
    def file(self) -> Path | None:
        """The user's file that the table is in, if it is in one."""
        return Path(self.name) if self.name.endswith(".py") else None

    @property
    def changed(self) -> bool:
        """Whether options make another table of it."""
        return bool(self.rows or self.settings or self.protocol)

    @cached_property
    def table(self) -> "Table":
        """The table as the options change it.

        Raises:
            KeyError: If there is no such table or protocol.
            ValueError: If the file, a row or a setting is not sound.
        """
        from mibench.benchmarks.tables import TABLES
        from mibench.evaluation import fields_of
        from mibench.spec import unknown

        if self.file:
            table = table_of(self.file)
        elif self.name in TABLES:
            table = TABLES[self.name]
        else:
            raise KeyError(f"{unknown('table', self.name, TABLES)}, or a file NAME.py")
        if self.protocol is not None:
            fields = [f"protocol.{k}={v}" for k, v in fields_of(self.protocol).items()]
            caption = f"{table.caption} (protocol {self.protocol})"
            table = replace(table.modified(fields), caption=caption)
        if self.rows:
            table = table.only(self.rows)
        return table.modified(self.settings)

    @cached_property
    def store(self) -> "Store":
        """The store, or the folder of records that is read as one.

        Raises:
            FileNotFoundError: If there is no such folder of records.
            ValueError: If a record is not sound, or a store is named too.
        """
        from mibench.reporting.published import Published
        from mibench.store import Store

        if self.published is None:
            return Store(self.root)
        if "store" in self.given:
            raise ValueError("--records is read in place of --store: name one of them")
        return Published(self.published)

    @cached_property
    def grid(self) -> "Grid":
        """The table in the store; reads the digest of raw data and computes nothing.

        Raises:
            ValueError: If records are read, and none is of the table.
        """
        if grid := self._plan(self.table):
            return grid
        others = ", ".join(cast("Published", self.store).tables())
        raise ValueError(
            f"no record in {self.published} is of a cell of {self.table.name} as it is now; they "
            f"were written for {others}"
            if others
            else f"there is no record file in {self.published}"
        )

    def with_controls(self, *, quiet: bool = False) -> "Grid":
        """Returns :attr:`grid` with its controls, the samples of each row's prior.

        Where records are read and none is of any there are none, and a note says so unless
        ``quiet``.
        """
        from mibench.reporting.cautions import control_table

        controls = self._plan(control_table(self.table))
        if not controls and not quiet:
            click.echo(
                f"note: no record in {self.published} is of samples of a prior, so nothing shows "
                "whether a low Attack Acc means privacy or a failed attack",
                err=True,
            )
        return replace(self.grid, controls=controls)

    @nothing_is_garbage()
    def _plan(self, table: "Table") -> "Grid | None":
        from mibench.reporting.published import Published
        from mibench.running.grid import Grid

        if not isinstance(self.store, Published):
            data = None if self.keyless else self.data
            return Grid.plan(table, self.seeds, data, self.store)
        if not (seeds := self.store.seeds(table)):
            return None
        return self.store.grid(table, self.seeds if "seeds" in self.given else seeds)

    @property
    def parts(self) -> "list[Selection]":
        """The selections of the tables that the name joins by "+"; of one table itself alone."""
        if self.file and self.file.is_file():
            return [self]
        return [replace(self, name=name) for name in self.name.split("+")]

    def with_columns(self, columns: Sequence[str]) -> "Grid":
        """Returns :attr:`grid` with other columns; nothing is written.

        What the records do not have is scored from the evidence in the store.

        Raises:
            ValueError: If there is no such metric, or neither records nor evidence have it.
        """
        from mibench.reporting.columns import Scored

        own = self.table.columns
        shown = replace(
            self.table, columns=tuple(columns), curves={},
            worst=self.table.worst and "attack_acc" in columns,
        )  # fmt: skip
        extra = tuple(name for name in columns if name not in own)
        if self.published is not None:
            self._check_recorded(columns)
            return replace(self.grid, table=shown)
        wider = self._plan(replace(self.table, columns=(*own, *extra)))
        assert wider is not None  # of a store there always is one
        grid = replace(wider, table=shown, store=Scored(self.root))
        if any(self.grid.done.values()) and not any(grid.done.values()):
            raise ValueError(
                f"the evidence of {self.name} in {self.root} does not give {', '.join(extra)}: "
                "it is not there, or it has no features for it, which are computed where a table "
                "that is run names the column"
            )
        return grid

    def _check_recorded(self, columns: Sequence[str]) -> None:
        """Raises ValueError unless the records that are read have the columns."""
        for record in self.grid.finished(self.grid.last):
            scores = self.store.load(record)["scores"]
            if lacking := [name for name in columns if name not in scores]:
                self.refuse_records(
                    f"those of {self.name} have no {', '.join(lacking)}, only {', '.join(scores)}"
                )

    def refuse_records(self, lacking: str) -> None:
        """Raises ValueError if the command needs more than record files, and those are read."""
        if self.published is not None:
            raise ValueError(
                f"records hold scores and where they come from, but {lacking}; a store that the "
                "table was run in holds them: --store"
            )

    def arguments(self, seeds: int, rows: Iterable[str] = ()) -> list[str]:
        """Returns what follows ``mibench run`` to compute the table in the usual folders.

        Args:
            seeds: How many, from 0 on.
            rows: Labels, or patterns of them; none for all.
        """
        words = [self.name]
        for option, values in (("--rows", rows), ("--set", self.settings)):
            words += [word for value in values for word in (option, value)]
        words += ["--protocol", self.protocol] if self.protocol else []
        return words + (["--seeds", str(seeds)] if seeds > 1 else [])

    def filling(self, rows: Iterable[str], seeds: int) -> str:
        """Returns the command that computes rows where they are missing; see `arguments`."""
        words = ["mibench", "run", *self.arguments(seeds, rows)]
        for name, path in (("store", self.root), ("data", self.data)):
            words += [f"--{name}", str(path)] if name in self.given else []
        return shlex.join(words)

    def gap(self) -> str:
        """Returns a sentence: nothing of the table is there, and the command that computes it."""
        place = self.published or self.root
        where = f"is in {place}" if place.is_dir() else f"is there: no store at {place}"
        command = self.filling(self.rows, self.seeds)
        return f"nothing of {self.table.name} {where}; fill it with: {command}"

    def note_controls(self, controls: "Grid | None") -> None:
        """Says how to compute the table's controls if they are not shown or not complete."""
        text = ""
        if controls and controls.missing:
            # Rows share controls, which count once.
            every = {record.key for record in controls.last}
            missing = len(every) - len(controls.finished(controls.last))
            text = f"{missing} of {len(every)} controls are not in {self.root}; compute them with"
        elif not controls and "attack_acc" in self.table.columns:
            text = (
                "what samples of the prior get shows whether a low Attack Acc means privacy or a "
                "failed attack; compute it with"
            )
        if text:
            command = self.filling(self.rows, self.seeds)
            click.echo(f"note: {text}: {command} --controls", err=True)


def labelled(grid: "Grid") -> "dict[str, Sequence[RecordStage]]":
    """Returns label → last stages of a table's rows and of their controls, if it has any."""
    controls = grid.controls.records.items() if grid.controls else ()
    return {**grid.records, **{f"{label}, samples of its prior": own for label, own in controls}}


def selecting(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that select from a table; hands the command one :class:`Selection`.

    The command has the argument ``table``, or names tables in another way and replaces ``name``.
    """

    @options.apply(
        click.option("--rows", multiple=True, metavar="PATTERN",
                     help="Only rows like 'BiDO-HSIC*'."),
        click.option("--set", "settings", multiple=True, metavar="PATH=VALUE",
                     help="Change a field of the cells, for example attack.steps=10."),
        click.option("--protocol", metavar="NAME",
                     help="Convention of evaluation: per-pass, kdd22, vmi, gmi, lomma or ppa."),
        click.option("--seeds", type=options.number_of_seeds, default=1,
                     help="How many seeds, from 0 on; 1 where the command does not say "
                     "otherwise."),
        options.store,
        options.data,
    )  # fmt: skip
    @functools.wraps(function)
    def command(
        rows: tuple[str, ...], settings: tuple[str, ...], protocol: str | None, seeds: int,
        store: Path, data: Path, table: str = "", published: Path | None = None,
        **others: Any,  # noqa: ANN401
    ) -> None:  # fmt: skip
        source = click.get_current_context().get_parameter_source
        typed = click.core.ParameterSource.COMMANDLINE
        given = frozenset(name for name in ("seeds", "store", "data") if source(name) is typed)
        selected = Selection(
            table, rows, settings, protocol, seeds, store, data, published, given
        )  # fmt: skip
        function(selected, **others)

    return command


of_table = options.apply(click.argument("table"), selecting)
"""Adds TABLE and the options that select from it."""


def table_of(path: Path) -> "Table":
    """Returns the one Table that a user's file defines."""
    from mibench.benchmarks.tables import Table
    from mibench.running.userfile import load_user_file

    names = vars(load_user_file(path))
    tables = {id(value): value for value in names.values() if isinstance(value, Table)}
    own = names.get("TABLE")
    if not isinstance(own, Table):
        if len(tables) != 1:
            raise ValueError(
                f"{path} must define one mibench Table (or name one of several TABLE), "
                f"found {len(tables)}"
            )
        (own,) = tables.values()
    check_name(own, path)
    return own


def check_name(table: "Table", path: Path) -> None:
    """Raises ValueError if a user's table cannot name files, or would name those of mibench's.

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
