"""Eight processes fill overlapping tables in one store: ``python -m tests.soak --seconds N``.

In each round a store is filled from nothing by eight processes, whose tables share most of
their stages. Most rounds are disturbed: processes are killed (SIGKILL) and started again, or
stopped (SIGSTOP) and, some longer than their lease, continued; one stays stopped until all
others have finished. Then every payload must be right, a stage once committed must have stayed
the same folder, nobody may have waited much longer than a lease, and nothing may lie about that
``mibench clean`` does not know. In a round without faults each stage is computed once.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from mibench.commands.stores import finished, left_over
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.seeding import generator
from mibench.store import Payload, Stage, Store, Work

PROCESSES = 8
LEASE = 2.0
"""Seconds, in a disturbed round; 20 times as many in one without faults."""
PATIENCE = 30.0
"""Beyond a lease and the work itself, so long may a loaded machine take."""

Load = Callable[[Stage], Payload]


@dataclass(frozen=True)
class Leaf(Stage):
    """Draws numbers, step by step; each step is saved."""

    kind: ClassVar[str] = "leaf"

    seed: int

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the numbers."""
        return {"numbers": walk(self, work, torch.zeros(4))}


@dataclass(frozen=True)
class Mix(Stage):
    """Goes on from the sum of others."""

    kind: ClassVar[str] = "mix"

    parts: tuple[Stage, ...]
    seed: int

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the numbers."""
        parts = [load(p)["numbers"] for p in self.parts]
        return {"numbers": walk(self, work, torch.stack(parts).sum(0))}


def walk(stage: Leaf | Mix, work: Work, start: torch.Tensor) -> torch.Tensor:
    """Takes four random steps from ``start``; notes that it began."""
    with (work.data / "begun").open("a") as file:
        file.write(f"{stage.key}\n")
    rng, x, first = generator(stage.kind, stage.seed), start, 0
    if (saved := work.load()) is not None:
        x, first = saved["x"], saved["done"]
        rng.set_state(saved["rng"])
    for i in range(first, 4):
        x = x.cos() + torch.randn(4, generator=rng)
        time.sleep(0.003)
        work.save(lambda x=x, i=i: {"x": x, "done": i + 1, "rng": rng})  # type: ignore[misc]
        work.progress(i + 1, 4)
    return x


def tops(round_: int) -> list[Mix]:
    """Returns the last stages of a round's tables."""
    leaves = [Leaf(1000 * round_ + i) for i in range(16)]
    middle = [
        Mix((leaves[i], leaves[(i + 1) % 16], leaves[(5 * i) % 16]), 1000 * round_ + i)
        for i in range(16)
    ]
    return [
        Mix((middle[2 * i], middle[(2 * i + 3) % 16], leaves[i]), 1000 * round_ + 100 + i)
        for i in range(8)
    ]


def order(last: Sequence[Stage]) -> list[Stage]:
    """Returns the stages that the given ones rest on, needs before needers."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        for need in stage.needs:
            visit(need)
        found.setdefault(stage.key, stage)

    for stage in last:
        visit(stage)
    return list(found.values())


def expected(stages: Sequence[Stage]) -> dict[str, torch.Tensor]:
    """Computes everything in memory, without a store."""
    numbers: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(data=Path(folder))
        for stage in stages:
            payload = stage.compute(lambda s: {"numbers": numbers[s.key]}, work)
            numbers[stage.key] = payload["numbers"]
    return numbers


@dataclass
class Tally:
    """What a soak did and found."""

    rounds: int = 0
    stages: int = 0
    begun: int = 0
    kills: int = 0
    stops: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.stages} stages committed, {self.begun} begun, "
            f"{self.kills} SIGKILL, {self.stops} SIGSTOP, longest wait after the last fault "
            f"{self.longest:.1f} s: {len(self.wrong)} wrong or lost"
        )


def start(base: Path, last: Sequence[Stage], seed: int, lease: float) -> int:
    """Forks a process that fills one table; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        shuffled = random.Random(seed).sample(list(last), len(last))
        Store.__init__.__defaults__ = (lease,)
        outcome = execute(order(shuffled), Bench(base / "store", base), Watcher(), Serial())
        status = 1 if outcome.failures else 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def play(base: Path, number: int, rng: random.Random, tally: Tally, *, faults: bool) -> None:
    """Plays one round and adds what it found to the tally."""
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    last = tops(number)
    tables = [[last[(i + j) % 8] for j in range(4)] for i in range(PROCESSES)]
    lease = LEASE if faults else 20 * LEASE
    alive = {start(base, t, 100 * number + i, lease): t for i, t in enumerate(tables)}
    stopped: dict[int, float] = {}
    seen: dict[str, int] = {}
    kept = rng.choice(list(alive)) if faults else 0
    when = time.monotonic() + rng.uniform(0, 0.6)  # it is stopped until all others are done
    quiet = time.monotonic() + (rng.uniform(1, 4) if faults else 0)
    hurt = 0
    wrong = tally.wrong

    def say(what: str) -> None:
        wrong.append(f"round {number}: {what}")

    while alive.keys() - {kept}:
        now = time.monotonic()
        for pid in list(alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                table = alive.pop(pid)
                stopped.pop(pid, None)
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL:
                    alive[start(base, table, rng.randrange(10**6), lease)] = table
                elif code:
                    say(f"a process ended with status {code}")
        for pid in [p for p, until in stopped.items() if until < now]:
            os.kill(pid, signal.SIGCONT)
            del stopped[pid]
        if kept in alive and kept not in stopped and now > when:
            os.kill(kept, signal.SIGSTOP)
            stopped[kept] = float("inf")
            tally.stops += 1
            hurt += 1
        if faults and now < quiet and (others := list(alive.keys() - {kept})):
            time.sleep(rng.uniform(0.01, 0.15))
            pid = rng.choice(others)
            hurt += 1
            if rng.random() < 0.5:
                os.kill(pid, signal.SIGKILL)
                tally.kills += 1
            else:
                os.kill(pid, signal.SIGSTOP)
                stopped[pid] = now + rng.choice([0.2, 0.5 * lease, 2 * lease])
                tally.stops += 1
        else:
            time.sleep(0.02)
        for path in finished(base / "store"):
            node = path.stat().st_ino
            if seen.setdefault(str(path), node) != node:
                say(f"{path.name} was committed twice")
        if now > quiet + 3 * lease + PATIENCE:
            say("processes wait for each other")
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            break
    if faults:
        tally.longest = max(tally.longest, time.monotonic() - quiet)
    for pid in alive:  # the one that stayed stopped
        os.kill(pid, signal.SIGCONT)
        if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            say(f"the process that was stopped longest ended with status {code}")
    judge(base, order(last), seen, hurt, tally, say)
    tally.rounds += 1


def judge(
    base: Path,
    stages: Sequence[Stage],
    seen: dict[str, int],
    hurt: int,
    tally: Tally,
    say: Callable[[str], None],
) -> None:
    """Compares what a round left with what it has to be."""
    store, want = Store(base / "store"), expected(stages)
    for stage in stages:
        path = store.path(stage)
        if store.state(stage) != "done":
            say(f"{stage.key} is lost")
        elif not torch.equal(store.load(stage)["numbers"], want[stage.key]):
            say(f"{stage.key} is wrong")
        elif seen.get(str(path), path.stat().st_ino) != path.stat().st_ino:
            say(f"{stage.key} was committed twice")
    known = {*left_over(store.root), *finished(store.root)}
    if strange := [p for p in store.root.glob("*/*") if p not in known]:
        say(f"left behind {strange}")
    begun = Counter((base / "begun").read_text().split())
    if sum(begun.values()) > len(stages) + hurt or begun.keys() != want.keys():
        say(f"{sum(begun.values())} stages begun for {len(stages)} and {hurt} faults")
    tally.stages += len(stages)
    tally.begun += sum(begun.values())


def soak(seconds: float, seed: int) -> Tally:
    """Plays rounds for so long, every fifth without faults."""
    torch.set_num_threads(1)
    Work.__init__.__defaults__ = (*(Work.__init__.__defaults__ or ())[:-1], 0.0)
    tally, rng, begin = Tally(), random.Random(seed), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() - begin < seconds:
            faults = tally.rounds % 5 != 1
            play(Path(folder) / "round", tally.rounds, rng, tally, faults=faults)
            if tally.rounds % 20 == 0:
                sys.stdout.write(f"{tally}\n")
                sys.stdout.flush()
    return tally


def command() -> int:
    """Soaks, prints what it found, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tally = soak(options.seconds, options.seed)
    for what in tally.wrong:
        sys.stdout.write(f"WRONG {what}\n")
    sys.stdout.write(f"{tally}\n")
    return int(bool(tally.wrong))


if __name__ == "__main__":
    sys.exit(command())
