"""How far store and scheduler go: ``python -m perf.scale cached|overhead|ray|speed|grid``.

* ``cached``: makes a store of finished cells (their numbers are drawn at random), once as
  many seeds of ``smoke`` and once as many rows, and times ``mibench status`` and ``table``.
* ``overhead``: what an executor spends on a stage beside the stage, by stages that do nothing.
* ``ray``: how busy the slots of a Ray cluster on this machine are kept by sleeping stages.
* ``speed``: ``local[2]`` against ``local[1]`` on a table, each from an empty store, and whether
  the payloads are the same.
* ``grid``: cells, stages, steps and bytes of tables, counted from their plans.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save as write_tensors

from mibench.benchmarks.tables import TABLES, Table
from mibench.data import Sizes, Task
from mibench.defenses import BiDO
from mibench.running.executors import Bench, Executor, Local, Ray, Serial, execute
from mibench.running.grid import record_stages
from mibench.running.plan import known_sizes, planned_steps, stored
from mibench.running.progress import Watcher
from mibench.running.stages import ImagesStage, RecordStage, graph
from mibench.spec import canonical, field_values
from mibench.store import Stage, Store, pack, seal
from perf.naps import Nap

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
                "index": [
                    {
                        **{key: [*range(50)] for key in ("pass", "block", "identity")},
                        "identities": [*range(10)],
                    }
                ],
                "evaluator": {"accuracy": 98.0},
                "panel": [{"network": "mlp", "seed": 0, "accuracy": 98.0, "attack_acc": 50.0}],
                "budget": dict.fromkeys(("steps", "queries", "gradients", "prior_queries"), 100),
                "cell": canonical(stage.cell),
                "stages": [f"{s.kind}/{s.key}" for s in graph([stage])],
                "warnings": [],
            }
        tensors, tree = pack(tree)
        files = {
            "payload.safetensors": write_tensors(tensors),
            "payload.json": json.dumps(tree, indent=1).encode(),
            "spec.json": json.dumps(
                canonical({"version": stage.version, **field_values(stage)})
            ).encode(),
        }
        meta = {"seconds": 1.0, "device": "cpu", "threads": 1}
        for name, data in (files | {"meta.json": seal(stage, files, meta)}).items():
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
            records = [r for rs in record_stages(table, number, Path()).values() for r in rs]
            if not store.exists():
                print(f"{cells} cells as many {name}: {fill(graph(records), store)} stages")
            if set(Store(store).states(records).values()) != {"done"}:
                sys.exit(f"{store} holds other cells: name another --root")
            for command in ("status", "table"):
                begin = time.perf_counter()
                mibench(command, *arguments, "--store", str(store))
                print(f"{command}, many {name}: {time.perf_counter() - begin:.2f} s", flush=True)


def naps(number: int, milliseconds: int) -> list[Nap]:
    """Returns stages that sleep."""
    return [Nap(i, milliseconds) for i in range(number)]


def timed(stages: Sequence[Stage], executor: Executor) -> tuple[float, float]:
    """Returns the seconds that stages take from an empty store: in all, and without the start.

    The second are those from where the first stage began to sleep to where the last one ended.
    """
    with TemporaryDirectory() as folder:
        bench = executor.check(Bench(Path(folder), Path(), "cpu"))
        begin = time.perf_counter()
        outcome = execute(stages, bench, Watcher(), executor)
        seconds = time.perf_counter() - begin
        assert outcome.computed == len(stages), outcome.failures
        payloads = [Store(bench.store).load(s) for s in stages]
    span = max(p["ended"] for p in payloads) - min(p["begun"] for p in payloads)
    return seconds, span


def overhead(number: int) -> None:
    """Prints what is spent on a stage that does nothing; processes have started before."""
    for name, executor in (("serial", Serial()), ("local[2]", Local(2))):
        few, many = (timed(naps(n, 0), executor)[0] for n in (20, 20 + number))
        print(f"{name}: {1e3 * (many - few) / number:.1f} ms per stage", flush=True)


def busy(number: int, milliseconds: int, nodes: int, slots: int) -> None:
    """Prints how much of the slots' time was slept, on a Ray cluster of this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=slots // nodes)
    executor = Ray(slots, cluster.address)
    seconds, span = timed(naps(number, milliseconds), executor)
    slept = number * milliseconds / 1000 / slots
    print(f"{number} stages of {milliseconds} ms on {slots} slots: {seconds:.1f} s")
    print(
        f"workers start, and end: {seconds - span:.1f} s; from first to last stage: {span:.1f} s"
    )
    print(f"slots asleep from first to last stage: {100 * slept / span:.1f} %")
    print(f"slots asleep in all: {100 * slept / seconds:.1f} %")
    importlib.import_module("ray").shutdown()
    cluster.shutdown()


def speed(table: str, arguments: Sequence[str]) -> None:
    """Prints the wall time of a table with one and with two processes, from empty stores."""
    seconds, sums = {}, {}
    for executor in ("local[1]", "local[2]"):
        with TemporaryDirectory() as folder:
            places = ["--store", f"{folder}/store", "--out", f"{folder}/out", "--quiet"]
            begin = time.perf_counter()
            mibench("run", table, "--executor", executor, *places, *arguments)
            seconds[executor] = time.perf_counter() - begin
            files = sorted(Path(folder, "store").glob("*/*/payload.*"))
            sums[executor] = [
                (p.parent.name, p.name, hashlib.sha256(p.read_bytes()).digest()) for p in files
            ]
        print(f"{executor}: {seconds[executor]:.1f} s", flush=True)
    same = "the same" if sums["local[1]"] == sums["local[2]"] else "OTHER"
    print(f"{seconds['local[1]'] / seconds['local[2]']:.2f} times as fast, {same} payloads")


def mibench(*arguments: str) -> None:
    """Runs the command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "mibench.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def grid(tables: Sequence[str], seeds: int) -> None:
    """Prints what tables come to, and together, as stages shared between them count once."""
    print("| table | rows | cells | stages | million steps | GB |")
    print("|:--|--:|--:|--:|--:|--:|")
    sizes: dict[Task, Sizes | None] = {}
    every: dict[str, Stage] = {}
    steps: dict[str, int | None] = {}
    rows = 0
    for name in tables:
        table = TABLES[name]
        records = [r for rs in record_stages(table, seeds, None).values() for r in rs]
        for record in records:
            task = record.cell.setting.task
            if task not in sizes:
                sizes[task] = known_sizes(task, Path("data"))
        own = {s.key: s for s in graph(records)}
        for record in records:
            steps |= {
                s.key: planned_steps(s, sizes[record.cell.setting.task])
                for s in graph([record])
                if s.key not in steps
            }
        every |= own
        rows += len(table.rows)
        print(told(name, len(table.rows), len(table.rows) * seeds, own, steps, sizes), flush=True)
    print(told("all", rows, rows * seeds, every, steps, sizes))


def told(
    name: str,
    rows: int,
    cells: int,
    stages: Mapping[str, Stage],
    steps: Mapping[str, int | None],
    sizes: Mapping[Task, Sizes | None],
) -> str:
    """Returns a line of the grid's table; "?" where sizes are not known without the data."""
    counts = [steps[key] for key in stages]
    total = "?" if None in counts else f"{sum(c or 0 for c in counts) / 1e6:.2f}"
    bytes_ = [stored(s, sizes[s.task] if isinstance(s, ImagesStage) else None)
              for s in stages.values()]  # fmt: skip
    room = "?" if None in bytes_ else f"{sum(b or 0 for b in bytes_) / 1e9:.2f}"
    return f"| {name} | {rows} | {cells} | {len(stages)} | {total} | {room} |"


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("cached")
    command.add_argument("--cells", type=int, default=10_000)
    command.add_argument("--root", type=Path, help="where to make the stores, and to keep them")
    command = commands.add_parser("overhead")
    command.add_argument("--stages", type=int, default=300)
    command = commands.add_parser("ray")
    command.add_argument("--stages", type=int, default=10_000)
    command.add_argument("--milliseconds", type=int, default=100)
    command.add_argument("--nodes", type=int, default=2)
    command.add_argument("--slots", type=int, default=8)
    command = commands.add_parser("speed")
    command.add_argument("table", nargs="?", default="digits")
    command.add_argument("arguments", nargs="*", help="of mibench run, after --")
    command = commands.add_parser("grid")
    command.add_argument("tables", nargs="*", default=list(TABLES))
    command.add_argument("--seeds", type=int, default=5)
    options = vars(parser.parse_args())
    chosen: dict[str, Callable[..., None]] = {
        "cached": cached, "overhead": overhead, "ray": busy, "speed": speed, "grid": grid,
    }  # fmt: skip
    chosen[options.pop("command")](*options.values())


if __name__ == "__main__":
    main()
