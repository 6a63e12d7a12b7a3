"""Run a graph of stages: in this process, or several side by side on this machine.

Executors differ in nothing but where a stage runs; keys, store and bits are the same.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mibench.benchmarks.progress import Watcher
from mibench.benchmarks.userfile import load_user_file
from mibench.store import Report, Stage, Store, StoreError


@dataclass(frozen=True)
class Bench:
    """Where things are and how they run. None of it decides a result or enters a key.

    Attributes:
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of each stage; another number may change the last bits.
        jobs: Stages that run side by side.
        user_file: The user's Python file, whose classes other processes must know too.
    """

    store: Path
    data: Path
    device: str = "cpu"
    threads: int = 1
    jobs: int = 1
    user_file: Path | None = None


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        computed: Stages computed.
        cached: Stages that were in the store.
        failures: Stage key → what went wrong, one sentence.
        skipped: Stages that needed a failed one.
    """

    computed: int = 0
    cached: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    skipped: list[Stage] = field(default_factory=list)


def prepare(bench: Bench) -> None:
    """Makes this process compute the same bits as every other: threads and algorithms."""
    torch.set_num_threads(bench.threads)
    keep_memory()
    if bench.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def keep_memory() -> None:
    """Asks glibc to keep freed memory: big tensors come and go at every step.

    By default each is mapped afresh from the kernel, which clears it page by page.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, bytes; no larger value is taken
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def execute(stages: Sequence[Stage], bench: Bench, watcher: Watcher) -> Outcome:
    """Completes all stages (in an order where needs come first), as far as they succeed.

    A stage that fails takes with it only what depends on it.
    """
    store = Store(bench.store)
    outcome = Outcome()
    pending: dict[str, Stage] = {}
    for stage in stages:
        if store.state(stage) == "done":
            outcome.cached += 1
        else:
            pending[stage.key] = stage
    if not pending:
        return outcome
    jobs = min(bench.jobs, len(pending))
    (_run_here if jobs == 1 else _run_side_by_side)(pending, bench, jobs, watcher, outcome)
    return outcome


def _complete(stage: Stage, bench: Bench, report: Report) -> bool | str:
    """Returns whether anything was computed, or what went wrong."""
    try:
        return Store(bench.store).complete(stage, bench.device, bench.data, report)
    except StoreError:  # the others could not be kept either
        raise
    except Exception as error:
        return explain(error)


def explain(error: BaseException) -> str:
    """Returns one sentence for people."""
    text = str(error).strip().split("\n")[0]
    told = (ValueError, FileNotFoundError, FloatingPointError)
    sentence = text if isinstance(error, told) and text else f"{type(error).__name__}: {text}"
    sentence = "; ".join([sentence, *getattr(error, "__notes__", [])])
    where = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(f.filename)]
    return f"{sentence} ({where[-1].filename}, line {where[-1].lineno})" if where else sentence


def _is_users(file: str) -> bool:
    """Whether a file is neither mibench's, nor installed, nor Python's own."""
    ours = Path(__file__).parent.parent
    path = Path(file)
    installed = "site-packages" in path.parts or Path(os.__file__).parent in path.parents
    return path.is_file() and ours not in path.parents and not installed


def _ready(pending: dict[str, Stage], busy: set[str]) -> list[Stage]:
    return [
        s
        for k, s in pending.items()
        if k not in busy and not any(n.key in pending for n in s.needs)
    ]


def _settle(
    stage: Stage, result: bool | str, pending: dict[str, Stage], outcome: Outcome
) -> str | None:
    """Books a stage's end; returns what went wrong."""
    del pending[stage.key]
    if not isinstance(result, str):
        outcome.computed += result
        outcome.cached += not result
        return None
    outcome.failures[stage.key] = result
    lost = {stage.key}
    for key, other in list(pending.items()):  # in an order where needs come first
        if any(n.key in lost for n in other.needs):
            lost.add(key)
            outcome.skipped.append(pending.pop(key))
    return result


def _run_here(
    pending: dict[str, Stage], bench: Bench, jobs: int, watcher: Watcher, outcome: Outcome
) -> None:
    prepare(bench)
    while pending:
        stage = _ready(pending, set())[0]
        watcher.start(stage)

        def report(done: int, total: int, note: str, stage: Stage = stage) -> None:
            watcher.update(stage, done, total, note)

        result = _complete(stage, bench, report)
        watcher.finish(stage, _settle(stage, result, pending, outcome))


# Side by side -----------------------------------------------------------------------------

_reports: Any = None  # the queue of a worker process, set once when it starts


def _start_worker(bench: Bench, reports: Any, parent: int) -> None:  # noqa: ANN401
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if bench.user_file is not None:
        load_user_file(bench.user_file)
    prepare(bench)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(stage: Stage, key: str, bench: Bench) -> bool | str:
    if stage.key != key:
        return "the user's file changed while it ran; start again"
    last = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done == total:
            last = time.monotonic()
            _reports.put((stage.key, done, total, note))

    _reports.put((stage.key, 0, 0, ""))
    return _complete(stage, bench, report)


def _run_side_by_side(
    pending: dict[str, Stage], bench: Bench, jobs: int, watcher: Watcher, outcome: Outcome
) -> None:
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    known = dict(pending)
    pool = ProcessPoolExecutor(
        jobs, context, initializer=_start_worker, initargs=(bench, reports, os.getpid())
    )
    running: dict[Future[bool | str], Stage] = {}
    broken = False
    try:
        while pending and not (broken and not running):
            busy = {s.key for s in running.values()}
            for stage in [] if broken else _ready(pending, busy)[: jobs - len(running)]:
                running[pool.submit(_work, stage, stage.key, bench)] = stage
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _relay(reports, known, watcher)
            for future in finished:
                stage = running.pop(future)
                dead = isinstance(future.exception(), BrokenProcessPool)
                result = "its process was killed (out of memory?)" if dead else future.result()
                if isinstance(result, str) and dead:
                    Store(bench.store).note_failure(stage, result)
                watcher.finish(stage, _settle(stage, result, pending, outcome))
                broken = broken or dead
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if pending:  # a death breaks the whole pool; what did not depend on it goes on in a new one
        _run_side_by_side(pending, bench, jobs, watcher, outcome)


def _relay(reports: Any, known: dict[str, Stage], watcher: Watcher) -> None:  # noqa: ANN401
    while not reports.empty():
        key, done, total, note = reports.get()
        if total:
            watcher.update(known[key], done, total, note)
        else:
            watcher.start(known[key])
