"""How fast the hot paths are: ``python -m perf [--device cuda] [--only WORD] [--peer-json FILE]``.

One run measures everything side by side: milliseconds of a step (median over rounds in which
all take turns), images per second, floating-point operations of a step as torch counts them
(matrix products and convolutions), and the share of this machine's matrix rate, measured in
the same run, that they make. "times" is how many times as fast as the straightforward steps of
``perf.naive``, or as a peer: ``--peer-json`` names a file of {"hot path": milliseconds}
measured elsewhere, for whoever has another's code at hand.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mibench.benchmarks.executors import Bench, prepare
from perf import paths


@dataclass
class Timed:
    """A hot path and what was measured of it."""

    path: "paths.Path"
    seconds: list[float]
    flops: int


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
    """Returns the best floating-point operations per second of float32 products seen."""
    n = 4096 if device.type == "cuda" else 1024
    a, b = torch.randn(2, n, n, generator=torch.Generator().manual_seed(0)).to(device)
    out: Tensor = torch.empty_like(a)
    best = min(synchronised(lambda: torch.mm(a, b, out=out), device) for _ in range(20))
    return 2 * n**3 / best


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="paths whose name has this in it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-json", type=Path)
    options = parser.parse_args()
    prepare(Bench(Path(), Path(), options.device))
    device = torch.device(options.device)
    peer = json.loads(options.peer_json.read_text()) if options.peer_json else {}
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    rate = matrix_rate(device)
    print(
        f"{where}, {torch.get_num_threads()} thread, torch {torch.__version__}, matrix rate ",
        end="",
    )
    print(f"{rate / 1e9:.0f} GFLOP/s (float32)\n")
    timed = []
    for path in paths.every(device):
        if options.only in path.name:
            path.step()
            with Operations() as operations:  # type: ignore[no-untyped-call]
                path.step()
            timed.append(Timed(path, [], operations.total))
    for _ in range(options.rounds):
        for t in timed:
            t.seconds.append(synchronised(t.path.step, device))
    plain = {t.path.name: t for t in timed}
    print("| hot path | ms per step | images/s | GFLOP | share of matrix rate | times |")
    print("|:--|--:|--:|--:|--:|--:|")
    for t in timed:
        seconds = statistics.median(t.seconds)
        cells = [f"{1e3 * seconds:.1f}", f"{t.path.images / seconds:.0f}", f"{t.flops / 1e9:.2f}"]
        cells.append(f"{100 * t.flops / seconds / rate:.0f} %")
        other = plain.get(f"{t.path.name}, straightforward")
        if other is not None:
            ratios = [o / s for o, s in zip(other.seconds, t.seconds, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        elif t.path.name in peer:
            cells.append(f"{peer[t.path.name] / 1e3 / seconds:.2f} (peer)")
        else:
            cells.append("")
        print(f"| {t.path.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
