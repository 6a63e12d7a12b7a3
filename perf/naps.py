"""Stages that sleep: what is measured with them is the scheduler's own work."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from mibench.store import Payload, Stage, Work


@dataclass(frozen=True)
class Nap(Stage):
    """Sleeps, and stores its number and when it began and ended."""

    kind: ClassVar[str] = "nap"

    number: int
    milliseconds: int

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns the number and the times, in seconds since 1970."""
        begun = time.time()
        time.sleep(self.milliseconds / 1000)
        return {"number": self.number, "begun": begun, "ended": time.time()}
