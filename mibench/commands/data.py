"""The commands data …: look at the raw data sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands.shared import anywhere, fetch, refusing

if TYPE_CHECKING:
    from mibench.data import Corpus

FEW = 20
"""So many classes are all listed."""


@click.group("data")
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
    type=anywhere,
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="Raw data sets.",
)
@click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
@click.option("--classes", is_flag=True, help="List every class, be they a thousand.")
def check(name: str, settings: Sequence[str], data: Path, download: bool, classes: bool) -> None:
    """Read the task NAME whole and say what is there, and which class is whose.

    On stderr: how many files were left out, turned upright, laid over white, taken as colour,
    or are there twice.
    """
    from mibench.data import TASKS
    from mibench.override import override
    from mibench.spec import unknown

    with refusing():
        if name not in TASKS:
            raise KeyError(unknown("task", name, TASKS))
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
