"""The command run."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands.shared import (
    Records,
    check_writable,
    choose_table,
    chosen_stages,
    count_states,
    fail,
    fetch,
    plan,
    refusing,
    what,
)

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.store import Stage, Store


@click.command()
@what
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--executor",
    default="auto",
    show_default=True,
    help="serial, or local[N]: N stages side by side. auto: one per core.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads of a stage; another number may change the last bits.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mibench-out"),
    envvar="MIBENCH_OUT",
    show_default=True,
    help="CSV, LaTeX, Markdown and PNG.",
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option(
    "--until",
    type=click.Choice(["images", "classifier", "prior", "inversion", "evidence"]),
    help="Compute stages of this kind and what they need; write no table.",
)
@click.option("--dry-run", is_flag=True, help="Show the stages and compute nothing.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--verbose", is_flag=True, help="A line for every stage that starts and ends.")
def run(
    table: str,
    rows: Sequence[str],
    settings: Sequence[str],
    protocol: str | None,
    seeds: int,
    store: Path,
    data: Path,
    device: str,
    executor: str,
    threads: int,
    out: Path,
    download: bool,
    until: str | None,
    dry_run: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Fill TABLE (a name, or a Python FILE with one) and print it.

    What is in the store is not computed again; an interrupted run goes on where it was.
    """
    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        if download and not dry_run:
            fetch({c.setting.task for c in chosen.rows.values()}, data)
        records = foresee(chosen, seeds, data) if dry_run else plan(chosen, seeds, data)
        bench_device = pick_device(device)
        jobs = pick_jobs(executor, bench_device)
        if not dry_run:
            check_writable(store, out)
    if dry_run:
        show_plan(records, store, data, until)
        return
    from mibench.benchmarks.executors import Bench, Outcome, execute
    from mibench.benchmarks.progress import display
    from mibench.store import MENDED, DamagedError, Store, StoreError

    stages = chosen_stages([r for rs in records.values() for r in rs], until)
    with refusing():
        Store(store).set_aside_damaged(stages)
    missing = [s for s in stages if Store(store).state(s) != "done"]
    with refusing():
        fetch_weights(missing, data)
    file = Path(table) if table.endswith(".py") else None
    bench = Bench(store, data, bench_device, threads, jobs, file)
    changed = bool(rows or settings or protocol)
    outcome = Outcome()
    for _ in range(MENDED):
        watcher = display(len(missing), quiet=quiet, verbose=verbose)
        try:
            outcome = execute(stages, bench, watcher)
        except KeyboardInterrupt as error:
            watcher.close()
            fail(interruption(error, missing, Store(store)))
        except StoreError as error:
            watcher.close()
            fail(str(error))
        watcher.close()
        stem = chosen.name + "-modified" * changed + "-incomplete" * bool(outcome.failures)
        try:
            if until is not None:
                show_accuracy(stages, Store(store))
            else:
                click.echo(write(chosen, records, Store(store), out, stem))
            break
        except DamagedError as error:
            if error.stage is not None:
                Store(store).set_aside(error.stage, str(error))
        except OSError as error:
            fail(f"cannot write to {out} ({error.strerror or error}); the store keeps all results")
    done = f"{outcome.computed} stages computed, {outcome.cached} found in {store}"
    click.echo("nothing computed: " * (not outcome.computed) + done, err=True)
    if outcome.failures:
        names = {s.key: s.describe() for s in stages}
        told = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        fail(f"{told} ({len(outcome.skipped)} other stages needed what failed)")


def interruption(error: BaseException, stages: "Iterable[Stage]", store: "Store") -> str:
    """Returns what to say of an interrupt: what ran, how far it came, what is kept."""
    told = getattr(error, "__notes__", [])
    saved = dict.fromkeys(s.describe() for s in stages if store.state(s) == "partial")
    told = told or [f"{', '.join(saved)} had begun"] * bool(saved)
    return "; ".join(["interrupted", *told, "run the same command again to go on where it was"])


def foresee(table: "Table", seeds: int, data: Path) -> Records:
    """Returns what :func:`plan` does, or, without the raw data, stages whose keys mean nothing."""
    from mibench.benchmarks.export import record_stages

    try:
        return record_stages(table, seeds, data)
    except FileNotFoundError as error:
        click.echo(f"note: {error}; without it nothing counts as done", err=True)
        return record_stages(table, seeds, None)


def fetch_weights(stages: "Iterable[Stage]", data: Path) -> None:
    """Makes sure that the trained weights which stages start from can be had."""
    from mibench.benchmarks.stages import ClassifierStage, PriorStage

    stages = list(stages)
    for network in {s.network: None for s in stages if isinstance(s, ClassifierStage)}:
        network.fetch(data)
    for prior in {s.spec: None for s in stages if isinstance(s, PriorStage)}:
        prior.fetch(data)


def pick_device(name: str) -> str:
    """Returns the device to compute on; "auto" is the GPU if there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here; use --device cpu")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name}; found {torch.cuda.device_count()} CUDA devices")
    return name


def pick_jobs(executor: str, device: str) -> int:
    """Returns how many stages run side by side."""
    if executor == "auto":
        usable = getattr(os, "sched_getaffinity", None)  # Linux knows what it may use
        cores = len(usable(0)) if usable else os.cpu_count() or 1
        return 1 if device.startswith("cuda") else cores
    if executor == "serial":
        return 1
    count = executor.removeprefix("local[").removesuffix("]")
    if executor == f"local[{count}]" and count.isdigit() and int(count) > 0:
        return int(count)
    raise ValueError(f"unknown executor {executor!r}; use serial or local[N]")


def show_plan(records: Records, store: Path, data: Path, until: str | None) -> None:
    """Prints every row's stages, whether they are in the store, and their steps."""
    from mibench.benchmarks.plan import known_sizes, planned_steps
    from mibench.store import Store

    tasks = {r.cell.setting.task for rs in records.values() for r in rs}
    sizes = {task: known_sizes(task, data) for task in tasks}
    to_do: dict[str, int | None] = {}
    states: dict[str, str] = {}
    for label, stages in records.items():
        for seed, record in enumerate(stages):
            click.echo(f"{label}, seed {seed}")
            for stage in chosen_stages([record], until):
                state = states[stage.key] = Store(store).state(stage)
                steps = planned_steps(stage, sizes[record.cell.setting.task])
                if state != "done":
                    to_do[stage.key] = steps
                told = "? steps" if steps is None else f"{steps:,} steps" if steps else ""
                key = stage.key if record.evidence[0].images.digest else "no key without data"
                click.echo(f"  {state:8s} {stage.describe():40s} {told:>14s}  {key}")
    unknown = list(to_do.values()).count(None)
    left = f"{sum(s or 0 for s in to_do.values()):,} steps to do"
    left += f" and those of {unknown} stages that cannot be told" * bool(unknown)
    click.echo(f"{count_states(states)}; {left}")


def show_accuracy(stages: "Iterable[Stage]", store: "Store") -> None:
    """Prints the test accuracy of every finished classifier."""
    from mibench.benchmarks.stages import ClassifierStage

    for stage in stages:
        if isinstance(stage, ClassifierStage) and store.state(stage) == "done":
            accuracy = store.load(stage)["accuracy"]
            click.echo(f"{stage.describe()}, seed {stage.seed}: accuracy {accuracy:.2f} %")


def write(table: "Table", records: Records, store: "Store", out: Path, stem: str) -> str:
    """Writes the table's files, named ``stem``, and returns what to print."""
    from mibench.benchmarks import figures
    from mibench.benchmarks.export import collect, render
    from mibench.spec import fingerprint

    results = collect(table, records, store)
    files = {"csv": "csv", "tex": "latex", "md": "markdown"}
    for suffix, form in files.items():
        (out / f"{stem}.{suffix}").write_text(render(results, form), encoding="utf-8")
    faces = any(r[0].cell.setting.task.faces for r in records.values())
    figures.draw_reconstructions(records, store, out / f"{stem}.png", private=not faces)
    key = fingerprint([[r.key for r in rs if store.state(r) == "done"] for rs in records.values()])
    figures.draw_tradeoff(results, out / f"{stem}-tradeoff.png", key)
    figures.draw_samples(records, store, out / f"{stem}-samples.png")
    figures.draw_training(records, store, out / f"{stem}-training.png")
    names = [*(f"{stem}.{s}" for s in (*files, "png"))]
    names += [f"{stem}-{figure}.png" for figure in ("tradeoff", "training", "samples")]
    written = [out / name for name in names if (out / name).exists()]
    return render(results, "text") + "\n" + "\n".join(str(p) for p in written)
