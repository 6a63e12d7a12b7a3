"""What this process may use of the machine it runs on."""

import contextlib
import math
import os
from pathlib import Path


def cores() -> int:
    """Returns how many CPU cores this process may use, by its affinity and its cgroup's quota."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux knows what it may use
    count = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, int(min(count, quota())))


def quota(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns how many cores' time the cgroups of this process leave it; infinity if all.

    Args:
        own: Names the process's cgroup in each hierarchy.
        mounted: Where the hierarchies are: of version 2 itself, of version 1 one in ``cpu``.
    """
    limits = [math.inf]
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = mounted / "cpu" if controllers else mounted
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):  # a container may see the upper ones alone
                limits.append(_limit(folder))
                if folder == top:
                    break
    return min(limits)


def _limit(group: Path) -> float:
    """Returns the quota of one cgroup, in cores."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        time, period = (group / "cpu.max").read_text().split()
        return int(time) / int(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        time, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return int(time) / int(period) if int(time) > 0 else math.inf
    return math.inf
