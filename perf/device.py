"""One prepared run on a GPU: ``python -m perf.device OUT [--minutes 12] [--data FOLDER]``.

Parts run in order of value, each in a process of its own with a time limit, and what each prints
lies in OUT as it comes: whatever ends the run, the parts before it are there. ``--device cpu
--tiny`` rehearses all of them with small sizes.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mibench.running.executors import Bench, prepare
from perf.__main__ import measure, table
from perf.paths import batches
from perf.same_results import payloads

ROOT = Path(__file__).parent.parent
ROW = ("smoke", "KED-MI / BiDO-HSIC")
FACES = ("celeba300", "GMI / No Def.")
FEW = ("attack.prior.epochs=1", "attack.steps=5", "recipe.epochs=1")
MIBENCH = (sys.executable, "-c", "from mibench.cli import main; main()")


@dataclass(frozen=True)
class Part:
    """What is run.

    Attributes:
        name: Of its file.
        command: Its process.
        limit: Seconds it may take.
    """

    name: str
    command: tuple[str, ...]
    limit: float


def parts(device: str, data: Path, *, tiny: bool) -> Iterator[Part]:
    """Yields the parts, those that tell most first."""
    own = ("--device", device, *(["--tiny"] if tiny else []))
    here = (sys.executable, "-m", "perf.device")
    chosen = ["tests/test_gpu.py" if tiny else "tests", "-m", "gpu"]
    yield Part("tests", (sys.executable, "-m", "pytest", "-n", "0", "-q", "-rs", *chosen), 150)
    for precision in ("float32", "bf16"):
        twice = (*here, "--part", "determinism", "--precision", precision, *own)
        yield Part(f"determinism-{precision}", twice, 90)
    yield Part("paths", (sys.executable, "-m", "perf.precision", "--rounds", "3", *own), 240)
    yield Part("blocks", (*here, "--part", "blocks", *own), 60)
    table_, row = ROW if tiny else FACES
    changes = [x for change in FEW for x in ("--set", change)] if tiny else []
    with TemporaryDirectory() as folder:
        places: tuple[str, ...] = (
            "--store",
            folder,
            "--out",
            folder,
            "--data",
            str(data),
            "--quiet",
        )
        places = (*places, "--device", device, "--precision", "bf16", "--executor", "serial")
        yield Part("row", (*MIBENCH, "run", table_, "--rows", row, *places, *changes), 180)


def run(part: Part, out: Path, seconds: float) -> dict[str, object]:
    """Runs a part within its limit and the seconds that are left; returns how it ended."""
    limit = min(part.limit, seconds)
    begun = time.monotonic()
    ended = "not begun: no time is left"
    if limit > 0:
        with (out / f"{part.name}.txt").open("w") as file:
            try:
                done = subprocess.run(
                    part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit,
                    check=False,
                )  # fmt: skip
                ended = f"exit status {done.returncode}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit:.0f} s"
    return {"part": part.name, "ended": ended, "seconds": round(time.monotonic() - begun, 1)}


def determinism(device: str, precision: str, *, tiny: bool) -> int:
    """Computes a row of smoke twice and compares all payloads; returns an exit status."""
    changes = [x for change in FEW for x in ("--set", change)] if tiny else []
    sides = []
    for _ in range(2):
        with TemporaryDirectory() as folder:
            places = ["--store", folder, "--out", folder, "--quiet", "--executor", "serial"]
            where = ["--device", device, "--precision", precision, *places, *changes]
            subprocess.run([*MIBENCH, "run", ROW[0], "--rows", ROW[1], *where], check=True)
            sides.append(payloads(Path(folder)))
    differing = [key for key in sides[0] if sides[0][key] != sides[1].get(key)]
    print(f"{len(sides[0])} stages, {len(differing)} differ when computed again in {precision}")
    print("\n".join(differing))
    return 1 if differing or not sides[0] else 0


def blocks(device: str, *, tiny: bool) -> int:
    """Prints how much quicker blocks and restarts are together than one after the other."""
    prepare(Bench(Path(), Path(), device))
    at = torch.device(device)
    few = partial(batches, at, 2, 2, 2) if tiny else partial(batches, at)
    timed, rate = measure(list(few()), 1 if tiny else 3, at)
    print("\n".join(table(timed, rate, {})))
    return 0


def main() -> int:
    """Runs the parts, or one of those that live here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", default=Path("perf-device"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all runs")
    parser.add_argument("--part", choices=["determinism", "blocks"], help=argparse.SUPPRESS)
    parser.add_argument("--precision", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "determinism":
        return determinism(options.device, options.precision, tiny=options.tiny)
    if options.part == "blocks":
        return blocks(options.device, tiny=options.tiny)
    end = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    with (options.out / "results.jsonl").open("w") as file:
        for part in parts(options.device, options.data, tiny=options.tiny):
            if options.tiny:  # a rehearsal may share a slow CPU
                part = replace(part, limit=10 * part.limit)
            result = run(part, options.out, end - time.monotonic())
            failed |= result["ended"] != "exit status 0"
            print(json.dumps(result), file=file, flush=True)
            print(f"{part.name}: {result['ended']}, {result['seconds']} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
