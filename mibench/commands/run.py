"""The command run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands.computing import compute, where
from mibench.commands.shared import (
    Records,
    anywhere,
    check_writable,
    choose_table,
    chosen_stages,
    count_states,
    fail,
    fetch,
    into,
    note_controls,
    plan,
    refusing,
    what,
    with_controls,
)

if TYPE_CHECKING:
    from mibench.benchmarks.tables import Table
    from mibench.running.executors import Bench
    from mibench.running.grid import Grid
    from mibench.store import Stage, Store

    Picture = Callable[[Path], bool | list[Path]]


@click.command()
@what
@where
@into(anywhere, "CSV, LaTeX, Markdown and PNG.")
@with_controls
@click.option(
    "--until",
    type=click.Choice(["images", "classifier", "prior", "inversion", "evidence"]),
    help="Compute stages of this kind and what they need; write no table.",
)
@click.option("--dry-run", is_flag=True, help="Show the stages and compute nothing.")
def run(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, device: str, executor: str, address: str | None, threads: int,
    download: bool, quiet: bool, verbose: bool, out: Path, until: str | None, dry_run: bool,
    controls: bool,
) -> None:  # fmt: skip
    """Fill TABLE (a name, or a Python FILE with one) and print it.

    What is in the store is not computed again; an interrupted run goes on where it was.
    """
    from mibench.reporting.cautions import control_table
    from mibench.running.executors import Bench, choose_executor
    from mibench.running.grid import Grid

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        if download and not dry_run:
            fetch({c.setting.task for c in chosen.rows.values()}, data)
        records = foresee(chosen, seeds, data) if dry_run else plan(chosen, seeds, data)
        beside = {}
        if controls:
            others = control_table(chosen)
            beside = (
                foresee(others, seeds, data, quiet=True) if dry_run else plan(others, seeds, data)
            )
        asked = records | {f"{label}, samples of its prior": r for label, r in beside.items()}
        place = choose_executor(executor, address)
        file = Path(table) if table.endswith(".py") else None
        bench = Bench(store, data, device, threads, file)
        if not dry_run or place.package is None:  # a plan needs no cluster
            bench = place.check(bench)
        if not dry_run:
            check_writable(store, out)
    if dry_run:
        show_plan(asked, bench, until, place.slots(bench), foresee_plain(table, seeds, data))
        return
    from mibench.store import Store

    stages = chosen_stages([r for rs in asked.values() for r in rs], until)
    changed = bool(rows or settings or protocol)
    printed: set[str] = set()

    def show(complete: bool) -> None:
        if until is not None:
            show_accuracy(stages, Store(store))
            return
        stem = chosen.name + "-modified" * changed + "-incomplete" * (not complete)
        done = Store(store)
        others = Grid(control_table(chosen), beside, done) if beside else None
        text, files, pictures = results(Grid(chosen, records, done, others))
        if text not in printed:  # a stage that a picture finds damaged makes all of this again
            click.echo(text)
        printed.add(text)
        write(files, pictures, out / stem)
        if complete:
            note_controls(chosen, beside, rows, seeds, store)

    compute(stages, bench, place, show, out, quiet=quiet, verbose=verbose)


def foresee(table: "Table", seeds: int, data: Path, *, quiet: bool = False) -> Records:
    """Returns what :func:`plan` does, or, without the raw data, stages whose keys mean nothing."""
    from mibench.running.grid import record_stages

    try:
        return record_stages(table, seeds, data)
    except FileNotFoundError as error:
        if not quiet:
            click.echo(f"note: {error}; without it nothing counts as done", err=True)
        return record_stages(table, seeds, None)


def foresee_plain(table: str, seeds: int, data: Path) -> Records:
    """Returns the plan of the table as it is without options; no row if the data do not fit it."""
    try:
        return foresee(choose_table(table, (), (), None), seeds, data, quiet=True)
    except (OSError, ValueError):
        return {}


def show_plan(
    records: Records, bench: "Bench", until: str | None, slots: int | None, seen: Records
) -> None:
    """Prints every row's stages, whether they are in the store, their steps, and the time left.

    Args:
        records: Of the table.
        bench: Where the stages would be.
        until: The last kind of stage.
        slots: Stages that would run side by side, if that is known.
        seen: Of the table as it is without options: stages of which may have been measured too.
    """
    from mibench.running.plan import (
        doubts,
        estimate,
        known_sizes,
        measured,
        planned_steps,
        time_lines,
    )
    from mibench.running.stages import graph
    from mibench.store import Store

    steps: dict[str, int | None] = {}
    every = {}
    both = [r for part in (records, seen) for rs in part.values() for r in rs]
    tasks = {r.cell.setting.task for r in both}
    sizes = {task: known_sizes(task, bench.data) for task in tasks}
    for record in both:
        for stage in graph([record]):
            every[stage.key] = stage
            steps[stage.key] = planned_steps(stage, sizes[record.cell.setting.task])
    stages = chosen_stages([r for rs in records.values() for r in rs], until)
    store = Store(bench.store)
    states = store.states(stages)
    took = measured(every.values(), steps, store, bench.device.partition(":")[0])
    for label, own in records.items():
        for seed, record in enumerate(own):
            click.echo(f"{label}, seed {seed}")
            for stage in chosen_stages([record], until):
                taken = steps[stage.key]
                told = "? steps" if taken is None else f"{taken:,} steps" if taken else ""
                key = stage.key if record.evidence[0].images.digest else "no key without data"
                state = states[stage.key]
                click.echo(f"  {state:8s} {stage.describe():40s} {told:>14s}  {key}")
    to_do = [s for s in stages if states[s.key] != "done"]
    unknown = [steps[s.key] for s in to_do].count(None)
    left = f"{sum(steps[s.key] or 0 for s in to_do):,} steps to do"
    left += f" and those of {unknown} stages that cannot be told" * bool(unknown)
    seconds = {s.key: estimate(s, steps[s.key], took) for s in to_do}
    for line in (*time_lines(stages, seconds, slots), *doubts(to_do, steps, took)):
        click.echo(line)
    click.echo(f"{count_states(states)}; {left}")


def show_accuracy(stages: "Iterable[Stage]", store: "Store") -> None:
    """Prints the test accuracy of every finished classifier, and what to know beside it."""
    from mibench.running.stages import ClassifierStage

    remarks: dict[str, None] = {}
    for stage in stages:
        if isinstance(stage, ClassifierStage) and store.state(stage) == "done":
            payload, meta = store.read(stage)
            told = f"{stage.describe()}, seed {stage.seed}: accuracy {payload['accuracy']:.2f} %"
            click.echo(told)
            remarks |= dict.fromkeys(meta.get("remarks", []))
    for remark in remarks:
        click.echo(f"note: {remark}", err=True)


def results(grid: "Grid") -> tuple[str, dict[str, str], "dict[str, Picture]"]:
    """Returns a table as text to print, as files by the ends of their names, and its pictures."""
    from mibench.reporting import figures, tradeoff
    from mibench.reporting.forms import render
    from mibench.reporting.results import collect
    from mibench.spec import fingerprint

    results = collect(grid)
    text = render(results, "text")
    forms = {".csv": "csv", ".json": "json", ".tex": "latex", ".md": "markdown"}
    files = {end: render(results, form) for end, form in forms.items()}
    key = fingerprint([[r.key for r in done.values()] for done in grid.done.values()])
    pictures: dict[str, Picture] = {
        ".png": lambda p: figures.draw_reconstructions(grid, p, private=grid.private()),
        "-tradeoff.png": lambda p: figures.draw_tradeoff(results, p, key),
        "-training.png": lambda p: figures.draw_training(grid, p),
        "-samples.png": lambda p: figures.draw_samples(grid, p),
    }
    if grid.table.curves:
        found = tradeoff.compare(grid)
        files["-curves.csv"] = tradeoff.csv(found)
        text += "\n" + tradeoff.text(found) + "\n"
        pictures["-curves"] = lambda p: figures.draw_curves(found, p)
    return text, files, pictures


def write(files: Mapping[str, str], pictures: "Mapping[str, Picture]", stem: Path) -> None:
    """Writes files and draws pictures, named ``stem`` and an end, and prints their paths.

    A picture that cannot be drawn keeps no other from being drawn; then the exit status is 1.

    Raises:
        OSError: If a file cannot be written.
        DamagedError: If a stage that a picture shows is damaged.
    """
    from mibench.store import DamagedError

    for end, text in files.items():
        path = stem.with_name(stem.name + end)
        path.write_text(text, encoding="utf-8")
        click.echo(path)
    failed = []
    for end, draw in pictures.items():
        path = stem.with_name(stem.name + end)
        try:
            drawn = draw(path)
        except DamagedError:
            raise
        except ValueError as error:
            failed.append(f"{path} ({error})")
            continue
        # A file of that name where nothing is to be shown is of an earlier run.
        for drawn_path in [path] if drawn is True else drawn or []:
            click.echo(drawn_path)
    if failed:
        fail(f"could not draw {'; '.join(failed)}; the numbers are whole, and kept")
