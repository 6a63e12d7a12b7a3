"""mibench from Python: fill a table, read results, take trained networks, judge images.

What these functions compute is kept in the store, under the keys that the command line uses.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mibench.benchmarks.cell import Cell
from mibench.benchmarks.row import Row, unknown_row
from mibench.benchmarks.tables import TABLES, Table
from mibench.reporting.published import Published, seeds_of
from mibench.reporting.results import Entry, Results, collect, entry_of
from mibench.running.executors import Bench, choose_executor, execute
from mibench.running.grid import Grid, fetch_weights
from mibench.running.mixing import settled
from mibench.running.progress import display
from mibench.running.stages import ClassifierStage, RecordStage, graph
from mibench.spec import unknown
from mibench.store import Payload, Stage, Store, Work, tell
from mibench.types import Classifier

Cells: TypeAlias = str | Table | Cell | Mapping[str, Cell]
"""A table: by its name, itself, or as one cell or several by their labels."""
Folder: TypeAlias = str | Path
STORE = os.environ.get("MIBENCH_STORE", "mibench-store")
DATA = os.environ.get("MIBENCH_DATA", "data")
GIVEN = ("prior", "student", "inversion", "evidence", "record")
"""Kinds of stages that are not computed where reconstructions are given."""


def run(
    table: Cells,
    *,
    seeds: int = 1,
    store: Folder = STORE,
    data: Folder = DATA,
    device: str = "auto",
    executor: str = "serial",
    threads: int = 1,
    precision: str | None = None,
    mix_precision: bool = False,
    quiet: bool = True,
) -> Results:
    """Computes what the store lacks of a table, and returns its results.

    Args:
        table: A name of ``mibench list tables``, a table, or cells.
        seeds: How many trainings of everything, from seed 0 on.
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: "auto", "cpu", "cuda" or "cuda:N".
        executor: "serial", or "local[N]" for N stages side by side; as on the command line.
        threads: CPU threads of each stage; another number may change the last bits.
        precision: Of networks: "float32", "bf16", or "auto" for bf16 where it is quicker; by
            default float32. One that is named refuses finished stages of another.
        mix_precision: Whether to use these all the same.
        quiet: Whether to show no progress.

    Raises:
        ValueError: If there is no such table, or data are missing; the message says what to do.
        RuntimeError: If a stage fails; the others are in the store.
    """
    done = Store(Path(store))
    grid = _planned(_table(table), seeds, data, done)
    complete(
        grid.stages(), done, data, device, executor, threads, precision, mix=mix_precision,
        quiet=quiet, heavy=grid.table.heavy,
    )  # fmt: skip
    return collect(grid)


def load(
    source: Cells | Folder,
    *,
    seeds: int | None = None,
    table: Cells | None = None,
    store: Folder = STORE,
    data: Folder = DATA,
) -> Results:
    """Returns the results of a table without computing any.

    Args:
        source: A table, which is read from the store, or a folder of record files.
        seeds: How many seeds, from 0 on; by default all that are there.
        table: The records' table, if it is not one of mibench's.
        store: Folder of finished stages; not read for records.
        data: Folder of raw data sets, whose digests name the stages; not read for records.

    Raises:
        ValueError: If nothing of the table is there, or a record is not sound.
    """
    if not isinstance(source, str | Path) or str(source) in TABLES:
        chosen, place = _table(source), Store(Path(store))  # type: ignore[arg-type]
        grid = _filled(chosen, seeds, data, place)
        if not any(grid.done.values()):
            raise ValueError(f"nothing of {chosen.name} is in {store}; fill it with mibench.run")
        return collect(grid)
    if not Path(source).is_dir():
        raise ValueError(f"{unknown('table', str(source), TABLES)}, or a folder of record files")
    records = Published(Path(source))
    names = records.tables()
    if table is None and len(names) != 1:
        named = f"of {', '.join(names)}" if names else "of no table"
        raise ValueError(f"the records in {source} are {named}: say which with table=")
    chosen = _table(names[0] if table is None else table)
    if not records.seeds(chosen):
        raise ValueError(f"no record in {source} is of a cell of {chosen.name}")
    return records.results(chosen, seeds)


def target(
    table: Cells,
    defense: str,
    *,
    seed: int = 0,
    store: Folder = STORE,
    data: Folder = DATA,
    device: str = "auto",
) -> Classifier:
    """Returns a table's trained target, frozen and in eval mode; trains it if it is not there.

    Args:
        table: As of :func:`run`.
        defense: What its rows' labels call the defense, such as "BiDO-HSIC", or a row's label.
        seed: Of its training.
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: Where it is trained, and where it then is.

    Raises:
        ValueError: If the table has no such target, or several.
        RuntimeError: If the training fails.
    """
    chosen = _table(table)
    names = {label: Row.of(label).defended for label in chosen.rows}
    rows = [label for label, name in names.items() if defense in (label, name)]
    if not rows:
        raise ValueError(unknown("defense", defense, dict.fromkeys(names.values())))
    records = [_record(chosen, label, seed, data) for label in rows]
    stages = {record.evidence[0].inversion.target for record in records}
    if len(stages) > 1:
        raise ValueError(
            f"{chosen.name} has {len(stages)} targets called {defense!r}: name a row, such as "
            f"{rows[0]!r}"
        )
    stage = stages.pop()
    if not isinstance(stage, ClassifierStage):
        raise ValueError(
            f"{defense!r} changes a target's answers, not its network: name the defense behind it"
        )
    return _trained(stage, store, data, device)


def evaluator(
    table: Cells,
    row: str | None = None,
    *,
    number: int = 0,
    store: Folder = STORE,
    data: Folder = DATA,
    device: str = "auto",
) -> Classifier:
    """Returns a table's trained evaluation classifier; trains it if it is not there.

    Args:
        table: As of :func:`run`.
        row: The label of a row, if rows have evaluators of their own; else the first.
        number: Which of several; 0 gives the table's numbers.
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: Where it is trained, and where it then is.

    Raises:
        ValueError: If there is no such row or evaluator.
        RuntimeError: If the training fails.
    """
    chosen = _table(table)
    first = _record(chosen, row or next(iter(chosen.rows)), 0, data).evidence[0]
    judges = (first.evaluator, *first.others)
    if number not in range(len(judges)):
        raise ValueError(f"{chosen.name} has {len(judges)} evaluators, from 0 on: no {number}")
    return _trained(judges[number], store, data, device)


def score(
    images: Any,  # noqa: ANN401 - tensors and NumPy's arrays
    labels: Any,  # noqa: ANN401
    table: Cells,
    row: str,
    *,
    seed: int = 0,
    store: Folder = STORE,
    data: Folder = DATA,
    device: str = "auto",
) -> dict[str, Entry]:
    """Judges reconstructions that were made elsewhere as a table judges its own.

    Networks that judge are trained if they are not there. Images are rounded to half precision,
    as a table's own are. Why a metric has no value is said on stderr.

    Args:
        images: (n, c, h, w), floats in [0, 1] or bytes, of the task's shape.
        labels: (n,), the attacked class of each: of classes 0 to k - 1 equally many.
        table: As of :func:`run`; its columns are the metrics.
        row: The label of the row whose target was attacked.
        seed: Of that target.
        store: Folder of finished stages.
        data: Folder of raw data sets.
        device: Where networks are trained and images judged.

    Returns:
        Metric → its mean, spread and, of 20 or more classes, interval over identities, unless the
        protocol averages blocks of unequal size.

    Raises:
        ValueError: If images or labels do not fit, or there is no such row.
        RuntimeError: If a training fails.
    """
    chosen = _table(table)
    cell = _cell(chosen, row)
    x = _by_class(images, labels, cell.setting.task.shape, cell.setting.task.num_classes)
    attack: Any = cell.attack
    if attack.max_queries:  # of the row's own attack, which is not run
        attack = replace(attack, max_queries=0)
    judged = replace(
        cell,
        attack=attack,
        trials=replace(cell.trials, classes=x.shape[1], samples=x.shape[0], repeats=1),
        protocol=replace(cell.protocol, select="last"),
        control=None,
    )
    record = _record(replace(chosen, rows={row: judged}, curves={}), row, seed, data)
    done = Store(Path(store))
    networks = graph(s for s in graph([record]) if s.kind not in GIVEN)
    at = complete(networks, done, data, device).device
    work = Work(device=at, data=Path(data))
    made: dict[str, Payload] = {
        "inversion": {"images": x, "budget": {"steps": 0, "queries": 0, "gradients": 0}},
        "prior": {"queries": 0},
        "student": {"queries": 0},
    }

    def read(stage: Stage) -> Payload:
        if stage.kind == "evidence" and stage.kind not in made:
            made[stage.kind] = stage.compute(read, work)
        return made[stage.kind] if stage.kind in made else done.load(stage)

    payload = record.compute(read, work)
    for warning in payload["warnings"]:
        tell(warning)
    return {name: entry_of(name, {seed: payload}, judged) for name in chosen.columns}


def _by_class(images: Any, labels: Any, shape: tuple[int, ...], most: int) -> Tensor:  # noqa: ANN401
    """Returns images as an attack returns them, (samples, classes, c, h, w) in half precision."""
    try:
        x, y = torch.as_tensor(images), torch.as_tensor(labels)
    except (TypeError, ValueError) as error:
        raise ValueError("images and labels must be arrays of numbers") from error
    if x.shape[1:] != shape or y.shape != x.shape[:1] or not len(x):
        raise ValueError(
            f"images must be of shape (n, {', '.join(map(str, shape))}) and labels (n,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    if x.dtype == torch.uint8:
        x = x.float() / 255
    if not x.is_floating_point() or not ((x >= 0) & (x <= 1)).all():
        raise ValueError("images must be floats in [0, 1], or bytes")
    if y.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which PyTorch does not compare
        y = y.double()
    if len(wrong := y[y != y.long()]):  # a fraction, or beyond the largest int64
        raise ValueError(
            "labels must be whole numbers, the attacked class of each image, got "
            f"{wrong[0].item():g}"
        )
    counts = torch.unique(y.long(), return_counts=True)
    classes = len(counts[0])
    if counts[0].tolist() != list(range(classes)) or len(set(counts[1].tolist())) > 1:
        raise ValueError(
            "labels must name classes 0 to k - 1, each equally often: "
            f"{dict(zip(*(c.tolist() for c in counts), strict=True))}"
        )
    if classes > most:
        raise ValueError(f"{classes} classes are attacked, and the task has {most} private ones")
    ordered = x[y.long().argsort(stable=True)]
    return ordered.view(classes, -1, *shape).transpose(0, 1).half().contiguous()


def _table(table: Cells) -> Table:
    """Returns the table that is meant.

    Raises:
        ValueError: If there is none of that name.
    """
    if isinstance(table, Table):
        return table
    if isinstance(table, str):
        if table not in TABLES:
            raise ValueError(unknown("table", table, TABLES))
        return TABLES[table]
    if isinstance(table, Cell):
        table = {str(Row(table.attack.name, table.defense.name)): table}
    return Table("cells", "Cells of your own.", dict(table))


def _cell(table: Table, row: str) -> Cell:
    if row not in table.rows:
        raise ValueError(unknown_row(row, table.name, table.rows))
    return table.rows[row]


def _planned(table: Table, seeds: int, data: Folder, store: Store) -> Grid:
    """Returns the table's grid; what keeps raw data from being read is a ValueError."""
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    try:
        return Grid.plan(table, seeds, Path(data), store)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _filled(table: Table, seeds: int | None, data: Folder, store: Store) -> Grid:
    """Returns the grid of ``seeds`` seeds, or of all seeds that the store has a row of."""
    if seeds is not None:
        return _planned(table, seeds, data, store)
    grid = _planned(table, max(1, seeds_of(table, _recorded(store.root))), data, store)
    count = 1 + max((seed for done in grid.done.values() for seed in done), default=0)
    return replace(grid, records={label: own[:count] for label, own in grid.records.items()})


def _recorded(store: Path) -> Iterator[dict[str, Any]]:
    """Yields the cells that a store has records of, as their own specs say."""
    for path in store.glob("record/*/spec.json"):
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):  # damaged
            yield dict(json.loads(path.read_bytes())["cell"])


def _record(table: Table, row: str, seed: int, data: Folder) -> RecordStage:
    alone = replace(table, rows={row: _cell(table, row)}, curves={})
    return _planned(alone, seed + 1, data, Store(Path())).records[row][seed]


def _trained(stage: ClassifierStage, store: Folder, data: Folder, device: str) -> Classifier:
    done = Store(Path(store))
    at = complete([*stage.needs, stage], done, data, device).device
    return stage.classifier(done.load, torch.device(at))


def complete(
    stages: Iterable[Stage],
    store: Store,
    data: Folder,
    device: str,
    executor: str = "serial",
    threads: int = 1,
    precision: str | None = None,
    *,
    mix: bool = False,
    quiet: bool = True,
    heavy: bool = False,
) -> Bench:
    """Computes the stages that are missing; returns where they were computed."""
    stages = list(stages)
    place = choose_executor(executor)
    bench = place.check(Bench(store.root, Path(data), device, threads, heavy=heavy))
    store.set_aside_damaged(stages)
    bench = settled(bench, stages, precision, place, mix=mix)
    states = store.states(stages)
    missing = [stage for stage in stages if states[stage.key] != "done"]
    fetch_weights(missing, Path(data))
    watcher = display(len(missing), quiet=quiet, verbose=False)
    try:
        outcome = execute(stages, bench, watcher, place)
    finally:
        watcher.close()
    if outcome.failures:
        names = {stage.key: stage.describe() for stage in stages}
        reasons = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        raise RuntimeError(f"{reasons} ({len(outcome.skipped)} other stages needed what failed)")
    return bench
