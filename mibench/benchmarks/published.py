"""Published tables: record files, and the tables that follow from them alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mibench.benchmarks import tradeoff, tradeoff_files
from mibench.benchmarks.export import Results, collect, record_stages, render
from mibench.benchmarks.records import Record, check, find
from mibench.benchmarks.stages import RecordStage
from mibench.benchmarks.tables import Table
from mibench.spec import fingerprint
from mibench.store import Payload, Stage, Store

FORMS = {"csv": "csv", "json": "json", "tex": "latex", "md": "markdown"}


class Published(Store):
    """A folder of record files, read as the store that they were written from.

    A cell's record is the one whose cell is the same, versions of its specs included.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file in it is not sound, or two tell of one cell.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._records: dict[str, Record] = {}
        for verdict in (check(path) for path in find([root])):
            if verdict.record is None:
                raise ValueError(f"{verdict.path}: {verdict.problem}")
            cell = fingerprint(verdict.record["payload"]["cell"])
            if cell in self._records:
                raise ValueError(f"{verdict.path} tells of a cell that another file tells of too")
            self._records[cell] = verdict.record

    def seeds(self) -> int:
        """Returns how many seeds, from 0 on, the records tell of."""
        cells = [record["payload"]["cell"] for record in self._records.values()]
        return 1 + max((cell["seeds"]["target"] for cell in cells), default=-1)

    def _of(self, stage: Stage) -> Record | None:
        return (
            self._records.get(fingerprint(stage.cell)) if isinstance(stage, RecordStage) else None
        )

    def state(self, stage: Stage) -> str:
        """Returns "done" or "missing"."""
        return "missing" if self._of(stage) is None else "done"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → state."""
        return {stage.key: self.state(stage) for stage in stages}

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        """Returns a record's payload and what it tells of its own run."""
        if (record := self._of(stage)) is None:
            raise KeyError(f"there is no record of {stage.describe()} in {self.root}")
        return record["payload"], record["runs"].get(f"record/{record['key']}", {})

    def failed(self) -> frozenset[str]:
        """Returns nothing: records tell of what was finished."""
        return frozenset()


def results_of(table: Table, seeds: int, folder: Path) -> Results:
    """Returns a table as the records in a folder have it; needs neither store nor raw data."""
    return collect(table, record_stages(table, seeds, None), Published(folder))


def files_of(table: Table, seeds: int, folder: Path) -> dict[str, str]:
    """Returns the text of each file of a table, by name, from the records in a folder alone."""
    store = Published(folder)
    stages = record_stages(table, seeds, None)
    results = collect(table, stages, store)
    told = {f"{table.name}.{suffix}": render(results, form) for suffix, form in FORMS.items()}
    told["command.txt"] = f"mibench run {table.name} --seeds {seeds}\n"
    if table.curves:
        found = tradeoff.compare(table, stages, store)
        told[f"{table.name}-curves.csv"] = tradeoff_files.csv(found)
    return told
