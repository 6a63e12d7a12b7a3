"""The command run, and what becomes of faults while it computes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.selection import Selection, labelled, of_table
from mibench.commands.shared import check_writable, fail, fetch, refusing

if TYPE_CHECKING:
    from mibench.data import Sizes, Task
    from mibench.running.executors import Bench, Executor
    from mibench.running.grid import Grid
    from mibench.running.stages import RecordStage
    from mibench.store import Stage, Store

    Records = Mapping[str, Sequence[RecordStage]]

    Picture = Callable[[Path], bool | list[Path]]

FURTHER = ("dependence", "queries")
"""What ``--until`` computes beside a table's records."""
SHOWN = ("nhsic", "coco_frobenius")
"""Measures of dependence that are printed and drawn unless others are named: those that defenses
train with."""

NO_GPU = (
    "note: {0} is meant for a GPU and runs without one here, which may take weeks: "
    "mibench run {0} --dry-run --calibrate tells"
)


@click.command()
@of_table
@options.out(options.anywhere, "Folder of the CSV, JSON, LaTeX, Markdown and PNG files.")
@options.controls
@click.option(
    "--until",
    type=click.Choice(
        ["images", "classifier", "prior", "inversion", "evidence", "dependence", "queries"]
    ),
    help="Compute stages of this kind and what they need; write no table. dependence: how "
    "targets depend on their input, and whether that goes with leakage. queries: Attack Acc "
    "against answers of the target.",
)
@click.option(
    "--measure", "measures", multiple=True, metavar="NAME",
    help="With --until dependence: what is printed and drawn, "
    f"{' and '.join(SHOWN)} by default; the CSV has every measure.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show the stages and compute nothing.")
@click.option(
    "--calibrate", "calibrated", is_flag=True,
    help="With --dry-run: time some steps of each kind of stage on this machine, without data, "
    "and print hours, memory and disk.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--executor", default="auto", show_default=True,
    help="serial, local[N]: N stages side by side, ray or slurm[N]. auto: local, one stage for "
    "each GPU, or as many as the cores hold.",
)  # fmt: skip
@click.option("--address", help="Of a running Ray cluster, such as HOST:6379.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True,
    help="CPU threads of a stage; another number may change the last bits.",
)  # fmt: skip
@options.precision
@options.download
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--verbose", is_flag=True, help="A line for every stage that starts and ends.")
def run(
    selection: Selection, out: Path, controls: bool, until: str | None, measures: Sequence[str],
    dry_run: bool, calibrated: bool, device: str, executor: str, address: str | None, threads: int,
    precision: str | None, mix_precision: bool, download: bool, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Compute a table and print it.

    TABLE is a name or a Python file with a table. What is in the store is not computed again,
    and an interrupted run goes on where it was.

    Example: mibench run digits --seeds 5
    """
    from mibench.defenses.dependence import MEASURES
    from mibench.running.executors import Bench, choose_executor
    from mibench.running.executors.base import device_here
    from mibench.running.mixing import settled
    from mibench.spec import unknown

    with refusing():
        if strange := [name for name in measures if name not in MEASURES]:
            raise ValueError(unknown("measure", strange[0], MEASURES))
        if measures and until != "dependence":
            raise ValueError("--measure goes with --until dependence")
        if controls and until in FURTHER:
            raise ValueError(f"--controls goes with scores, not with --until {until}")
        if quiet and verbose:
            raise ValueError("--quiet shows less and --verbose more: give one of them")
        if mix_precision and precision is None:
            raise ValueError("--mix-precision goes with --precision")
        if calibrated and (not dry_run or precision == "auto"):
            raise ValueError(
                "--calibrate goes with --dry-run, and times one --precision, not auto"
            )
        tasks = {cell.setting.task for cell in selection.table.rows.values()}
        if download and not dry_run:
            fetch(tasks, selection.data)
        if dry_run:
            selection = without_missing_data(selection)
        grid = selection.with_controls() if controls else selection.grid
        place = choose_executor(executor, address)
        own = precision or "float32"
        heavy = selection.table.heavy
        bench = Bench(selection.root, selection.data, device, threads, selection.file, own, heavy)
        if not dry_run or place.package is None:  # a plan needs no cluster
            bench = place.check(bench)
        if not dry_run:
            check_writable(selection.root, out)
    if dry_run:
        with refusing():
            if calibrated:
                bench = replace(bench, device=device_here(bench.device))
        plain, slots = plain_records(selection), place.slots(bench)
        with refusing():
            show_plan(labelled(grid), bench, until, slots, plain, calibrated=calibrated)
        return
    if heavy and (device, bench.device) == ("auto", "cpu"):
        click.echo(NO_GPU.format(selection.table.name), err=True)
    stages = stages_until(labelled(grid), until)
    with refusing():
        bench = settled(bench, stages, precision, place, mix=mix_precision)
    printed: set[str] = set()

    def show(complete: bool) -> None:
        if until not in (None, *FURTHER):
            show_accuracy(stages, grid.store)
            return
        if until is None:
            text, files, pictures = results(grid)
        elif until == "queries":
            text, files, pictures = query_curves(grid)
        else:
            text, files, pictures = dependence(grid, measures or SHOWN)
        if text and text not in printed:  # all is made again if a picture finds a damaged stage
            click.echo(text)
        printed.add(text)
        stem = selection.table.name + "-modified" * selection.changed
        write(files, pictures, out / (stem + "-incomplete" * (not complete)))
        if complete and until is None:
            selection.note_controls(grid.controls)

    compute(stages, bench, place, show, out, quiet=quiet, verbose=verbose)


def without_missing_data(selection: Selection) -> Selection:
    """Returns the selection, to be planned without its raw data if these are not there."""
    try:
        _ = selection.grid
    except FileNotFoundError as error:
        click.echo(f"note: {error}; without it nothing counts as done", err=True)
        return replace(selection, keyless=True)
    return selection


def plain_records(selection: Selection) -> "Records":
    """Returns the stages of the table without options; none if the data do not fit that table."""
    try:
        return replace(selection, rows=(), settings=(), protocol=None).grid.records
    except (OSError, ValueError):
        return {}


def stages_until(records: "Records", until: str | None) -> "list[Stage]":
    """Returns the stages of the records, or those of one kind, and what they need before them."""
    from mibench.reporting.diagnostics import dependence_stages
    from mibench.reporting.queries import curve_stages
    from mibench.running.stages import graph

    if until == "queries":
        return graph(stage for own in curve_stages(records).values() for stage in own)
    if until == "dependence":
        return graph(stage for own in dependence_stages(records).values() for stage in own)
    stages = graph(record for own in records.values() for record in own)
    return stages if until is None else graph(s for s in stages if s.kind == until)


def show_plan(
    records: "Records", bench: "Bench", until: str | None, slots: int | None, plain: "Records",
    *, calibrated: bool,
) -> None:  # fmt: skip
    """Prints every row's stages, whether they are in the store, their steps, and the time left.

    Args:
        records: Of the table.
        bench: Where the stages would be.
        until: The last kind of stage.
        slots: Stages that would run side by side, if that is known.
        plain: Of the table without options, whose stages may have been measured too.
        calibrated: Whether stages that nothing was measured of are timed, some steps each.
    """
    from mibench.precision import AUTO, PRECISIONS
    from mibench.running import calibrate, plan
    from mibench.store import Store

    steps: dict[str, int | None] = {}
    every = {}
    sizes: dict[Task, Sizes | None] = {}
    for own in (*records.values(), *plain.values()):
        task = own[0].cell.setting.task
        if task not in sizes:
            sizes[task] = plan.known_sizes(task, bench.data)
        for stage in (*stages_until({"": own}, None), *stages_until({"": own}, until)):
            every[stage.key] = stage
            steps[stage.key] = plan.planned_steps(stage, sizes[task])
    stages = stages_until(records, until)
    store = Store(bench.store)
    states = store.states(stages)
    precisions = PRECISIONS if bench.precision == AUTO else (bench.precision,)
    kind = bench.device.partition(":")[0]
    times = plan.measured(every.values(), steps, store, kind, precisions)
    for label, own in records.items():
        for seed, record in enumerate(own):
            click.echo(f"{label}, seed {seed}")
            for stage in stages_until({label: [record]}, until):
                count = steps[stage.key]
                text = "? steps" if count is None else f"{count:,} steps" if count else ""
                key = stage.key if record.evidence[0].images.digest else "no key without data"
                state = states[stage.key]
                click.echo(f"  {state:8s} {stage.describe():40s} {text:>14s}  {key}")
    to_do = [s for s in stages if states[s.key] != "done"]
    lines: list[str] = []
    if calibrated:
        found = calibrate.calibrate(
            to_do, steps, sizes, bench, times, partial(click.echo, err=True)
        )
        times = {**found.taken, **times}
        lines = calibrate.lines(found, to_do, sizes, bench)
    unknown = [steps[s.key] for s in to_do].count(None)
    left = f"{sum(steps[s.key] or 0 for s in to_do):,} steps to do"
    left += f" and those of {unknown} stages, whose number is unknown" * bool(unknown)
    seconds = {s.key: plan.estimate(s, steps[s.key], times) for s in to_do}
    lines += plan.doubts(to_do, steps, times)
    for line in (*plan.time_lines(stages, seconds, slots), *lines):
        click.echo(line)
    click.echo(f"{count_states(states)}; {left}")


def count_states(states: Mapping[str, str]) -> str:
    """Returns how many stages are in which state."""
    values = list(states.values())
    counts = ", ".join(f"{values.count(s)} {s}" for s in ("done", "partial", "missing"))
    return f"{counts} of {len(values)} stages"


def compute(
    stages: "Sequence[Stage]", bench: "Bench", place: "Executor", show: Callable[[bool], None],
    out: Path, *, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Completes the stages, shows the result, says what was computed; exits with 1 on a fault.

    Args:
        stages: In an order where needs come first.
        bench: Where things are.
        place: What runs them.
        show: Writes the result, given whether all stages are there. A stage that it finds
            damaged is computed again.
        out: Where it writes.
        quiet: No progress.
        verbose: A line for every stage that starts and ends.
    """
    from mibench.running.executors import Outcome, execute
    from mibench.running.grid import fetch_weights
    from mibench.running.progress import display
    from mibench.store import MENDED, DamagedError, Store, StoreError

    store = Store(bench.store)
    with refusing():
        store.set_aside_damaged(stages)
    states = store.states(stages)
    missing = [s for s in stages if states[s.key] != "done"]
    with refusing():
        fetch_weights(missing, bench.data)
    outcome = Outcome()
    for _ in range(MENDED):
        try:
            with closing(display(len(missing), quiet=quiet, verbose=verbose)) as watcher:
                outcome = execute(stages, bench, watcher, place)
            try:
                show(not outcome.failures)
                break
            except DamagedError as error:
                if error.stage is not None:
                    store.set_aside(error.stage, str(error))
            except OSError as error:
                if isinstance(error, StoreError):
                    raise
                reason = error.strerror or error
                where = error.filename or out
                fail(f"cannot write to {where} ({reason}); the store keeps all results")
        except KeyboardInterrupt as error:
            fail(interruption(error, missing, store))
        except StoreError as error:
            fail(str(error))
    counts = f"{outcome.computed} stages computed, {outcome.cached} found in {bench.store}"
    click.echo("nothing computed: " * (not outcome.computed) + counts, err=True)
    if outcome.failures:
        names = {s.key: s.describe() for s in stages}
        text = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        fail(f"{text} ({len(outcome.skipped)} other stages needed what failed)")


def interruption(error: BaseException, stages: "Iterable[Stage]", store: "Store") -> str:
    """Returns what to say of an interrupt: what ran, how far it came, what is kept."""
    notes = getattr(error, "__notes__", [])
    begun = dict.fromkeys(s.describe() for s in stages if store.state(s) == "partial")
    notes = notes or [f"{', '.join(begun)} had begun"] * bool(begun)
    kept = f"what has finished is kept in {store.root}"
    again = "run the same command again to go on where it was"
    return "; ".join(["interrupted", *notes, kept, again])


def show_accuracy(stages: "Iterable[Stage]", store: "Store") -> None:
    """Prints the test accuracy of every finished classifier, with remarks on it."""
    from mibench.running.stages import ClassifierStage

    remarks: dict[str, None] = {}
    for stage in stages:
        if isinstance(stage, ClassifierStage) and store.state(stage) == "done":
            payload, meta = store.read(stage)
            accuracy = f"accuracy {payload['accuracy']:.2f} %"
            click.echo(f"{stage.describe()}, seed {stage.seed}: {accuracy}")
            remarks |= dict.fromkeys(meta.get("remarks", []))
    for remark in remarks:
        click.echo(f"note: {remark}", err=True)


def results(grid: "Grid") -> tuple[str, dict[str, str], "dict[str, Picture]"]:
    """Returns a table as text to print, as files by the ends of their names, and its pictures."""
    from mibench.reporting import figures, tradeoff
    from mibench.reporting.forms import render
    from mibench.reporting.results import collect

    results = collect(grid)
    text = render(results, "text")
    forms = {".csv": "csv", ".json": "json", ".tex": "latex", ".md": "markdown"}
    files = {end: render(results, form) for end, form in forms.items()}
    pictures: dict[str, Picture] = {
        ".png": lambda p: figures.draw_reconstructions(grid, p, private=grid.private()),
        "-tradeoff.png": lambda p: figures.draw_tradeoff(results, p, files[".csv"]),
        "-training.png": lambda p: figures.draw_training(grid, p),
        "-samples.png": lambda p: figures.draw_samples(grid, p),
    }
    if grid.table.curves:
        comparison = tradeoff.compare(grid)
        files["-curves.csv"] = tradeoff.csv(comparison)
        text += "\n" + tradeoff.text(comparison) + "\n"
        pictures["-curves"] = lambda p: figures.draw_curves(comparison, p)
    return text, files, pictures


def query_curves(grid: "Grid") -> tuple[str, dict[str, str], "dict[str, Picture]"]:
    """Returns what :func:`results` does, of the answers that the table's attacks spend."""
    from mibench.reporting import queries

    if not (points := queries.points(grid.records, grid.store)):
        return "", {}, {}
    files = {"-queries.csv": queries.table(points)}
    return queries.text(points) + "\n", files, {"-queries.png": lambda p: queries.draw(points, p)}


def dependence(
    grid: "Grid", measures: Sequence[str]
) -> tuple[str, dict[str, str], "dict[str, Picture]"]:
    """Returns what :func:`results` does, of how the table's targets depend on their input."""
    from mibench.reporting import diagnostics

    diagnosis = diagnostics.diagnose(grid.records, grid.store)
    if not diagnosis.values:
        return "", {}, {}
    text = diagnostics.text(diagnosis, measures) + "\n"
    files = {"-dependence.csv": diagnostics.csv(diagnosis)}
    return text, files, {"-dependence": lambda p: diagnostics.draw(diagnosis, measures, p)}


def write(files: Mapping[str, str], pictures: "Mapping[str, Picture]", stem: Path) -> None:
    """Writes files and draws pictures, named ``stem`` and an end, and prints their paths.

    A picture that cannot be drawn keeps no other from being drawn; then the exit status is 1.

    Raises:
        OSError: If a file cannot be written.
        DamagedError: If a stage that a picture shows is damaged.
    """
    from mibench.store import DamagedError, put

    for end, text in files.items():
        path = stem.with_name(stem.name + end)
        put(path, text)
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
        # If nothing was drawn, a file of that name is of an earlier run.
        for drawn_path in [path] if drawn is True else drawn or []:
            click.echo(drawn_path)
    if failed:
        fail(f"could not draw {'; '.join(failed)}; the numbers are complete, and kept")
