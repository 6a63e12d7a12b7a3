"""Stages side by side on this machine, each in a process of its own."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from mibench.machine import cores
from mibench.running.executors.base import (
    KILLED,
    Bench,
    Executor,
    Result,
    Schedule,
    begin,
    device_here,
    work,
)
from mibench.running.executors.serial import Serial
from mibench.running.progress import Watcher
from mibench.spec import require
from mibench.store import Stage, Store


@dataclass(frozen=True)
class Local(Executor):
    """Stages side by side on this machine, each in a process of its own.

    Attributes:
        jobs: How many. None: as many as there are GPUs, or cores for their threads.
        gpus: Share of a GPU that a stage takes, if it runs on one.
    """

    name: ClassVar[str] = "local"

    jobs: int | None = None
    gpus: float = 1.0

    def __post_init__(self) -> None:
        if self.jobs is not None:
            require(self, jobs=(1, float("inf")))
        require(self, gpus=(0.01, 1))

    def check(self, bench: Bench) -> Bench:
        """Finds the devices.

        Raises:
            ValueError: If there are fewer GPUs than stages side by side need.
        """
        bench = replace(super().check(bench), device=device_here(bench.device))
        if bench.device.startswith("cuda"):
            gpus = len(visible_gpus(bench.device))
            if self.jobs is not None and self.jobs > (most := gpus * self._sharing):
                raise ValueError(
                    f"{self.jobs} stages side by side take {self.gpus:g} of a GPU each, and here "
                    f"are {gpus}: use local[{most}], or local[{self.jobs},gpus="
                    f"{gpus / self.jobs:.2g}] to let stages share one"
                )
        return bench

    @property
    def _sharing(self) -> int:
        """How many stages share a GPU."""
        return int(1 / self.gpus + 1e-9)

    def slots(self, bench: Bench) -> int:
        """Returns how many stages run side by side."""
        if self.jobs:
            return self.jobs
        if bench.device.startswith("cuda"):
            return len(visible_gpus(bench.device)) * self._sharing
        return max(1, cores() // bench.threads)

    def run(self, schedule: Schedule, bench: Bench, watcher: Watcher) -> None:
        """Runs the stages in a pool of processes; one process needs no pool."""
        jobs = min(self.slots(bench), len(schedule.pending))
        if jobs == 1:
            Serial().run(schedule, bench, watcher)
            return
        gpus = visible_gpus(bench.device) if bench.device.startswith("cuda") else []
        if gpus:
            bench = replace(bench, device="cuda")  # the one that its process sees
        while schedule.pending:  # a death breaks the whole pool; the rest goes on in a new one
            _run_pool(schedule, bench, jobs, [gpus[i % len(gpus)] for i in range(jobs)] if gpus
                      else [], watcher)  # fmt: skip


def visible_gpus(device: str) -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES would call each GPU that ``device`` stands for."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    _, _, index = device.partition(":")
    return [names[int(index)]] if index else names[: torch.cuda.device_count()]


_reports: Any = None  # the queue of a worker process, set once when it starts


def _start_worker(bench: Bench, reports: Any, gpus: Any, parent: int) -> None:  # noqa: ANN401
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if bench.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get()  # before CUDA looks
    begin(bench)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keeps Ctrl-C waiting, and from processes started meanwhile, where signals can be held."""
    hold = getattr(signal, "pthread_sigmask", None)
    before = hold(signal.SIG_BLOCK, {signal.SIGINT}) if hold else None
    try:
        yield
    finally:
        if hold:
            hold(signal.SIG_SETMASK, before)


def _work(stage: Stage, key: str, bench: Bench) -> Result:
    return work(stage, key, bench, lambda *progress: _reports.put((key, *progress)))


def _run_pool(
    schedule: Schedule, bench: Bench, jobs: int, gpus: list[str], watcher: Watcher
) -> None:
    """Runs stages until none is left or a process dies."""
    context = multiprocessing.get_context("spawn")
    reports, free = context.Queue(), context.Queue()
    for gpu in gpus:
        free.put(gpu)
    known = dict(schedule.pending)
    pool = ProcessPoolExecutor(
        jobs, context, initializer=_start_worker, initargs=(bench, reports, free, os.getpid())
    )
    running: dict[Future[Result], Stage] = {}
    broken = False
    try:
        while running or (schedule.pending and not broken):
            while not broken and schedule.ready and len(running) < jobs:
                stage = schedule.take()
                try:
                    with _interrupts_held():  # for a worker that this starts: it is told later
                        running[pool.submit(_work, stage, stage.key, bench)] = stage
                except BrokenProcessPool:  # a moment ago: the stage has not begun
                    schedule.put_back(stage)
                    broken = True
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _relay(reports, known, watcher)
            for future in finished:
                stage = running.pop(future)
                dead = isinstance(future.exception(), BrokenProcessPool)
                if dead:
                    Store(bench.store).note_failure(stage, KILLED)
                watcher.finish(stage, schedule.settle(stage, KILLED if dead else future.result()))
                broken = broken or dead
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _relay(reports: Any, known: dict[str, Stage], watcher: Watcher) -> None:  # noqa: ANN401
    while not reports.empty():
        key, done, total, note = reports.get()
        if total:
            watcher.update(known[key], done, total, note)
        else:
            watcher.start(known[key])
