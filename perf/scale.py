"""How far store and scheduler go: ``python -m perf.scale cached|overhead|ray|speed``.

* ``cached``: makes a store of finished cells (their numbers are drawn at random), once as
  many seeds of ``smoke`` and once as many rows, and times ``mibench status`` and ``table``.
* ``overhead``: what an executor spends on a stage beside the stage, by stages that do nothing.
* ``ray``: how busy the slots of a Ray cluster on this machine are kept by sleeping stages.
* ``speed``: ``local[2]`` against ``local[1]`` on a table, each from an empty store, and whether
  the payloads are the same.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mibench.benchmarks.export import record_stages
from mibench.benchmarks.stages import RecordStage, graph
from mibench.benchmarks.tables import TABLES, Table
from mibench.defenses import BiDO
from mibench.spec import canonical
from mibench.store import Stage

MIBENCH = (sys.executable, "-m", "mibench.cli")
ROWS_FILE = '''"""{rows} rows."""

from perf.scale import wide

TABLE = wide({rows})
'''


def wide(rows: int) -> Table:
    """Returns a table of so many rows: the attacks of ``smoke`` by weights of BiDO."""
    smoke = TABLES["smoke"]
    attacks = ("GMI", "KED-MI", "VMI")
    made = {}
    for i in range(rows):
        attack, weight = attacks[i % len(attacks)], 1 + i // len(attacks)
        cell = smoke.rows[f"{attack} / BiDO-HSIC"]
        cell = replace(cell, defense=BiDO("nhsic", lambda_x=weight / 1000, lambda_y=0.5))
        made[f"{attack} / BiDO {weight}"] = cell
    return replace(smoke, name="wide", caption=f"{rows} rows.", rows=made)


def fill(stages: Iterable[Stage], root: Path) -> int:
    """Writes stages as if they had been computed, without waiting for the disk."""
    rng = random.Random(0)
    count = 0
    empty = (8).to_bytes(8, "little") + b"{}      "  # a safetensors file of no tensor
    for stage in stages:
        folder = root / stage.kind / stage.key
        folder.mkdir(parents=True)
        tree: object = {}
        if isinstance(stage, RecordStage):
            score = {"mean": 100 * rng.random(), "std": rng.random(), "n": 50}
            tree = {
                "scores": {name: score for name, _ in stage.metrics},
                "values": {name: [[rng.random()] * 50] for name, _ in stage.metrics},
                "sizes": {"reconstructions": 50, "real": 200, "dimensions": 64, "classes": 10},
                "evaluator": {"accuracy": 98.0},
                "cell": canonical(stage.cell),
                "stages": [f"{s.kind}/{s.key}" for s in graph([stage])],
                "queries": 0,
                "warnings": [],
            }
        files = {
            "payload.safetensors": empty,
            "payload.json": json.dumps(tree, indent=1).encode(),
            "spec.json": b"{}",
        }
        sums = {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
        meta = {"seconds": 1.0, "device": "cpu", "threads": 1, "sha256": sums}
        for name, data in (files | {"meta.json": json.dumps(meta).encode()}).items():
            (folder / name).write_bytes(data)
        count += 1
    return count


def cached(cells: int, root: Path | None) -> None:
    """Prints how long the two commands take on stores of so many cells."""
    with TemporaryDirectory() as folder:
        base = root or Path(folder)
        base.mkdir(parents=True, exist_ok=True)
        file = base / "wide_table.py"
        file.write_text(ROWS_FILE.format(rows=cells))
        seeds = -(-cells // len(TABLES["smoke"].rows))
        for name, table, number, arguments in (
            ("seeds", TABLES["smoke"], seeds, ["smoke", "--seeds", str(seeds)]),
            ("rows", wide(cells), 1, [str(file)]),
        ):
            store = base / name
            if not store.exists():
                records = record_stages(table, number, Path())
                stages = fill(graph(r for rs in records.values() for r in rs), store)
                print(f"{cells} cells as many {name}: {stages} stages")
            for command in ("status", "table"):
                begin = time.perf_counter()
                subprocess.run(
                    [*MIBENCH, command, *arguments, "--store", str(store)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )
                print(f"{command}, many {name}: {time.perf_counter() - begin:.2f} s", flush=True)


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("cached")
    command.add_argument("--cells", type=int, default=10_000)
    command.add_argument("--root", type=Path, help="where to make the stores, and to keep them")
    options = parser.parse_args()
    if options.command == "cached":
        cached(options.cells, options.root)


if __name__ == "__main__":
    main()
