"""Stages in jobs of a Slurm cluster, through submitit; the nodes share store and job folder."""

import json
import os
import pickle
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mibench.running.executors.base import (
    Bench,
    Executor,
    Result,
    Schedule,
    begin,
    elsewhere,
    same_keys,
    work,
)
from mibench.running.progress import Watcher
from mibench.sources import CHANGED
from mibench.spec import choose, require
from mibench.store import Stage, Store

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slurm(Executor):
    """Stages in jobs of a Slurm cluster, through submitit.

    Each job works through the whole graph: it takes the next stage that can run and that
    nobody holds the lease of. What sbatch needs beside the fields here (account, quality of
    service, ...) it takes from its own variables, such as SBATCH_ACCOUNT.

    Attributes:
        jobs: How many jobs, and so stages side by side.
        partition: Of the cluster; "" is its default.
        minutes: Wall time of a job; one that runs out is queued again and goes on.
        gpus: GPUs of a job, 0 or 1. None: 1 where the stages are to run on one.
        memory: GB of a job.
        folder: Where submitit keeps jobs and their logs; on a file system that all nodes see.
        cluster: "slurm", or "local": processes of this machine, to try it out.
    """

    name: ClassVar[str] = "slurm"
    package: ClassVar[str | None] = "submitit"

    jobs: int = 1
    partition: str = ""
    minutes: int = 240
    gpus: int | None = None
    memory: int = 8
    folder: str = "mibench-slurm"
    cluster: Literal["slurm", "local"] = "slurm"

    def __post_init__(self) -> None:
        inf = float("inf")
        require(self, jobs=(1, inf), minutes=(1, inf), memory=(1, inf))
        if self.gpus is not None:
            require(self, gpus=(0, 1))
        choose(self, cluster=("slurm", "local"))

    def check(self, bench: Bench) -> Bench:
        """Looks for Slurm.

        Raises:
            ValueError: If it is not here, or stages are to run on GPUs that jobs do not have.
        """
        super().check(bench)
        import submitit

        if self.cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise ValueError("there is no Slurm here (no srun); log in to a node that has it")
        bench = elsewhere(bench, lambda: bench.heavy if self.gpus is None else self.gpus > 0)
        if bench.device == "cuda" and self.gpus == 0:
            raise ValueError("--device cuda needs a GPU for each job: slurm[N,gpus=1]")
        return bench

    def slots(self, bench: Bench) -> int:
        """Returns how many stages run side by side."""
        return self.jobs

    def run(self, schedule: Schedule, bench: Bench, watcher: Watcher) -> None:
        """Submits the jobs and watches what they leave behind."""
        import submitit

        folder = Path(self.folder).resolve() / uuid.uuid4().hex[:8]
        folder.mkdir(parents=True)
        jobs = min(self.jobs, len(schedule.pending))
        executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        executor.update_parameters(
            name="mibench",
            timeout_min=self.minutes,
            cpus_per_task=bench.threads,
            gpus_per_node=int(bench.device == "cuda") if self.gpus is None else self.gpus,
            mem_gb=self.memory,
            slurm_array_parallelism=jobs,
            **({"slurm_partition": self.partition} if self.partition else {}),
        )
        stages = pickle.dumps(list(schedule.pending.values()))
        workers = [Worker(bench, folder, stages, list(schedule.pending), i) for i in range(jobs)]
        submitted = executor.map_array(_call, workers)
        try:
            _watch(schedule, submitted, folder, bench, watcher)
        finally:
            for job in submitted:
                if not job.done():
                    job.cancel()


def _call(worker: "Worker") -> None:
    worker()


class Notes:
    """What the jobs of a run have left in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ended: dict[str, Result] = {}
        self.running: dict[str, tuple[int, int, str]] = {}

    def update(self) -> dict[str, Result]:
        """Reads what is new; returns the stages that have ended since the last time."""
        fresh: dict[str, Result] = {}
        self.running = {}
        for entry in os.scandir(self._folder):
            key, _, suffix = entry.name.partition(".")
            if suffix == "ended" and key not in self.ended:
                fresh[key] = json.loads(Path(entry).read_text())
            elif suffix == "running":
                with suppress(FileNotFoundError):
                    self.running[key] = json.loads(Path(entry).read_text())
        self.ended |= fresh
        return fresh


def _watch(
    schedule: Schedule, jobs: Sequence[Any], folder: Path, bench: Bench, watcher: Watcher
) -> None:
    """Books what the jobs do until nothing is left or all of them have ended."""
    notes = Notes(folder)
    begun: set[str] = set()
    while schedule.pending:
        alive = any(not job.done() for job in jobs)  # asked first: then the notes are complete
        for key, result in notes.update().items():
            if stage := schedule.pending.get(key):
                watcher.finish(stage, schedule.settle(stage, result))
        for key, (done, total, note) in notes.running.items():
            if stage := schedule.pending.get(key):
                if key not in begun:
                    watcher.start(stage)
                    begun.add(key)
                if total:
                    watcher.update(stage, done, total, note)
        if not alive:
            break
        time.sleep(POLL_SECONDS)
    states = Store(bench.store).states(schedule.pending.values())
    for key, state in states.items():  # another run did them, or the jobs were ended
        if stage := schedule.pending.get(key):
            result = False if state == "done" else f"its job ended, see the logs in {folder}"
            watcher.finish(stage, schedule.settle(stage, result))


@dataclass
class Worker:
    """A job: works through a graph beside others of its kind.

    Attributes:
        bench: Where.
        folder: Where it leaves a file for every stage that it ended.
        stages: Pickled; the user's file must be loaded first.
        keys: Theirs.
        number: The job's.
    """

    bench: Bench
    folder: Path
    stages: bytes
    keys: list[str]
    number: int

    def __call__(self) -> None:
        """Completes stages until all are done or have failed."""
        begin(self.bench)
        stages: list[Stage] = pickle.loads(self.stages)
        if not same_keys(stages, self.keys):
            for key in self.keys:
                self._leave(key, "ended", CHANGED)
            return
        store = Store(self.bench.store)
        heard = Notes(self.folder)
        left = {s.key: s for s in stages}
        while left:
            heard.update()
            done = {k for k, state in store.states(left.values()).items() if state == "done"}
            lost = {k for k, result in heard.ended.items() if isinstance(result, str)}
            for key, stage in left.items():  # needs come first
                if any(n.key in lost for n in stage.needs):
                    lost.add(key)
            left = {k: s for k, s in left.items() if k not in done | lost}
            ready = [s for s in left.values() if not any(n.key in left for n in s.needs)]
            free = [s for s in ready if not store.held(s)]
            if free:
                self._complete(free[self.number % len(free)])
            elif left:
                time.sleep(POLL_SECONDS)

    def _complete(self, stage: Stage) -> None:
        def report(done: int, total: int, note: str) -> None:
            self._leave(stage.key, "running", (done, total, note))

        self._leave(stage.key, "ended", work(stage, stage.key, self.bench, report))
        (self.folder / f"{stage.key}.running").unlink(missing_ok=True)

    def _leave(self, key: str, suffix: str, value: object) -> None:
        """Writes a word for the process that watches, and for the other jobs."""
        aside = self.folder / f"{key}.{uuid.uuid4().hex[:8]}"
        aside.write_text(json.dumps(value))
        aside.replace(self.folder / f"{key}.{suffix}")

    def checkpoint(self) -> Any:  # noqa: ANN401
        """Returns what is queued when the job's time is over: the same once more."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(_call, self)
