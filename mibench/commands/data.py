"""The commands data …: look at the raw data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.shared import changed, fetch, refusing

if TYPE_CHECKING:
    from mibench.data import Corpus

FEW = 20
"""Up to this number of classes, all are listed."""


@click.group("data")
def data_() -> None:
    """Look at the raw data sets."""


@data_.command()
@click.argument("name")
@options.settings("Change a field of the task, for example folder=my_faces.")
@options.data
@options.download
@click.option("--classes", is_flag=True, help="List every class, even a thousand of them.")
def check(name: str, settings: Sequence[str], data: Path, download: bool, classes: bool) -> None:
    """Read all of a data set, and say what is in it.

    NAME is a task. Prints the number of images of each part and the class of each person or
    thing. On stderr: how many files were left out, turned upright, laid over white, taken as
    colour, or are there twice.

    Example: mibench data check digits
    """
    from mibench.data import TASKS
    from mibench.spec import unknown

    with refusing():
        if name not in TASKS:
            raise KeyError(unknown("task", name, TASKS))
        task = changed(TASKS[name](), settings)
        if download:
            fetch([task], data)
        digest = task.digest(data)
        splits = task.load(data)
        names = task.classes(data)
    private, public = splits.private, splits.public
    held = int(private.validation.sum())
    click.echo(f"{name}: images of {'x'.join(map(str, task.shape))}, digest {digest[:16]}")
    click.echo(f"private classes   {private.num_classes}")
    click.echo(f"private train     {len(private.train)}, {held} of them held out for validation")
    click.echo(f"private test      {len(private.test)}")
    click.echo(f"public            {len(public)} of {len(set(public.labels.tolist()))} classes")
    everything = splits.evaluation
    click.echo(f"evaluation        {len(everything.train)} of {everything.num_classes} classes")
    for line in _listed(names, private, every=classes):
        click.echo(line)


def _listed(names: Sequence[str], private: "Corpus", *, every: bool) -> list[str]:
    """Returns a line per class, or of many classes the first and the last."""
    counts = [
        s.labels.bincount(minlength=len(names)).tolist() for s in (private.train, private.test)
    ]
    lines = [
        f"class {label:<11d} {name}: {train} train, {test} test"
        for label, (name, train, test) in enumerate(zip(names, *counts, strict=True))
    ]
    if every or len(lines) <= FEW:
        return lines
    half = FEW // 2
    between = f"...               {len(lines) - FEW} more, listed with --classes"
    return [*lines[:half], between, *lines[-half:]]
