"""How fast the hot paths are: ``python -m perf [--device cuda] [--only WORD] [--json OUT]``.

One run measures everything side by side: milliseconds of a step (median over rounds in which
all take turns), images per second, floating-point operations of a step as torch counts them
(matrix products and convolutions), and the share of this machine's matrix rate, the best seen
in the same run, that they make. Ratios are medians, with quartiles, of the ratios in each round:
to the straightforward steps of ``perf.naive``, to others' code installed beside it, or, for a
defense, to training without one.

``--peer-json FILE`` adds a column for figures measured elsewhere, by whoever has another's code
at hand: a JSON object of {"hot path": milliseconds of a step}, named as in the table.
``--json OUT`` writes all that was measured, the machine and the versions. ``--into PAGE`` puts the
table into a page of the documentation, between two lines that say so.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mibench.running.executors import Bench, prepare
from perf import paths

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
PACKAGES = ("torch", "numpy", "scipy", "pytorch-fid")


@dataclass
class Timed:
    """A hot path and what was measured of it.

    Attributes:
        path: The path.
        flops: Floating-point operations of a step.
        seconds: Of a step, per round.
    """

    path: "paths.Path"
    flops: float
    seconds: list[float]


@dataclass(frozen=True)
class Ratio:
    """Seconds of one path divided by another's, over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, upper: Timed, lower: Timed) -> "Ratio":
        """Returns the median and quartiles of the rounds that both took part in."""
        pairs = zip(upper.seconds, lower.seconds, strict=False)
        ratios = sorted(a / b for a, b in pairs)
        quarter = len(ratios) // 4
        return cls(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations of matrix products and convolutions.

    Torch's own counter also follows modules, which forbids gradients of single tensors.
    """

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Runs an operation and adds what it takes."""
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        elif func._overloadpacket is torch.ops.mkldnn._linear_pointwise:  # unknown to torch's
            self.total += 2 * args[0].numel() * out.shape[-1]
        return out


def synchronised(step: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds that ``step`` takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def matrix_rate(device: torch.device) -> float:
    """Returns the best floating-point operations per second of a few float32 products."""
    n = 4096 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0)).to(device)
    out: Tensor = torch.empty_like(a)
    best = min(synchronised(lambda: torch.mm(a, b, out=out), device) for _ in range(5))
    return 2 * n**3 / best


def measure(
    chosen: list["paths.Path"], rounds: int, device: torch.device
) -> tuple[list[Timed], float]:
    """Returns every path with its times, and the matrix rate."""
    timed = []
    for path in chosen:
        if path.rounds is None:
            path.run()
        with Operations() as operations:  # type: ignore[no-untyped-call]
            if path.rounds is None:
                path.run()
        timed.append(Timed(path, operations.total / path.steps, []))
    rate = 0.0
    for i in range(rounds):
        rate = max(rate, matrix_rate(device))
        for t in timed:
            if t.path.rounds is None or i < t.path.rounds:
                t.seconds.append(synchronised(t.path.run, device) / t.path.steps)
    return timed, rate


def compare(timed: list[Timed]) -> dict[str, Ratio]:
    """Returns, by name of path, how many times as long another takes, or a defense's cost."""
    by_name = {t.path.name: t for t in timed}
    ratios = {}
    for t in timed:
        other = by_name.get(t.path.against)
        if other is not None:
            ratios[t.path.name] = Ratio.of(t, other) if t.path.costs else Ratio.of(other, t)
    return ratios


def table(timed: list[Timed], rate: float, peer: dict[str, float]) -> list[str]:
    """Returns the lines of the table."""
    ratios = compare(timed)
    head = ["hot path", "ms per step", "images/s", "GFLOP", "share of matrix rate", "ratio"]
    head += ["times a peer"] * bool(peer)
    lines = [f"| {' | '.join(head)} |", "|:--" + "|--:" * (len(head) - 1) + "|"]
    for t in timed:
        seconds, flops, name = statistics.median(t.seconds), t.flops, t.path.name
        cells = [name, f"{1e3 * seconds:.1f}", f"{t.path.images / seconds:.0f}"]
        counted = [f"{flops / 1e9:.2f}", f"{100 * flops / seconds / rate:.0f} %"]
        cells += counted if flops else ["", ""]
        sense = "of the plain step" if t.path.costs else "times as fast"
        cells.append(f"{ratios[name]} {sense}" if name in ratios else "")
        if peer:
            cells.append(f"{peer[name] / 1e3 / seconds:.2f}" if name in peer else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def put(lines: list[str], page: Path) -> None:
    """Replaces what stands between the two lines of a page that mark the place of a table."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no lines {BEGIN!r} and {END!r}")
    page.write_text("\n".join([before + begin, "", *lines, "", end + after]))


def machine(device: torch.device) -> dict[str, object]:
    """Returns where this runs."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {"device": where, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def installed() -> dict[str, str]:
    """Returns the versions that matter."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def main() -> None:
    """Measures, prints the table and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="paths whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-json", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE")
    options = parser.parse_args()
    prepare(Bench(Path(), Path(), options.device, options.threads))
    device = torch.device(options.device)
    peer = json.loads(options.peer_json.read_text()) if options.peer_json else {}
    chosen = [p for p in paths.every(device) if options.only in p.name]
    with threadpool_limits(options.threads):  # NumPy's and SciPy's; torch has its own
        timed, rate = measure(chosen, options.rounds, device)
    about, versions = machine(device), installed()
    numbers = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(f"{about['device']}, {about['cores']} cores, {about['threads']} thread(s), {numbers}")
    print(f"matrix rate {rate / 1e9:.0f} GFLOP/s (float32), {options.rounds} rounds\n")
    lines = table(timed, rate, peer)
    print("\n".join(lines))
    if options.into:
        put(lines, options.into)
    if options.json:
        report = about | {
            "versions": versions,
            "matrix_rate": rate,
            "paths": {
                t.path.name: {"seconds": t.seconds, "images": t.path.images, "flops": t.flops}
                for t in timed
            },
            "ratios": {n: vars(r) for n, r in compare(timed).items()},
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
