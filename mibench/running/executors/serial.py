"""One stage after the other, in this process."""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from mibench.running.executors.base import (
    Bench,
    Executor,
    Schedule,
    attempt,
    device_here,
    prepare,
)
from mibench.running.progress import Watcher


@dataclass(frozen=True)
class Serial(Executor):
    """One stage after the other, in this process."""

    name: ClassVar[str] = "serial"

    def check(self, bench: Bench) -> Bench:
        """Finds the device."""
        return replace(super().check(bench), device=device_here(bench.device))

    def run(self, schedule: Schedule, bench: Bench, watcher: Watcher) -> None:
        """Runs the stages in their order."""
        prepare(bench)
        while schedule.pending:
            stage = schedule.take()
            watcher.start(stage)
            report = partial(watcher.update, stage)
            watcher.finish(stage, schedule.settle(stage, attempt(stage, bench, report)))
