"""A table in a store: which of its stages are there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mibench.benchmarks.tables.base import Table
from mibench.evaluation.inception import inception_digest
from mibench.running.stages import (
    ClassifierStage,
    InversionStage,
    PriorStage,
    RecordStage,
    StudentStage,
    graph,
    record_stage,
)
from mibench.seeding import seeded
from mibench.spec import remembering
from mibench.store import Stage, Store

S = TypeVar("S", bound=Stage)


def record_stages(table: Table, seeds: int, data: Path | None) -> dict[str, list[RecordStage]]:
    """Returns the last stages of every row, one per seed from 0 on.

    Reads the raw data in ``data`` for its digest; raises as :meth:`Task.digest` does. Without
    ``data`` the stages are those that would be, under keys that mean nothing.
    """
    tasks = {cell.setting.task for cell in table.rows.values()}
    digests = {task: "" if data is None else task.digest(data) for task in tasks}
    inception = "" if data is None else inception_digest(data)
    known: dict[object, Any] = {}
    records = {
        label: [
            record_stage(
                cell.at(seed), table.columns, digests[cell.setting.task], inception, known
            )
            for seed in range(seeds)
        ]
        for label, cell in table.rows.items()
    }
    with remembering():  # a stage makes its key, and those of all that it needs, once
        for stages in records.values():
            for stage in stages:
                _ = stage.key
    return records


def fetch_weights(stages: Iterable[Stage], data: Path) -> None:
    """Makes sure that the trained weights which stages start from can be had, and fit.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is another one, or does not fit its network.
    """
    stages = list(stages)
    priors = [s.spec for s in stages if isinstance(s, PriorStage)]
    students = [s.student for s in stages if isinstance(s, StudentStage)]
    students += [student for prior in priors for student in getattr(prior, "students", ())]
    targets = {
        (s.network, s.defense, s.images.task): s for s in stages if isinstance(s, ClassifierStage)
    }
    own = [network for network, _, _ in targets]
    for network in dict.fromkeys([*own, *(student.network for student in students)]):
        network.fetch(data)
    for network, defense, task in targets:
        if network.starts_trained:
            with seeded("shapes only"):
                built = network.build(task.shape, task.num_classes)
                network.initialise(built, data)
                network.finish(defense.harden(built), data)
    for prior in dict.fromkeys(priors):
        prior.fetch(data)


@dataclass(frozen=True)
class Grid:
    """A table in a store. Each look at it is a look at the store.

    Attributes:
        table: The table.
        records: Label → the row's last stages, one per seed from 0 on.
        store: Where they are, or will be.
        controls: The table's control rows in the same store, if they are to be shown.
    """

    table: Table
    records: Mapping[str, Sequence[RecordStage]]
    store: Store
    controls: "Grid | None" = None

    @classmethod
    def plan(cls, table: Table, seeds: int, data: Path | None, store: Store) -> "Grid":
        """Returns the grid of a table over seeds from 0 on; arguments of :func:`record_stages`."""
        return cls(table, record_stages(table, seeds, data), store)

    def only(self, labels: Iterable[str]) -> "Grid":
        """Returns the grid of some rows, in the table's order."""
        keep = set(labels)
        records = {label: stages for label, stages in self.records.items() if label in keep}
        return Grid(self.table, records, self.store, self.controls)

    @property
    def seeds(self) -> int:
        """How many seeds there are of the row that has most."""
        return max(map(len, self.records.values()))

    @property
    def last(self) -> list[RecordStage]:
        """The last stages of all rows."""
        return [record for stages in self.records.values() for record in stages]

    def stages(self) -> list[Stage]:
        """Returns all stages, needs before needers."""
        return graph(self.last)

    def finished(self, stages: Iterable[S]) -> list[S]:
        """Returns those of the stages that are in the store, each once."""
        once = {stage.key: stage for stage in stages}
        states = self.store.states(once.values())
        return [stage for key, stage in once.items() if states[key] == "done"]

    @property
    def done(self) -> dict[str, dict[int, RecordStage]]:
        """Label → seed → last stage, of those in the store; every label is there."""
        there = {record.key for record in self.finished(self.last)}
        return {
            label: {seed: record for seed, record in enumerate(stages) if record.key in there}
            for label, stages in self.records.items()
        }

    @property
    def first(self) -> dict[str, RecordStage]:
        """Label → last stage of the first seed, of the rows of which it is in the store."""
        return {label: seeds[0] for label, seeds in self.done.items() if 0 in seeds}

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Label and seed of every last stage that is not in the store."""
        return [
            (label, seed)
            for label, done in self.done.items()
            for seed in range(len(self.records[label]))
            if seed not in done
        ]

    def targets(self) -> dict[str, ClassifierStage]:
        """Returns label → target of the first seed, of those in the store.

        A target that several rows attack stands at the first of them.
        """
        firsts = {label: _run(stages[0]).target.trained for label, stages in self.records.items()}
        return _once(firsts, self.finished(firsts.values()))

    def priors(self) -> dict[str, PriorStage]:
        """Returns label → prior, as :meth:`targets` does targets."""
        firsts = {label: _run(stages[0]).prior for label, stages in self.records.items()}
        return _once(firsts, self.finished(firsts.values()))

    @property
    def faces(self) -> bool:
        """Whether the private images of any row show people."""
        return any(r.cell.setting.task.faces for r in self.last)

    def private(self, with_private: bool = False) -> bool:
        """Whether private images may be shown: those of people only if ``with_private``."""
        return with_private or not self.faces


def _run(record: RecordStage) -> InversionStage:
    return record.evidence[0].inversion


def _once(labelled: Mapping[str, S], stages: Sequence[S]) -> dict[str, S]:
    """Returns the first label of each of the stages, in the order of the labels."""
    left = {stage.key for stage in stages}
    firsts = {}
    for label, stage in labelled.items():
        if stage.key in left:
            left.remove(stage.key)
            firsts[label] = stage
    return firsts
