"""An audit of somebody's own model: what attacks recover of the images it was trained on."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mibench.api import STORE, Folder, complete
from mibench.benchmarks.audit import ATTACKS, SHARES, audit_table
from mibench.benchmarks.cell import Evaluator
from mibench.benchmarks.row import Row
from mibench.benchmarks.tables import Table
from mibench.data import Folder as FolderTask
from mibench.data import Sizes, Task
from mibench.data.images import subfolders
from mibench.data.reading import said_of_left_out
from mibench.defenses import Recipe
from mibench.machine import cores
from mibench.networks.foreign.given import NORMALISATIONS, Given, Numbers, give
from mibench.reporting.audit import verdict
from mibench.reporting.cautions import control_table
from mibench.reporting.figures import draw_reconstructions
from mibench.reporting.page import page
from mibench.reporting.results import Results, collect
from mibench.running import plan
from mibench.running.executors import Bench
from mibench.running.grid import Grid
from mibench.running.own_model import Checked, check_model, lay_out
from mibench.running.stages import ImagesStage
from mibench.spec import unknown
from mibench.store import Stage, Store, put, tell

LEAST_MINUTES = 0.1


@dataclass(frozen=True)
class Audit:
    """What an audit came to.

    Attributes:
        accuracy: Of the model on the test images, in percent.
        warnings: What was found wrong or unusual about the model and the images.
        text: A paragraph: what was recovered, how sure that is, what it does not show.
        results: The numbers, with those of the controls.
        page: The report, one HTML file.
        picture: Reconstructions, one row for each attack.
    """

    accuracy: float
    warnings: tuple[str, ...]
    text: str
    results: Results
    page: Path
    picture: Path


def audit(
    model: nn.Module,
    *,
    train: Folder,
    test: Folder,
    public: Folder,
    size: int,
    channels: int = 3,
    mean: str | Numbers = "imagenet",
    std: Numbers = (),
    last: str = "",
    order: Sequence[str] = (),
    evaluator: nn.Module | None = None,
    attacks: Sequence[str] = ATTACKS,
    budget: float = 8.0,
    store: Folder = STORE,
    out: Folder = "mibench-out/audit",
    device: str = "auto",
    threads: int | None = None,
    with_private: bool = False,
    anyway: bool = False,
    quiet: bool = True,
) -> Audit:
    """Attacks a trained model, and says in plain words what was recovered of its train images.

    First the model is asked about its own images: a wrong normalisation or order of classes is
    named. Then an evaluation classifier is trained, unless one is given, and attacks run beside
    controls, for as long as the budget allows. What was computed is kept in the store.

    Args:
        model: Takes images (n, channels, size, size) and returns logits (n, classes).
        train: Folder of the images that it was trained on, a folder for each class.
        test: Folder of others of the same classes, likewise.
        public: Folder of images of others, such as an attacker might have; folders in it may be
            anything.
        size: Height and width of its images in pixels. Larger images are cut to the largest
            central square and resized.
        channels: 3 for colour, 1 for grey.
        mean: What is taken from pixels in [0, 1] before the model sees them, one number or one for
            each channel; or a name: "imagenet", "half" for [-1, 1], "none" or "bytes".
        std: What they are divided by then; a name brings its own.
        last: Name of the layer whose output are the logits; by default the linear layer that is
            called last.
        order: Names of the folders in the order of the model's outputs; by default that of the
            names.
        evaluator: A second trained model of the same images and classes, that judges.
        attacks: Some of "MI-Face", "GMI" and "KED-MI".
        budget: Minutes that it may take.
        store: Folder of finished stages; the weights of the model are among them.
        out: Folder of the report.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads; by default all cores.
        with_private: Whether train images are shown in the picture and the report.
        anyway: Whether to go on where a wrong normalisation, order or accuracy was found.
        quiet: Whether to show no progress.

    Raises:
        ValueError: If the folders or the model do not fit, or a mistake was found; the message
            says what to do.
        RuntimeError: If a stage fails.
    """
    begun = time.monotonic()
    if not budget >= LEAST_MINUTES:
        raise ValueError(f"the budget must be {LEAST_MINUTES:g} minutes or more, got {budget:g}")
    if not attacks:
        raise ValueError(f"name an attack: {', '.join(ATTACKS)}")
    place, done = Path(out), Store(Path(store))
    data = place / "data"
    names, used = lay_out(data / "images", Path(train), Path(test), Path(public), order)
    task = FolderTask("images", len(names), size, channels)
    spec = _given(model, task, mean, std, last)
    judge = None
    if evaluator is not None:
        given = _given(evaluator, task, mean, std, "")
        judge = Evaluator(given, Recipe(epochs=0, select="last"))
    images = ImagesStage(task, task.digest(data))
    lengths = _Lengths(task, spec, judge, tuple(attacks), task.sizes(data), done, data)
    for cell in lengths.table(0).rows.values():
        with torch.device("meta"):  # what does not fit the images is said before anything is done
            cell.attack.prior.build(task.shape, len(names))
    run = partial(_run, store=done, data=data, device=device, threads=threads, quiet=quiet)
    run([images])
    checked = check_model(spec, images.splits(done.load), names)
    warnings = [*done.meta(images).get("remarks", []), *checked.faults]
    folders = ["", *(folder.name for folder in subfolders(Path(public)))]
    if left := said_of_left_out("public", Path(public), folders):  # its links are all read
        warnings.append(left[0])
    if used[0] < used[1]:
        warnings.append(f"{used[0]:,} of the {used[1]:,} public images are used.")
    accuracy = (
        f"The model is right about {checked.accuracy:.2f} % of the {checked.tests} test images "
        f"and {checked.train_accuracy:.2f} % of the train images."
    )
    if checked.faults:
        sentence = f"{accuracy} Wrong: {'; '.join(checked.faults)}."
        if not anyway:
            raise ValueError(f"{sentence} {_remedy(checked, place)}")
        tell(sentence)
    elif not quiet:
        tell(accuracy)
    timed = [lengths.grid(lengths.table(0))]
    bench = run(_stages(timed[0]))
    end = begun + 60 * budget
    shortest = lengths.grid(lengths.table(SHARES[-1]))
    if lengths.seconds(shortest, timed, bench) < (end - time.monotonic()) / 4:
        run(_stages(shortest))  # two lengths tell the time of steps from that of the rest
        timed.append(shortest)
    grid, line = lengths.longest(end - time.monotonic(), timed, bench)
    if not quiet:
        tell(line)
    run(_stages(grid))
    results = collect(grid)
    tried = {Row.of(label).attack for label in grid.table.rows}
    found = verdict(results, [name for name in attacks if name not in tried])
    text = " ".join([accuracy, *(f"Warning: {w}" for w in warnings), found])
    notes = (
        line,
        "Classes are numbered from 0 on, in the order of the folders' names or that of --order.",
    )
    shown = replace(grid, table=replace(grid.table, caption=text, notes=notes))
    picture, report = place / "audit.png", place / "index.html"
    private = grid.private(with_private)
    draw_reconstructions(grid, picture, private=private)
    put(report, page([(shown, None)], with_private=with_private))
    results = replace(results, table=replace(grid.table, notes=notes))
    return Audit(checked.accuracy, tuple(warnings), text, results, report, picture)


def normalisation(mean: str | Numbers, std: Numbers = ()) -> tuple[Numbers, Numbers]:
    """Returns mean and standard deviation, one of them perhaps by a name.

    Raises:
        ValueError: If the name is not known, or one of the two is missing.
    """
    if isinstance(mean, str):
        if mean not in NORMALISATIONS:
            raise ValueError(unknown("normalisation", mean, NORMALISATIONS))
        return NORMALISATIONS[mean][0], std or NORMALISATIONS[mean][1]
    if not std:
        raise ValueError("numbers as mean need numbers as std, too: one, or one for each channel")
    return tuple(mean), tuple(std)


def _given(model: nn.Module, task: Task, mean: str | Numbers, std: Numbers, last: str) -> Given:
    """Returns the spec of a model that tells as many classes apart as there are folders."""
    spec, outputs = give(model, task.shape, *normalisation(mean, std), last)
    if outputs != task.num_classes:
        raise ValueError(
            f"the model has {outputs} outputs, and there are {task.num_classes} folders of train "
            "images: each class is a folder"
        )
    return spec


def _remedy(checked: Checked, place: Path) -> str:
    """Returns what to do about mistakes; writes the order of classes that fits best."""
    advice = "correct it, or go on all the same with --anyway"
    if not any(fault.startswith("class order") for fault in checked.faults):
        return advice
    file = place / "order.txt"
    put(file, "\n".join(checked.order) + "\n")
    return f"{file} has the order that fits best: read it, and give it as --order; {advice}"


def _stages(grid: Grid) -> list[Stage]:
    """Returns the stages of a grid and of its controls, once each."""
    own = [*grid.stages(), *(grid.controls.stages() if grid.controls else ())]
    return list({stage.key: stage for stage in own}.values())


def _run(
    stages: Iterable[Stage],
    store: Store,
    data: Path,
    device: str,
    threads: int | None,
    quiet: bool,
) -> Bench:
    return complete(stages, store, data, device, threads=threads or cores(), quiet=quiet)


@dataclass(frozen=True)
class _Lengths:
    """Audits of one model, of several lengths.

    Attributes:
        task: The images.
        spec: The model.
        judge: The evaluation classifier, if it was given.
        attacks: Names, those first that are left out last.
        sizes: How many images there are.
        store: Where stages are.
        data: The folder with the images.
    """

    task: FolderTask
    spec: Given
    judge: Evaluator | None
    attacks: tuple[str, ...]
    sizes: Sizes
    store: Store
    data: Path

    def table(self, share: float, attacks: tuple[str, ...] = ()) -> Table:
        """Returns an audit of a length, of some of the attacks; without names, of all."""
        names = attacks or self.attacks
        return audit_table(self.task, self.spec, self.judge, names, self.sizes, share)

    def grid(self, table: Table) -> Grid:
        """Returns the stages of an audit and of its controls."""
        controls = Grid.plan(control_table(table), 1, self.data, self.store)
        return replace(Grid.plan(table, 1, self.data, self.store), controls=controls)

    def seconds(self, grid: Grid, timed: Iterable[Grid], bench: Bench) -> float:
        """Returns how long what is missing of an audit will take.

        Args:
            grid: The audit.
            timed: Finished ones.
            bench: Where they were computed.
        """
        known = {stage.key: stage for other in timed for stage in _stages(other)}
        steps = {key: plan.planned_steps(stage, self.sizes) for key, stage in known.items()}
        kind = bench.device.partition(":")[0]
        took = plan.measured(known.values(), steps, self.store, kind, (bench.precision,))
        own = _stages(grid)
        states = self.store.states(own)
        return sum(
            plan.estimate(stage, plan.planned_steps(stage, self.sizes), took) or 0.0
            for stage in own
            if states[stage.key] != "done"
        )

    def longest(self, left: float, timed: Sequence[Grid], bench: Bench) -> tuple[Grid, str]:
        """Returns the longest audit that the time left allows, and what to say of it.

        The last attacks are left out where even the shortest runs of all take too long.

        Args:
            left: Seconds.
            timed: Finished audits.
            bench: Where they were computed.
        """
        tries = [(self.attacks, share) for share in SHARES]
        tries += [(self.attacks[:n], SHARES[-1]) for n in range(len(self.attacks) - 1, 0, -1)]
        for some, share in tries:
            grid = self.grid(self.table(share, some))
            seconds = self.seconds(grid, timed, bench)
            if seconds <= left:
                break
        left_out = self.attacks[len(some) :]
        return grid, _said(grid.table, share, seconds, left, left_out)


def _said(table: Table, share: float, seconds: float, left: float, left_out: Sequence[str]) -> str:
    """Returns what is run, for how long, and what is left out."""
    lengths = []
    for label, cell in table.rows.items():
        attack: Any = cell.attack
        prior = getattr(attack.prior, "epochs", 0)
        taught = f" after {prior} epochs of its prior" if prior else ""
        lengths.append(f"{Row.of(label).attack} {attack.steps} steps{taught}")
    line = (
        f"Attacks take {share:.2g} of their usual length, by steps that were timed here: "
        f"{', '.join(lengths)}; about {plan.told_time(seconds)}."
    )
    if seconds > left:
        line += (
            f" That is more than the {plan.told_time(left)} left of the budget."
            if left > 0
            else " The timed runs took the whole budget."
        )
    if left_out:
        line += f" Left out, since they take longer: {', '.join(left_out)}."
    return line
