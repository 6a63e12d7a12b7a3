"""Published tables: record files, and the tables that follow from them alone."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mibench import precision
from mibench.benchmarks.cell import Cell, Seeds
from mibench.benchmarks.tables import Table
from mibench.reporting import tradeoff
from mibench.reporting.forms import render
from mibench.reporting.records import Record, find
from mibench.reporting.results import Results, collect
from mibench.reporting.verify import check
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, record_stage
from mibench.spec import canonical, fingerprint
from mibench.store import Payload, Stage, Store

FORMS = {"csv": "csv", "json": "json", "tex": "latex", "md": "markdown"}


class Published(Store):
    """A folder of record files, read as the store that they were written from.

    A cell's record is the one whose cell is the same, versions of its specs included. Of the
    stages that it rests on it holds what they ran on, and no payload: they are "recorded".

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file in it is not sound.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._records: dict[str, Record] = {}
        self._paths: dict[str, list[Path]] = {}
        self._others: dict[str, Path] = {}
        for verdict in (check(path) for path in find([root])):
            if verdict.record is None:
                raise ValueError(f"{verdict.path}: {verdict.problem}")
            cell = fingerprint(verdict.record["payload"]["cell"])
            known = self._records.setdefault(cell, verdict.record)
            self._paths.setdefault(cell, []).append(verdict.path)
            if known["payload"] != verdict.record["payload"]:
                self._others.setdefault(cell, verdict.path)
        self._runs = {k: v for r in self._records.values() for k, v in r["runs"].items()}

    def tables(self) -> list[str]:
        """Returns the names of the tables that the records were written for."""
        return sorted({record["table"] for record in self._records.values()})

    def seeds(self, table: Table) -> int:
        """Returns how many seeds, from 0 on, the records tell of a table; 0 if of none."""
        return seeds_of(table, (record["payload"]["cell"] for record in self._records.values()))

    def stages(self, table: Table, seeds: int) -> dict[str, list[RecordStage]]:
        """Returns the last stages of every row, one per seed from 0 on; needs no raw data.

        Their keys are those of the data that the records tell of.

        Raises:
            ValueError: If two files tell different things of a cell of the table.
        """
        known: dict[object, Any] = {}
        return {
            label: [self._stage(cell.at(seed), table, known) for seed in range(seeds)]
            for label, cell in table.rows.items()
        }

    def results(self, table: Table, seeds: int | None = None) -> Results:
        """Returns a table as the records have it, by default of all their seeds."""
        seeds = seeds or max(1, self.seeds(table))
        return collect(self.grid(table, seeds))

    def grid(self, table: Table, seeds: int) -> Grid:
        """Returns a table in these records, over seeds from 0 on."""
        return Grid(table, self.stages(table, seeds), self)

    def _stage(self, cell: Cell, table: Table, known: dict[object, Any]) -> RecordStage:
        own = fingerprint(cell)
        if own in self._others:
            raise ValueError(
                f"{self._others[own]} tells other things of a cell than {self._paths[own][0]}: "
                "name a folder that holds one of them"
            )
        record = self._records.get(own)
        identities = (
            {s["identity"]["kind"]: s["identity"] for s in record["stages"]} if record else {}
        )
        data = identities.get("images", {}).get("digest", "")
        inception = identities.get("evidence", {}).get("inception", "")
        stage = record_stage(cell, table.columns, data, inception, known)
        metrics = tuple(
            (name, version) for name, version in identities.get("record", {}).get("metrics", ())
        )
        if set(table.columns) <= {name for name, _ in metrics}:
            stage = replace(stage, metrics=metrics)  # of the versions that it was scored by
        return stage

    def _of(self, stage: Stage) -> Record | None:
        return (
            self._records.get(fingerprint(stage.cell)) if isinstance(stage, RecordStage) else None
        )

    def path(self, stage: Stage) -> Path:
        """Returns the file of a record; of another stage, where a store would have it."""
        return self.files(stage)[0] if self.files(stage) else super().path(stage)

    def files(self, stage: Stage) -> list[Path]:
        """Returns every file of a record; none of another stage."""
        cell = fingerprint(stage.cell) if isinstance(stage, RecordStage) else ""
        return self._paths.get(cell, [])

    def state(self, stage: Stage) -> str:
        """Returns "done" of a record, "recorded" of what one rests on, else "missing"."""
        if isinstance(stage, RecordStage):
            return "missing" if self._of(stage) is None else "done"
        return "recorded" if f"{stage.kind}/{stage.key}" in self._runs else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → state."""
        return {stage.key: self.state(stage) for stage in stages}

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        """Returns a record's payload and what it tells of its own run."""
        if (record := self._of(stage)) is None:
            what = "record" if isinstance(stage, RecordStage) else "payload"
            raise KeyError(f"there is no {what} of {stage.describe()} in {self.root}")
        return record["payload"], record["runs"].get(f"record/{record['key']}", {})

    def meta(self, stage: Stage) -> dict[str, Any]:
        """Returns what the records tell of the run of a stage."""
        record = self._of(stage)
        name = f"{stage.kind}/{record['key'] if record else stage.key}"
        if name not in self._runs:
            raise KeyError(f"no record in {self.root} tells of the run of {name}")
        run: dict[str, Any] = self._runs[name]
        return run

    def runs(self, result: Stage, stages: Iterable[Stage]) -> list[dict[str, Any]]:
        """Returns what the record of ``result`` tells of the runs of the stages.

        Another record may tell of another run of the same stage.
        """
        record = self._of(result)
        own: dict[str, dict[str, Any]] = record["runs"] if record else {}
        names = (f"{stage.kind}/{stage.key}" for stage in stages)
        return [own[name] for name in names if name in own]

    def failed(self) -> frozenset[str]:
        """Returns nothing: records tell of what was finished."""
        return frozenset()


def seeds_of(table: Table, cells: Iterable[Mapping[str, Any]]) -> int:
    """Returns how many seeds, from 0 on, a table has among cells in plain JSON; 0 if none."""
    none = canonical(Seeds())
    wanted = {fingerprint(cell.at(0)) for cell in table.rows.values()}
    own = [cell for cell in cells if fingerprint({**cell, "seeds": none}) in wanted]
    return 1 + max((cell["seeds"]["target"] for cell in own), default=-1)


def files_of(table: Table, seeds: int, store: Published) -> dict[str, str]:
    """Returns the text of each file of a table, by name, from records alone."""
    results = store.results(table, seeds)
    texts = {f"{table.name}.{suffix}": render(results, form) for suffix, form in FORMS.items()}
    precisions = frozenset().union(*results.precisions.values())
    options = " --precision bf16" if precisions == {precision.BF16} else ""
    texts["command.txt"] = f"mibench run {table.name}{options} --seeds {seeds}\n"
    if table.curves:
        compared = tradeoff.compare(store.grid(table, seeds))
        texts[f"{table.name}-curves.csv"] = tradeoff.csv(compared)
    return texts
