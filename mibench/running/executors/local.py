"""Stages side by side on this machine, each in a process of its own."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import ClassVar

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

NOT_STARTED = (
    "a process for stages side by side ended before it began one, as is told above. It runs the "
    'script first: what the script does goes below if __name__ == "__main__":'
)


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
        """Runs the stages in processes of their own; one at a time needs none."""
        jobs = min(self.slots(bench), len(schedule.pending))
        if jobs == 1:
            Serial().run(schedule, bench, watcher)
            return
        gpus = visible_gpus(bench.device) if bench.device.startswith("cuda") else []
        if gpus:
            bench = replace(bench, device="cuda")  # the one that its process sees
        workers = [_Worker(bench, gpus[i % len(gpus)] if gpus else "") for i in range(jobs)]
        _run_in(workers, schedule, Store(bench.store), watcher)


def visible_gpus(device: str) -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES would call each GPU that ``device`` stands for."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    _, _, index = device.partition(":")
    return [names[int(index)]] if index else names[: torch.cuda.device_count()]


def _serve(pipe: Connection, bench: Bench, gpu: str, parent: int) -> None:
    """Completes the stages that come through the pipe, until it closes.

    What is raised, at the start too, goes back through it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if bench.device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA looks

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    result: Result | BaseException
    try:
        begin(bench)
        threading.Thread(target=follow, daemon=True).start()
        while True:
            stage, key = pipe.recv()
            try:
                result = work(stage, key, bench, lambda *progress: pipe.send(progress))
            except BaseException as error:  # for the parent to raise
                result = error
            pipe.send(result)
    except EOFError:  # the parent has nothing more to do
        return
    except BaseException as error:  # of the start, or of reading a stage
        pipe.send(error)


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


class _Worker:
    """A process that runs one stage at a time, so that its death is no other stage's."""

    def __init__(self, bench: Bench, gpu: str) -> None:
        self._bench, self._gpu = bench, gpu
        self._process: SpawnProcess | None = None
        self._heard = False
        self.pipe: Connection
        self.stage: Stage | None = None

    def take(self, stage: Stage) -> None:
        """Begins a stage, in a new process if there is none that lives."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            own = (theirs, self._bench, self._gpu, os.getpid())
            with _interrupts_held():  # it is told later
                process = context.Process(target=_serve, args=own)
                process.start()
                self._process, self._heard = process, False
            theirs.close()  # so that the pipe ends with the process
        self.stage = stage
        with contextlib.suppress(BrokenPipeError):  # it just died, as reading tells
            self.pipe.send((stage, stage.key))

    def hear(self, watcher: Watcher) -> Result | None:
        """Passes on progress; returns the stage's result.

        Raises:
            EOFError: If the process was killed.
            ValueError: If it ended by itself before it began a stage.
        """
        assert self.stage is not None
        assert self._process is not None
        try:
            told = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            if not self._heard and (self._process.exitcode or 0) > 0:  # a signal is below 0
                raise ValueError(NOT_STARTED) from None
            raise EOFError from None
        self._heard = True
        if isinstance(told, BaseException):
            raise told
        if not isinstance(told, tuple):
            result: Result = told
            return result
        done, total, note = told
        if total:
            watcher.update(self.stage, done, total, note)
        else:
            watcher.start(self.stage)
        return None

    def end(self, *, now: bool) -> None:
        """Ends the process, now or when it has nothing more to do."""
        if self._process is not None:
            if now:
                self._process.kill()
                self._process.join()  # while a dead process is listed, its lease seems held
            self.pipe.close()
            self._process = None


def _run_in(workers: list[_Worker], schedule: Schedule, store: Store, watcher: Watcher) -> None:
    """Runs stages until none is left."""
    died: set[str] = set()
    done = False
    try:
        while schedule.pending:
            for worker in workers:
                if worker.stage is None and schedule.ready:
                    worker.take(schedule.take())
            busy = {w.pipe: (w, w.stage) for w in workers if w.stage is not None}
            heard = wait(list(busy), timeout=0.2)
            for worker, stage in (busy[pipe] for pipe in busy if pipe in heard):
                try:
                    result = worker.hear(watcher)
                except EOFError:
                    worker.end(now=True)
                    worker.stage = None
                    if len(busy) > 1 and stage.key not in died:  # others may have had the memory
                        died.add(stage.key)
                        schedule.put_back(stage)
                        continue
                    store.note_failure(stage, result := KILLED)
                if result is not None:
                    worker.stage = None
                    watcher.finish(stage, schedule.settle(stage, result))
        done = True
    finally:
        for worker in workers:
            worker.end(now=not done)
