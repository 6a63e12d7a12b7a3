"""Stages on a running Ray cluster, whose nodes share the store through the file system."""

import importlib
import logging
import pickle
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mibench.running.executors.base import (
    Bench,
    Executor,
    Result,
    Schedule,
    begin,
    elsewhere,
    prepare,
    work,
)
from mibench.running.progress import Watcher
from mibench.spec import require
from mibench.store import Stage

AHEAD = 2
"""Stages that a worker has at hand while many are ready, so that it need not wait for the next."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Ray(Executor):
    """Stages on a running Ray cluster, whose nodes share the store through the file system.

    Workers live as long as the run and are handed one stage after the other. One that dies,
    alone or with its node, is replaced where the cluster has room, and what it was at goes on
    from its saved state.

    Attributes:
        jobs: Stages side by side. None: as many as the cluster's CPUs (or GPUs) hold.
        address: Of the cluster. "auto": the one that RAY_ADDRESS or this machine knows.
        gpus: Share of a GPU that a stage takes, if it runs on one.
        retries: How often a stage is begun again whose worker died.
    """

    name: ClassVar[str] = "ray"
    package: ClassVar[str | None] = "ray"

    jobs: int | None = None
    address: str = "auto"
    gpus: float = 1.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.jobs is not None:
            require(self, jobs=(1, float("inf")))
        require(self, gpus=(0.01, 1), retries=(0, float("inf")))

    def check(self, bench: Bench) -> Bench:
        """Connects to the cluster.

        Raises:
            ValueError: If there is none, or it has no GPU where one is asked for.
        """
        super().check(bench)
        ray = _ray()
        if not ray.is_initialized():
            try:
                _knock(self.address)
                ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"there is no Ray cluster at {self.address!r} ({str(error).splitlines()[0]}); "
                    "start one with `ray start --head`, or name one with --address"
                ) from error
        there = ray.cluster_resources()
        bench = elsewhere(bench, lambda: there.get("GPU", 0) > 0)
        if bench.device == "cuda" and not there.get("GPU"):
            raise ValueError(f"the cluster at {self.address!r} has no GPU; use --device cpu")
        return bench

    def slots(self, bench: Bench) -> int | None:
        """Returns how many stages run side by side; None: as many as the cluster holds."""
        return self.jobs

    def run(self, schedule: Schedule, bench: Bench, watcher: Watcher) -> None:
        """Hands stages to workers until none is left."""
        ray = _ray()

        options = {"num_cpus": bench.threads, "num_gpus": self.gpus * (bench.device == "cuda")}
        there = ray.cluster_resources()
        room = there.get("CPU", 0) // bench.threads
        if bench.device == "cuda":
            room = min(room, there.get("GPU", 0) * int(1 / self.gpus + 1e-9))
        jobs = min(self.jobs or max(1, int(room)), len(schedule.pending))
        remote = ray.remote(max_concurrency=1, concurrency_groups={"progress": 1}, **options)
        crew = _Crew(remote(Worker), bench, self.retries, schedule, watcher)
        try:
            while schedule.pending:
                crew.hire(jobs)
                crew.hand_out()
                crew.collect()
        finally:
            crew.dismiss()


def _ray() -> Any:  # noqa: ANN401
    return importlib.import_module("ray")  # an extra: it need not be here


def _knock(address: str) -> None:
    """Tries a HOST:PORT, which Ray itself would do for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


class Worker:
    """What runs stages, in a process of its own on some node of the cluster."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._progress: tuple[str, int, int, str] | None = None
        begin(bench)

    def hello(self) -> None:
        """Shows that the worker is there."""

    def work(self, pickled: bytes, key: str) -> Result:
        """Completes a stage. It comes pickled: the user's file must be loaded first."""
        prepare(self._bench)  # here, as the number of threads is each thread's own

        def report(done: int, total: int, note: str) -> None:
            self._progress = (key, done, total, note)

        return work(pickle.loads(pickled), key, self._bench, report)

    def progress(self) -> tuple[str, int, int, str] | None:
        """Returns how far the stage is that runs meanwhile."""
        return self._progress


@dataclass
class _Hand:
    """A worker, and the stages it has at hand by the reference of their results."""

    actor: Any
    hello: Any
    here: bool = False
    stages: dict[Any, Stage] = field(default_factory=dict)
    progress: Any = None


class _Crew:
    """The workers of a run."""

    def __init__(
        self,
        remote: Any,  # noqa: ANN401
        bench: Bench,
        retries: int,
        schedule: Schedule,
        watcher: Watcher,
    ) -> None:
        self._remote, self._bench, self._retries = remote, bench, retries
        self._schedule, self._watcher = schedule, watcher
        self._hands: list[_Hand] = []
        self._deaths: dict[str, int] = {}
        self._polled = time.monotonic()
        self._failed = deque[float](maxlen=10)

    def hire(self, jobs: int) -> None:
        """Asks for workers until there are enough; the cluster finds room when it can."""
        for _ in range(min(jobs, len(self._schedule.pending)) - len(self._hands)):
            actor = self._remote.remote(self._bench)
            self._hands.append(_Hand(actor, actor.hello.remote()))

    def hand_out(self) -> None:
        """Gives every idle worker a stage, and a second one where there are plenty."""
        here = [h for h in self._hands if h.here]
        for depth in range(AHEAD):
            for hand in here:
                enough = self._schedule.ready > (len(self._hands) if depth else 0)
                if enough and len(hand.stages) == depth:
                    stage = self._schedule.take()
                    ref = hand.actor.work.remote(pickle.dumps(stage), stage.key)
                    hand.stages[ref] = stage
                    if not depth:
                        self._watcher.start(stage)

    def collect(self) -> None:
        """Waits for something to end, books it, and passes on what running stages tell."""
        ray = _ray()

        owner = {ref: h for h in self._hands for ref in h.stages}
        owner |= {h.hello: h for h in self._hands if not h.here}
        ended, _ = ray.wait(list(owner), num_returns=len(owner), timeout=0)
        if not ended:
            ended, _ = ray.wait(list(owner), timeout=POLL_SECONDS)
        for ref in ended:
            hand = owner[ref]
            if hand not in self._hands:  # its death was booked a moment ago
                continue
            try:
                result = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                self._bury(hand, error)
                continue
            if ref in hand.stages:
                stage = hand.stages.pop(ref)
                self._watcher.finish(stage, self._schedule.settle(stage, result))
                for following in list(hand.stages.values())[:1]:
                    self._watcher.start(following)
            hand.here = True
        if time.monotonic() - self._polled > POLL_SECONDS:
            self._polled = time.monotonic()
            self._listen()

    def _bury(self, hand: _Hand, error: Exception) -> None:
        """Puts back what a dead worker had at hand; fails what has killed too many."""
        self._hands.remove(hand)
        begun = next(iter(hand.stages.values()), None)
        if begun is None and not hand.here:  # it could not even start
            self._failed.append(time.monotonic())
            if len(self._failed) == self._failed.maxlen:
                raise RuntimeError(f"no worker starts on the cluster: {error}") from error
        for stage in hand.stages.values():
            if stage is begun:
                self._deaths[stage.key] = self._deaths.get(stage.key, 0) + 1
            if self._deaths.get(stage.key, 0) > self._retries:
                why = f"its worker died {self._deaths[stage.key]} times (out of memory?)"
                self._watcher.finish(stage, self._schedule.settle(stage, why))
            else:
                self._schedule.put_back(stage)

    def _listen(self) -> None:
        ray = _ray()

        known = {s.key: s for h in self._hands for s in h.stages.values()}
        for hand in self._hands:
            if hand.progress is None and hand.stages:
                hand.progress = hand.actor.progress.options(concurrency_group="progress").remote()
        questions = {h.progress: h for h in self._hands if h.progress is not None}
        if not questions:
            return
        answered, _ = ray.wait(list(questions), num_returns=len(questions), timeout=0)
        for ref in answered:
            questions[ref].progress = None
            try:
                progress = ray.get(ref)
            except ray.exceptions.RayActorError:
                continue
            if progress is not None and progress[0] in known and progress[2]:
                self._watcher.update(known[progress[0]], *progress[1:])

    def dismiss(self) -> None:
        """Ends all workers."""
        ray = _ray()

        for hand in self._hands:
            ray.kill(hand.actor)
