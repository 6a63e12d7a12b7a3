"""The command line: run, status, table, data, events, import, list, clean.

Results go to stdout; progress, warnings and errors to stderr. Exit status 2: nothing was
started (bad input); 1: something failed after work had begun.
"""

import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from torch import Tensor

    from mibench.benchmarks.stages import RecordStage
    from mibench.benchmarks.tables import Table
    from mibench.data import Task
    from mibench.spec import Json
    from mibench.store import Stage, Store

F = TypeVar("F", bound=Callable[..., Any])
Records = dict[str, list["RecordStage"]]


class RefusedError(click.ClickException):
    """Bad input: one sentence on stderr, exit status 2."""

    exit_code = 2


class Commands(click.Group):
    """Commands of which click, too, complains in one sentence."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401
        """Parses the group's own options."""
        with in_one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Parses a command's options and runs it."""
        with in_one_sentence():
            return super().invoke(ctx)


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Drops the usage lines that click puts before a complaint."""
    try:
        yield
    except click.UsageError as error:
        asks_for_help = type(error).__name__ == "NoArgsIsHelpError"
        if error.ctx is None or asks_for_help:
            raise
        sentence = error.format_message().replace("\n", " ").rstrip(".")
        raise RefusedError(f"{sentence}; see {error.ctx.command_path} --help") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turns what our own code says of bad input into one sentence."""
    try:
        yield
    except KeyError as error:
        raise RefusedError(str(error.args[0])) from error
    except (ValueError, TypeError) as error:
        raise RefusedError(str(error)) from error
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        raise RefusedError(text) from error


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns a decorator that adds the options in the order given."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


folder = click.Path(path_type=Path, file_okay=False)
what = apply(
    click.argument("table"),
    click.option("--rows", multiple=True, metavar="PATTERN", help="Only rows like 'BiDO-HSIC*'."),
    click.option("--set", "settings", multiple=True, metavar="PATH=VALUE",
                 help="Change a field of the cells, for example attack.steps=10."),
    click.option("--protocol", metavar="NAME", help="Evaluation protocol: kdd22 or per-pass."),
    click.option("--seeds", type=click.IntRange(1), default=1, show_default=True,
                 help="How many seeds, from 0 on."),
    click.option("--store", type=click.Path(path_type=Path), default=Path("mibench-store"),
                 envvar="MIBENCH_STORE", show_default=True, help="Finished stages."),
    click.option("--data", type=click.Path(path_type=Path), default=Path("data"),
                 envvar="MIBENCH_DATA", show_default=True, help="Raw data sets."),
)  # fmt: skip


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mibench")
def main() -> None:
    """Train defended classifiers, invert them, and see what the attacks recover."""


@main.command()
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
    from mibench.benchmarks.executors import Bench, execute
    from mibench.benchmarks.progress import display
    from mibench.store import Store

    stages = chosen_stages([r for rs in records.values() for r in rs], until)
    missing = [s for s in stages if Store(store).state(s) != "done"]
    with refusing():
        fetch_weights(missing, data)
    file = Path(table) if table.endswith(".py") else None
    bench = Bench(store, data, bench_device, threads, jobs, file)
    watcher = display(len(missing), quiet=quiet, verbose=verbose)
    try:
        outcome = execute(stages, bench, watcher)
    except KeyboardInterrupt:
        watcher.close()
        fail("interrupted; run the same command again to go on where it was")
    watcher.close()
    if until is not None:
        show_accuracy(stages, Store(store))
    else:
        changed = bool(rows or settings or protocol)
        stem = chosen.name + "-modified" * changed + "-incomplete" * bool(outcome.failures)
        click.echo(write(chosen, records, Store(store), out, stem))
    done = f"{outcome.computed} stages computed, {outcome.cached} found in {store}"
    click.echo("nothing computed: " * (not outcome.computed) + done, err=True)
    if outcome.failures:
        names = {s.key: s.describe() for s in stages}
        told = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        fail(f"{told} ({len(outcome.skipped)} other stages needed what failed)")


@main.command()
@what
def status(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path,
) -> None:  # fmt: skip
    """Show for every row of TABLE which stages are done; compute nothing."""
    with refusing():
        records = plan(choose_table(table, rows, settings, protocol), seeds, data)
    show_states(records, store)


@main.command()
@what
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "latex", "markdown"]),
    default="text",
    show_default=True,
)
@click.option(
    "--reported/--measured-only",
    default=True,
    show_default=True,
    help="Whether a paper's numbers stand beside.",
)
def table(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, form: str, reported: bool,
) -> None:  # fmt: skip
    """Print TABLE from the store alone; gaps print as --."""
    from mibench.benchmarks.export import collect, render
    from mibench.store import Store

    with refusing():
        chosen = choose_table(table, rows, settings, protocol)
        results = collect(chosen, plan(chosen, seeds, data), Store(store))
    if not store.is_dir():
        click.echo(f"note: there is no store at {store}", err=True)
    click.echo(render(results, form, reported=reported), nl=False)


@main.command()
@what
@click.option(
    "--out",
    type=folder,
    default=Path("mibench-out/events"),
    show_default=True,
    help="One folder per prior.",
)
def events(
    table: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None, seeds: int,
    store: Path, data: Path, out: Path,
) -> None:  # fmt: skip
    """Write how TABLE's priors trained as TensorBoard event files; compute nothing."""
    from mibench.benchmarks.stages import PriorStage, graph
    from mibench.benchmarks.tensorboard import write_events
    from mibench.store import Store

    done = Store(store)
    written = 0
    with refusing():
        records = plan(choose_table(table, rows, settings, protocol), seeds, data)
        for stage in graph(r for rs in records.values() for r in rs):
            if not isinstance(stage, PriorStage) or done.state(stage) != "done":
                continue
            if history := done.load(stage).get("history"):
                path = out / f"{stage.spec.name}-{stage.key}"
                write_events(history, path)
                click.echo(path)
                written += 1
    if not written:
        click.echo(f"note: no finished prior in {store} has kept statistics", err=True)


@main.group("data")
def data_() -> None:
    """Look at the raw data sets."""


@data_.command()
@click.argument("name")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the task, for example folder=my_faces.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="Raw data sets.",
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
def check(name: str, settings: Sequence[str], data: Path, download: bool) -> None:
    """Read the task NAME whole and say what is there."""
    from mibench.data import TASKS
    from mibench.spec import override

    with refusing():
        if name not in TASKS:
            raise KeyError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
        task = TASKS[name]()
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set takes field=value, got {setting!r}")
            task = override(task, path.strip(), text.strip())
        if download:
            fetch([task], data)
        digest = task.digest(data)
        splits = task.load(data)
    private, public = splits.private, splits.public
    held = int(private.validation.sum())
    click.echo(f"{name}: images of {'x'.join(map(str, task.shape))}, digest {digest[:16]}")
    click.echo(f"private classes   {private.num_classes}")
    click.echo(f"private train     {len(private.train)}, {held} of them held out for validation")
    click.echo(f"private test      {len(private.test)}")
    click.echo(f"public            {len(public)} of {len(set(public.labels.tolist()))} classes")
    everything = splits.evaluation
    click.echo(f"evaluation        {len(everything.train)} of {everything.num_classes} classes")


@main.group("import")
def import_() -> None:
    """Bring trained networks of other projects into the data folder; none of them is run."""


@import_.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME", help="What to call the weights.")
@click.option(
    "--data",
    type=folder,
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="The weights go to its folder weights.",
)
def stylegan(file: Path, name: str, data: Path) -> None:
    """Read the averaged generator in FILE, a network pickle of StyleGAN2-ADA-PyTorch.

    Writes NAME.safetensors, and the generator's sizes as NAME.json.
    """
    from mibench.networks.pickles import generator_arguments, read_network

    with refusing():
        state, given = read_network(file)
        written = write_weights(name, state, generator_arguments(given), data / "weights")
    click.echo(written)


@main.command("list")
@click.argument("what", type=click.Choice(["tables", "attacks", "defenses", "tasks", "metrics"]))
def list_(what: str) -> None:
    """List names, each with a line that says what it is."""
    for name, line in registry(what):
        click.echo(f"{name:26s} {line}")


@main.command()
@click.option(
    "--partial",
    "which",
    flag_value="partial",
    default=True,
    help="What interrupted stages left (default).",
)
@click.option(
    "--orphans",
    "which",
    flag_value="orphans",
    help="Finished stages that no built-in table needs (at its defaults).",
)
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be.")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Seeds whose stages --orphans keeps.",
)
@click.option(
    "--store",
    type=folder,
    default=Path("mibench-store"),
    envvar="MIBENCH_STORE",
    show_default=True,
)
@click.option(
    "--data", type=folder, default=Path("data"), envvar="MIBENCH_DATA", show_default=True
)
def clean(which: str, yes: bool, seeds: int, store: Path, data: Path) -> None:
    """Delete what is not needed from the store; says what, and deletes with --yes."""
    import shutil

    with refusing():
        paths = sorted(
            store.glob("*/*.partial*") if which == "partial" else orphans(store, seeds, data)
        )
    for path in paths:
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        click.echo(f"{'deleted' if yes else 'would delete'} {path} ({size / 1e6:.1f} MB)")
        if yes:
            shutil.rmtree(path)
    if not paths:
        click.echo("nothing to delete")


# What commands share ----------------------------------------------------------------------


def choose_table(
    name: str, rows: Sequence[str], settings: Sequence[str], protocol: str | None
) -> "Table":
    """Returns the named table, or the one in a user's file, as the options change it."""
    from dataclasses import replace

    from mibench.benchmarks.tables import TABLES
    from mibench.evaluation import PROTOCOLS

    if name.endswith(".py"):
        table = table_of(Path(name))
    elif name in TABLES:
        table = TABLES[name]
    else:
        raise KeyError(f"unknown table {name!r}; known: {', '.join(TABLES)}, or a file NAME.py")
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise KeyError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
        fields = [f"protocol.{k}={str(v).lower()}" for k, v in PROTOCOLS[protocol].items()]
        table = replace(table.modified(fields), caption=f"{table.caption} (protocol {protocol})")
    if rows:
        table = table.only(rows)
    return table.modified(settings)


def table_of(path: Path) -> "Table":
    """Returns the one Table that a user's file defines."""
    from mibench.benchmarks.tables import Table
    from mibench.benchmarks.userfile import load_user_file

    module = load_user_file(path)
    tables = {id(v): v for v in vars(module).values() if isinstance(v, Table)}
    own = [t for n, t in vars(module).items() if isinstance(t, Table) and n == "TABLE"]
    if len(own or tables) != 1:
        raise ValueError(
            f"{path} must define one mibench Table (or name one of several TABLE), "
            f"found {len(tables)}"
        )
    return own[0] if own else next(iter(tables.values()))


def plan(table: "Table", seeds: int, data: Path) -> Records:
    """Returns the last stages of every row; reads the raw data's digest, computes nothing."""
    from mibench.benchmarks.export import record_stages

    return record_stages(table, seeds, data)


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


def fetch(tasks: "Iterable[Task]", data: Path) -> None:
    """Downloads the raw data of those tasks that are not there."""
    for task in tasks:
        try:
            task.digest(data)
        except (FileNotFoundError, ValueError):
            task.download(data)


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


def check_writable(*folders: Path) -> None:
    """Makes the folders, and proves that files can be made in them."""
    for path in folders:
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}") from error


def write_weights(
    name: str, state: Mapping[str, "Tensor"], sizes: Mapping[str, "Json"], place: Path
) -> str:
    """Writes NAME.safetensors and NAME.json, whole or not at all; returns what to print."""
    import hashlib
    import json

    from safetensors.torch import save

    from mibench.networks.weights import Weights

    content = save(dict(state))
    weights = Weights(f"{name}.safetensors", hashlib.sha256(content).hexdigest())
    text = json.dumps(sizes, indent=1) + "\n"
    files = {place / weights.file: content, place / f"{name}.json": text.encode()}
    check_writable(place)
    for path, new in files.items():
        if path.exists() and path.read_bytes() != new:
            raise ValueError(f"{path} is there and holds something else: choose another name")
    for path, new in files.items():
        fresh = path.with_name(f".{uuid.uuid4().hex[:8]}")
        fresh.write_bytes(new)
        fresh.replace(path)
    return "\n".join(f"{path}" for path in files) + f"\nsha256 {weights.sha256}"


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


def show_states(records: Records, store: Path) -> None:
    """Prints a line for every row and seed: which of its stages are in the store."""
    from collections import Counter

    from mibench.benchmarks.stages import graph
    from mibench.store import Store

    states: dict[str, str] = {}
    for label, stages in records.items():
        for seed, record in enumerate(stages):
            own = graph([record])
            states |= {s.key: Store(store).state(s) for s in own}
            alike = Counter(f"{s.describe()}: {states[s.key]}" for s in own)
            told = (f"{text} ({n} times)" if n > 1 else text for text, n in alike.items())
            click.echo(f"{label}, seed {seed}\n  {', '.join(told)}")
    click.echo(count_states(states))


def count_states(states: Mapping[str, str]) -> str:
    """Returns how many stages are in which state."""
    values = list(states.values())
    counts = ", ".join(f"{values.count(s)} {s}" for s in ("done", "partial", "missing"))
    return f"{counts} of {len(values)} stages"


def chosen_stages(records: "Sequence[RecordStage]", until: str | None) -> "list[Stage]":
    """Returns the stages of the records, or those of one kind and what they need."""
    from mibench.benchmarks.stages import graph

    stages = graph(records)
    return stages if until is None else graph(s for s in stages if s.kind == until)


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


def registry(what: str) -> Iterator[tuple[str, str]]:
    """Yields the names of a kind of component and their first docstring lines."""
    if what == "tables":
        from mibench.benchmarks.tables import TABLES

        for name, table in TABLES.items():
            yield name, table.caption + (f" [{table.source}]" if table.source else "")
        return
    if what == "metrics":
        from mibench.evaluation import METRICS

        for name, metric in METRICS.items():
            yield name, (metric.compute.__doc__ or "").split("\n")[0]
        return
    from mibench.attacks import ATTACKS
    from mibench.data import TASKS
    from mibench.defenses import DEFENSES

    components: dict[str, dict[str, type]] = {
        "attacks": dict(ATTACKS), "defenses": dict(DEFENSES), "tasks": dict(TASKS),
    }  # fmt: skip
    for name, cls in components[what].items():
        yield name, (cls.__doc__ or "").split("\n")[0]


def orphans(store: Path, seeds: int, data: Path) -> Iterator[Path]:
    """Yields finished stages that no built-in table needs.

    What belongs to a task whose raw data cannot be read is kept: which of it a table needs
    cannot be told.
    """
    from mibench.benchmarks.stages import graph
    from mibench.benchmarks.tables import TABLES

    kept: set[str] = set()
    unread: set[str] = set()
    for table in TABLES.values():
        try:
            records = plan(table, seeds, data)
        except (FileNotFoundError, ValueError):
            unread |= {cell.setting.task.name for cell in table.rows.values()}
            continue
        kept |= {s.key for s in graph(r for rs in records.values() for r in rs)}
    if unread:
        names = ", ".join(sorted(unread))
        click.echo(f"keeping all of {names}: the data is not readable under {data}", err=True)
    tasks = tasks_of(store)
    for path in store.glob("*/*"):
        finished = path.is_dir() and ".partial" not in path.name
        if finished and path.name not in kept and tasks.get(path.name) not in unread:
            yield path


def tasks_of(store: Path) -> dict[str, str]:
    """Returns stage key → the task it rests on, as the stages' own specs say."""
    import json

    tasks: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for path in store.glob("*/*/spec.json"):
        spec = json.loads(path.read_text(encoding="utf-8"))
        if path.parent.parent.name == "images":
            tasks[path.parent.name] = spec["task"]["is"]
        listed = [v if isinstance(v, list) else [v] for v in spec.values()]
        fields = [v for values in listed for v in values]
        needs[path.parent.name] = [v["key"] for v in fields if isinstance(v, dict) and "key" in v]
    while found := {
        key: tasks[need]
        for key, others in needs.items()
        if key not in tasks
        for need in others
        if need in tasks
    }:
        tasks |= found
    return tasks


def fail(sentence: str) -> NoReturn:
    """Ends with exit status 1."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
