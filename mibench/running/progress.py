"""Progress on stderr: bars with estimates on a terminal, plain lines elsewhere."""

import sys
import time

from mibench.store import Stage

QUIET_SECONDS = 15.0
"""Without a terminal, the least seconds between two lines of a running stage."""


class Watcher:
    """Shows a run's progress; this one shows failures only."""

    def start(self, stage: Stage) -> None:
        """A stage begins."""

    def update(self, stage: Stage, done: int, total: int, note: str) -> None:
        """A stage has come so far."""

    def finish(self, stage: Stage, error: str | None) -> None:
        """A stage ended."""
        if error:
            sys.stderr.write(f"failed: {stage.describe()}: {error}\n")

    def close(self) -> None:
        """Nothing more will come."""


def display(stages: int, *, quiet: bool, verbose: bool) -> Watcher:
    """Returns what fits the terminal; ``stages`` is how many will run."""
    if quiet:
        return Watcher()
    return Bars(stages) if sys.stderr.isatty() and not verbose else Lines(stages, verbose=verbose)


class Lines(Watcher):
    """One plain line when a stage ends, and now and then while it runs."""

    def __init__(self, stages: int, *, verbose: bool) -> None:
        self._stages = stages
        self._verbose = verbose
        self._ended = 0
        self._begun: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def start(self, stage: Stage) -> None:
        """Notes the time; tells the key if verbose."""
        self._begun[stage.key] = self._told[stage.key] = time.monotonic()
        if self._verbose:
            self._say(f"start {stage.describe()} ({stage.kind}/{stage.key})")

    def update(self, stage: Stage, done: int, total: int, note: str) -> None:
        """Tells how far it is, if the last line is old enough."""
        now = time.monotonic()
        if now - self._told.get(stage.key, now) < QUIET_SECONDS:
            return
        self._told[stage.key] = now
        passed = now - self._begun[stage.key]
        left = passed * (total - done) / max(done, 1)
        self._say(f"{stage.describe()} {done}/{total}, about {left:.0f} s left {note}".rstrip())

    def finish(self, stage: Stage, error: str | None) -> None:
        """Tells how long it took, or what went wrong."""
        self._ended += 1
        seconds = time.monotonic() - self._begun.get(stage.key, time.monotonic())
        head = f"[{self._ended}/{self._stages}] {stage.describe()}"
        self._say(f"{head} failed: {error}" if error else f"{head} {seconds:.1f} s")

    def _say(self, line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class Bars(Watcher):
    """One bar for each running stage and one for the whole grid."""

    def __init__(self, stages: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskID,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._bars.start()
        self._all = self._bars.add_task("all stages", total=stages)
        self._tasks: dict[str, TaskID] = {}

    def start(self, stage: Stage) -> None:
        """Adds the stage's bar."""
        if stage.key not in self._tasks:
            self._tasks[stage.key] = self._bars.add_task(stage.describe(), total=None)

    def update(self, stage: Stage, done: int, total: int, note: str) -> None:
        """Moves the stage's bar."""
        self.start(stage)
        self._bars.update(self._tasks[stage.key], completed=done, total=total)

    def finish(self, stage: Stage, error: str | None) -> None:
        """Removes the stage's bar; a failure stays to be read."""
        if stage.key in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage.key))
        if error:
            self._bars.console.print(f"failed: {stage.describe()}: {error}", markup=False)
        self._bars.advance(self._all)

    def close(self) -> None:
        """Clears the display."""
        self._bars.stop()
