"""What executors share: where a run takes place, which stages can run, how a failure is kept.

Executors differ in nothing but where a stage runs; keys, store and bits are the same.
"""

import contextlib
import ctypes
import heapq
import importlib.util
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from mibench import precision
from mibench.running.progress import Watcher
from mibench.running.userfile import load_user_file
from mibench.sources import CHANGED, is_users
from mibench.store import Report, Stage, Store, StoreError

Result = bool | str
"""Whether a stage was computed here (or by somebody else), or what went wrong."""

KILLED = "its process was killed (out of memory?)"


@dataclass(frozen=True)
class Bench:
    """Where things are and how they are computed. None of it decides a result or enters a key.

    Attributes:
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of each stage; another number may change the last bits.
        user_file: The user's Python file, whose classes other processes must know too.
        precision: Of networks: "float32" or "bf16".
        heavy: Whether the work is meant for a GPU, which a cluster is then asked for.
    """

    store: Path
    data: Path
    device: str = "cpu"
    threads: int = 1
    user_file: Path | None = None
    precision: str = precision.FLOAT32
    heavy: bool = False


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


class Schedule:
    """Which stages of a graph can run now, and what has become of the others.

    Args:
        stages: In an order where needs come first; it is also the order of preference.
        done: Keys of those in the store.
    """

    def __init__(self, stages: Iterable[Stage], done: Iterable[str]) -> None:
        self.outcome = Outcome()
        self.pending: dict[str, Stage] = {}
        self._missing: dict[str, int] = {}  # needs that are not done
        self._dependants: dict[str, list[str]] = {}
        self._order: dict[str, int] = {}
        self._ready: list[tuple[int, str]] = []
        there = set(done)
        for stage in stages:
            if stage.key in there:
                self.outcome.cached += 1
                continue
            self._order[stage.key] = len(self._order)
            self.pending[stage.key] = stage
            needs = [n.key for n in stage.needs if n.key in self.pending]
            self._missing[stage.key] = len(needs)
            for need in needs:
                self._dependants.setdefault(need, []).append(stage.key)
            if not needs:
                self.put_back(stage)

    @property
    def ready(self) -> int:
        """How many stages could be taken now."""
        return len(self._ready)

    def take(self) -> Stage:
        """Returns the first stage whose needs are done; it is running from now on."""
        return self.pending[heapq.heappop(self._ready)[1]]

    def put_back(self, stage: Stage) -> None:
        """Makes a stage ready, such as one whose worker is lost."""
        heapq.heappush(self._ready, (self._order[stage.key], stage.key))

    def settle(self, stage: Stage, result: Result) -> str | None:
        """Books a stage's end, the one place where a failure is kept; returns what went wrong.

        A stage that fails takes with it only what depends on it.
        """
        del self.pending[stage.key]
        if isinstance(result, str):
            self.outcome.failures[stage.key] = result
            lost = [stage.key]
            while lost:
                for key in self._dependants.get(lost.pop(), ()):
                    if key in self.pending:
                        self.outcome.skipped.append(self.pending.pop(key))
                        lost.append(key)
            return result
        self.outcome.computed += result
        self.outcome.cached += not result
        for key in self._dependants.get(stage.key, ()):
            self._missing[key] -= 1
            if not self._missing[key] and key in self.pending:
                self.put_back(self.pending[key])
        return None


@dataclass(frozen=True)
class Executor(ABC):
    """A way to run a graph of stages; its fields say where and how many at once."""

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    """What it needs that a plain installation lacks; an extra of mibench has the same name."""

    def check(self, bench: Bench) -> Bench:
        """Returns what a run gets, ``bench.device`` "auto" being decided; begins nothing.

        Raises:
            ValueError: If it cannot run here; the message says what to do.
        """
        extra = type(self).name
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise ValueError(
                f"--executor {extra} needs the package {self.package}: "
                f"pip install 'mibench[{extra}]'"
            )
        return bench

    def slots(self, bench: Bench) -> int | None:
        """Returns how many stages run side by side; None if only the cluster knows."""
        return 1

    @abstractmethod
    def run(self, schedule: Schedule, bench: Bench, watcher: Watcher) -> None:
        """Runs all pending stages, as far as they succeed."""


def execute(
    stages: Sequence[Stage], bench: Bench, watcher: Watcher, executor: Executor
) -> Outcome:
    """Completes all stages (in an order where needs come first), as far as they succeed."""
    states = Store(bench.store).states(stages)
    schedule = Schedule(stages, [key for key, state in states.items() if state == "done"])
    if schedule.pending:
        executor.run(schedule, bench, watcher)
    return schedule.outcome


def attempt(stage: Stage, bench: Bench, report: Report) -> Result:
    """Completes one stage in this process, which must be prepared; keeps any exception."""
    try:
        with precision.at(bench.precision):
            return Store(bench.store).complete(stage, bench.device, bench.data, report)
    except StoreError:  # the others could not be kept either
        raise
    except SystemExit as error:
        if "submitit" in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # the cluster takes the job back
        return explain(error)
    except Exception as error:
        return explain(error)


def begin(bench: Bench) -> None:
    """Makes this process one that completes stages of others: it knows the user's classes."""
    if bench.user_file is not None:
        load_user_file(bench.user_file)
    prepare(bench)


def work(stage: Stage, key: str, bench: Bench, report: Report) -> Result:
    """Completes a stage that another process handed over, and reports when it begins.

    Args:
        stage: The stage, as this process reads it.
        key: The key that it had there; it has another if the user's file was changed meanwhile.
        bench: Where.
        report: Takes (0, 0, "") first, then progress a few times a second.
    """
    if not same_keys([stage], [key]):
        return CHANGED
    report(0, 0, "")
    return attempt(stage, bench, seldom(report))


def same_keys(stages: Iterable[Stage], keys: Sequence[str]) -> bool:
    """Whether stages of another process have here the keys that they had there."""
    try:
        return [stage.key for stage in stages] == list(keys)
    except ValueError:  # the file changed since this process loaded it
        return False


def seldom(report: Report, seconds: float = 0.2) -> Report:
    """Returns a report that passes on one call in ``seconds`` at most, and the last."""
    last = 0.0

    def pass_on(done: int, total: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > seconds or done == total:
            last = time.monotonic()
            report(done, total, note)

    return pass_on


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


def device_here(name: str) -> str:
    """Returns the device to compute on in this machine; "auto" is the GPU if there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    check_device(name)
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name}; found {torch.cuda.device_count()} CUDA devices")
    return name


def check_device(name: str) -> None:
    """Refuses what names no device anywhere."""
    kind, colon, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and index.isdigit())):
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")


def elsewhere(bench: Bench, gpus: Callable[[], bool]) -> Bench:
    """Returns the bench as other machines see it: absolute paths; "auto" asks for their GPUs.

    Raises:
        ValueError: If one GPU is named: there the cluster chooses.
    """
    if bench.device == "auto":
        device = "cuda" if gpus() else "cpu"
    else:
        check_device(device := bench.device)
        if ":" in device:
            raise ValueError(f"{device}: a cluster chooses the GPU; use --device cuda")
    file = bench.user_file and bench.user_file.resolve()
    store, data = bench.store.resolve(), bench.data.resolve()
    return replace(bench, store=store, data=data, device=device, user_file=file)


def explain(error: BaseException) -> str:
    """Returns one sentence for people."""
    text = str(error).strip().split("\n")[0]
    plain = (ValueError, FileNotFoundError, FloatingPointError)
    sentence = text if isinstance(error, plain) and text else f"{type(error).__name__}: {text}"
    sentence = "; ".join([sentence, *getattr(error, "__notes__", [])])
    where = ""
    with contextlib.suppress(OSError):  # a file may be out of reach
        for frame in traceback.extract_tb(error.__traceback__):
            if Path(frame.filename).is_file() and is_users(Path(frame.filename)):
                where = f" ({frame.filename}, line {frame.lineno})"
    return sentence + where
