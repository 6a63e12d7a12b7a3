"""A crash at every file-system operation of a run: ``python -m tests.crash``.

A tiny run of two cells is traced once with strace, which sees every system call, those of
compiled libraries too; each operation on its store and its output folder is a point. Then the
run is started again and again from nothing, and at one point after the other

* it is killed as it enters the operation (SIGKILL), or
* at every fifth, the operation fails with ENOSPC or EIO,

and after stages 0, 1, 2, … the store turns read-only. Each time the same command is run once
more. Its table and every stage must then have the bytes of an undisturbed run, nothing may be
left that `mibench clean` does not know, what was finished must not have been computed again,
and no more than one epoch or block of work may have been lost.

The runs are forks of this process, which has everything imported.
"""

import argparse
import contextlib
import ctypes
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

import mibench.reporting.figures
import mibench.store
from mibench.cli import main
from mibench.commands.stores import finished, left_over
from mibench.store import Stage, Store, Work

CALLS = ("openat", "mkdir", "write", "fsync", "rename", "link", "unlink", "unlinkat", "rmdir")
"""What counts as an operation. Opening to read is one too."""
SETTINGS = (
    "recipe.epochs=2", "recipe.batch_size=256", "setting.network.widths=[2,2,2]",
    "setting.evaluators.0.recipe.epochs=1", "setting.evaluators.0.recipe.batch_size=256",
    "setting.evaluators.0.network.widths=[2,2,2]", "attack.prior.epochs=2",
    "attack.prior.batch_size=256", "attack.prior.generator_width=2",
    "attack.prior.discriminator_width=2", "attack.steps=3", "trials.classes=2",
    "trials.samples=2", "protocol.real=4",
)  # fmt: skip
ROWS = ("GMI / No Def.", "GMI / MID")
CAPABILITIES = 0x20080522
OVERRIDES = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
PR_SET_PTRACER = 0x59616D61
MEMORY = Path("/dev/shm")
"""Files in memory: what is to be seen is the order of operations, not the disk's speed."""
PATIENCE = 120.0
"""Seconds after which a run counts as hanging."""

Before = Callable[[], None]


@dataclass(frozen=True)
class Point:
    """The ``nth`` call of one kind, counted from the start of the run."""

    call: str
    nth: int


@dataclass(frozen=True)
class End:
    """How a run ended: its exit status (minus the signal, where it was killed), its stderr."""

    status: int
    said: str


class Rig:
    """Starts runs in a folder of their own and says what they left.

    Attributes:
        base: Has the folders store and out of the run at hand.
        want: Path → bytes that an undisturbed run leaves.
        work: Epochs and blocks that one took.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.want: dict[str, bytes] = {}
        self.work = 0
        self._steps = mmap.mmap(-1, 8)  # shared with the forks

    @property
    def store(self) -> Path:
        """Where stages go."""
        return self.base / "store"

    def clear(self) -> None:
        """Starts from nothing."""
        shutil.rmtree(self.base, ignore_errors=True)
        self.base.mkdir(parents=True)
        self.steps = 0

    @property
    def steps(self) -> int:
        """Epochs and blocks that the runs since :meth:`clear` told of."""
        return int(struct.unpack("q", self._steps[:8])[0])

    @steps.setter
    def steps(self, count: int) -> None:
        self._steps[:8] = struct.pack("q", count)

    def run(self, strace: list[str] | None = None, before: Before | None = None) -> End:
        """Runs the command in a fork, under strace if that is given arguments."""
        log = self.base.parent / f"{self.base.name}.err"
        pid = os.fork()
        if pid == 0:
            try:
                self._child(log, before, wait=strace is not None)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(99)
        tracer = None
        if strace is not None:
            os.waitpid(pid, os.WUNTRACED)
            tracer = subprocess.Popen(
                ["strace", "-f", "-q", *strace, "-p", str(pid)], stderr=subprocess.PIPE
            )
            status = Path(f"/proc/{pid}/status")
            while not re.search(r"TracerPid:\s+[1-9]", status.read_text()):
                if tracer.poll() is not None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise RuntimeError(f"strace cannot attach: {tracer.communicate()[1]!r}")
                time.sleep(0.001)
            os.kill(pid, signal.SIGCONT)
        code = self._wait(pid)
        if tracer is not None:
            tracer.communicate(timeout=PATIENCE)
        return End(code, log.read_text(errors="replace"))

    def _wait(self, pid: int) -> int:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return -999

    def _child(self, log: Path, before: Before | None, *, wait: bool) -> None:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1)
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, -1)  # where only parents may trace
        count, progress = self, Work.progress

        def counted(work: Work, done: int, total: int, note: str = "") -> None:
            progress(work, done, total, note)
            count.steps += 1

        setattr(Work, "progress", counted)  # noqa: B010 - mypy takes it for a method
        if before is not None:
            before()
        if wait:
            os.kill(os.getpid(), signal.SIGSTOP)
        status = run_in_here(self.base)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def left(self) -> dict[str, bytes]:
        """Returns the bytes of every finished stage and of the tables."""
        stages = (path / name for path in finished(self.store) for name in mibench.store.FILES)
        tables = (p for p in (self.base / "out").iterdir() if "-incomplete" not in p.name)
        files = [*stages, *tables]
        return {str(p.relative_to(self.base)): p.read_bytes() for p in files}

    def stamps(self) -> dict[str, int]:
        """Returns stage → the inode of its meta, which tells a stage made anew."""
        metas = self.store.glob("*/*/meta.json")
        return {str(m.parent): m.stat().st_ino for m in metas if ".partial" not in m.parent.name}

    def complaint(self, kept: dict[str, int]) -> str | None:
        """Runs the command again; returns what is not as it has to be.

        Args:
            kept: What :meth:`stamps` said before.
        """
        end = self.run()
        if end.status:
            return f"the run after it ended with status {end.status}: {end.said[-400:]}"
        if (left := self.left()) != self.want:
            odd = {p for p in self.want.keys() | left if self.want.get(p) != left.get(p)}
            return f"other bytes in {', '.join(sorted(odd))}"
        known = {*left_over(self.store), *finished(self.store)}
        strange = [p for p in self.store.glob("*/*") if p not in known]
        if strange := [p for p in strange if p.parent.name != mibench.store.QUARANTINE]:
            return f"left behind {', '.join(map(str, strange))}"
        if not kept.items() <= self.stamps().items():
            return "computed again what was finished"
        if self.steps > self.work + 1:
            return f"lost {self.steps - self.work} epochs or blocks"
        return None


def run_in_here(base: Path) -> int:
    """Runs the command in this process; returns its exit status."""
    args = ["run", "smoke", "--store", str(base / "store"), "--out", str(base / "out")]
    args += [arg for row in ROWS for arg in ("--rows", row)]
    args += [arg for setting in SETTINGS for arg in ("--set", setting)]
    try:
        main([*args, "--executor", "serial", "--quiet", "--device", "cpu"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def undisturbed(rig: Rig) -> None:
    """Runs once in this process, which loads all code, and once in a fork, as is wanted."""
    rig.clear()
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert run_in_here(rig.base) == 0
    rig.clear()
    end = rig.run()
    assert end.status == 0, end.said
    rig.want, rig.work = rig.left(), rig.steps
    assert rig.complaint(rig.stamps()) is None


def points(rig: Rig) -> list[Point]:
    """Traces a run; returns its operations on the store and the output, in their order."""
    rig.clear()
    log = rig.base.parent / f"{rig.base.name}.trace"
    end = rig.run(["-y", "-s", "0", "-e", f"trace={','.join(CALLS)}", "-o", str(log)])
    assert end.status == 0, end.said
    counts = dict.fromkeys(CALLS, 0)
    found = []
    first = None
    for line in log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d+)\s+(\w+)\((.*)", line)
        if match is None:
            continue
        thread, call, rest = match.groups()
        first = first or thread
        if thread != first:  # strace counts each thread's calls apart; only this one writes
            assert f"{rig.base}/" not in rest, "another thread writes to the store"
            continue
        counts[call] += 1
        if f"{rig.base}/" in rest:
            found.append(Point(call, counts[call]))
    return found


def kills(rig: Rig, chosen: list[Point]) -> Iterator[tuple[str, str | None]]:
    """Yields what was done and what went wrong, point by point."""
    for point in chosen:
        rig.clear()
        when = f"{point.call}:signal=KILL:when={point.nth}"
        end = rig.run(["-o", "/dev/null", "-e", f"trace={point.call}", "-e", f"inject={when}"])
        what = f"killed at {point.call} {point.nth}"
        if end.status != -signal.SIGKILL:
            yield what, f"it was not: status {end.status}"
        else:
            yield what, rig.complaint(rig.stamps() if rig.store.exists() else {})


def errors(rig: Rig, chosen: list[Point]) -> Iterator[tuple[str, str | None]]:
    """Yields what was done and what went wrong, point by point and error by error."""
    for point in chosen:
        for code in ("ENOSPC", "EIO"):
            rig.clear()
            when = f"{point.call}:error={code}:when={point.nth}"
            end = rig.run(["-o", "/dev/null", "-e", f"trace={point.call}", "-e", f"inject={when}"])
            what = f"{code} at {point.call} {point.nth}"
            yield what, one_sentence(end) or rig.complaint(rig.stamps())


def one_sentence(end: End) -> str | None:
    """Returns what is wrong with how a run met an error of the file system.

    It may have gone on (an error as it tidies up); else it has begun and says why it stops, or
    has not begun and refuses.
    """
    if end.status == 0:
        return None
    lines = [line for line in end.said.splitlines() if line.startswith("Error: ")]
    if end.status in (1, 2) and "Traceback" not in end.said and len(lines) == 1:
        return None
    return f"status {end.status}, and it said: {end.said[-400:]}"


def turns(rig: Rig, chosen: list[int]) -> Iterator[tuple[str, str | None]]:
    """Yields the same where the store turns read-only after so many stages."""
    for count in chosen:
        rig.clear()
        end = rig.run(before=lambda count=count: turn_after(rig.store, count))  # type: ignore[misc]
        for path in (rig.store, *rig.store.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        done = len(rig.stamps())
        what = f"read-only after stage {count}"
        if end.status != 1 or done != count:
            yield what, f"status {end.status}, {done} stages: {end.said[-400:]}"
        else:
            yield what, one_sentence(end) or rig.complaint(rig.stamps())


def obey_permissions() -> None:
    """Takes from root the capabilities that let it write where permissions forbid it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", CAPABILITIES, 0)
    sets = ctypes.create_string_buffer(24)  # effective, permitted, inheritable, twice
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    words = list(struct.unpack("6I", sets.raw))
    words[:2] = (word & ~OVERRIDES for word in words[:2])
    assert libc.capset(header, struct.pack("6I", *words)) == 0, os.strerror(ctypes.get_errno())


def turn_after(store: Path, count: int) -> None:
    """Makes the store read-only once so many stages are done, for a user whom that stops."""
    if os.getuid() == 0:
        obey_permissions()
    real, done = Store.complete, 0

    def complete(self: Store, stage: Stage, *args: object) -> bool:
        nonlocal done
        if done == count:
            for path in (*store.rglob("*"), store):
                if path.is_dir():
                    path.chmod(0o555)
        done += 1
        return real(self, stage, *args)  # type: ignore[arg-type]

    setattr(Store, "complete", complete)  # noqa: B010 - mypy takes it for a method


def prepare() -> None:
    """Makes runs small: every epoch and step is saved, no picture is drawn."""
    torch.set_num_threads(1)
    Work.__init__.__defaults__ = (*(Work.__init__.__defaults__ or ())[:-1], 0.0)
    for name in ("draw_reconstructions", "draw_tradeoff", "draw_samples", "draw_training"):
        setattr(mibench.reporting.figures, name, lambda *_, **__: None)


def share(everything: list[Point], part: int, parts: int, every: int) -> list[Point]:
    """Returns the points of one of several workers, thinned out."""
    return everything[::every][part::parts]


def matrix(
    base: Path, every: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[str, str | None]]:
    """Yields what was done and what went wrong: None where nothing did.

    Args:
        base: A folder to work in.
        every: 1 for all points, n for every nth.
        part: This worker's number.
        parts: How many there are.
    """
    prepare()
    rig = Rig(base / f"run-{part}")
    undisturbed(rig)
    everything = points(rig)
    stages = len(rig.stamps())
    assert len(everything) > 200, "the run does too little"
    if part == 0:
        yield f"{len(everything)} points of {stages} stages", None
    yield from kills(rig, share(everything, part, parts, every))
    yield from errors(rig, share(everything, part, parts, 5 * every))
    yield from turns(rig, list(range(0, stages, max(1, every // 5)))[part::parts])


def command() -> int:
    """Runs the matrix, on several cores; prints a summary; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--every", type=int, default=1, help="every nth point only")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        Path(folder).chmod(0o755)
        readers = []
        for part in range(options.jobs):
            read, write = os.pipe()
            if os.fork() == 0:
                os.close(read)
                try:
                    with os.fdopen(write, "w") as out:
                        for what, wrong in matrix(Path(folder), options.every, part, options.jobs):
                            out.write(f"{what}\t{' '.join((wrong or '').split())}\n")
                            out.flush()
                        out.write("end\t\n")
                finally:
                    os._exit(0)
            os.close(write)
            readers.append(os.fdopen(read))
        counts: dict[str, int] = {}
        failures = 0
        ended = 0
        for line in merged(readers):
            what, _, wrong = line.rstrip("\n").partition("\t")
            ended += what == "end"
            kind = what.split(" at ")[0].split(" after ")[0]
            counts[kind] = counts.get(kind, 0) + 1
            failures += bool(wrong)
            if wrong:
                sys.stdout.write(f"FAILED {what}: {wrong}\n")
            if sum(counts.values()) % 100 == 0:
                sys.stdout.write(f"{sum(counts.values())} done, {failures} failed\n")
            sys.stdout.flush()
    counts.pop("end", None)
    told = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items())
    minutes = (time.monotonic() - begun) / 60
    sys.stdout.write(f"{told}: {failures} failures, {minutes:.1f} minutes\n")
    return int(failures > 0 or ended < options.jobs)


def merged(readers: Sequence[TextIO]) -> Iterator[str]:
    """Yields lines as they come, of all workers."""
    import selectors

    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader, selectors.EVENT_READ, reader)
        while selector.get_map():
            for key, _ in selector.select():
                if line := key.data.readline():
                    yield line
                else:
                    selector.unregister(key.fileobj)


if __name__ == "__main__":
    sys.exit(command())
