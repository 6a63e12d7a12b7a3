"""The commands data …: look at the raw data sets."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.shared import changed, fetch, refusing

if TYPE_CHECKING:
    from mibench.data import Corpus, Task

FEW = 20
"""Up to this number of classes, all are listed."""
ROWS, COLUMNS = 12, 10
"""Classes and images of each on a sheet."""


@click.group("data")
def data_() -> None:
    """Look at the raw data sets."""


def chosen(name: str, settings: Sequence[str]) -> "Task":
    """Returns a task by name, with other values of its fields.

    Raises:
        KeyError: If there is no such task or field.
        ValueError: If a field does not take the value.
    """
    from mibench.data import TASKS
    from mibench.spec import unknown

    if name not in TASKS:
        raise KeyError(unknown("task", name, TASKS))
    task: Task = changed(TASKS[name](), settings)
    return task


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
    with refusing():
        task = chosen(name, settings)
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


@data_.command()
@click.argument("name")
@options.settings("Change a field of the task, for example shift=all.")
@options.data
@options.download
@click.option("--public", is_flag=True, help="Public classes in place of private ones.")
@options.out(options.anywhere, "Folder of the picture.")
def show(
    name: str, settings: Sequence[str], data: Path, download: bool, public: bool, out: Path
) -> None:
    """Draw a sheet of a data set's images.

    NAME is a task. A row is a class, up to twelve of them, with its first train images, up to ten.
    Images of people are not drawn.

    Example: mibench data show avatars --set size=64
    """
    import torch
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    from mibench.store import put

    with refusing():
        task = chosen(name, settings)
        if task.faces:
            raise ValueError(f"{name} shows people: no sheet is drawn of their images")
        if download:
            fetch([task], data)
        splits = task.load(data)
        part = splits.public if public else splits.private.train
        classes = torch.tensor(sorted(set(part.labels.tolist()))[:ROWS])
        each = min(COLUMNS, int(part.labels.bincount()[classes].min()))
        rows = [(part.labels == label).nonzero()[:each, 0] for label in classes]
        shown = part.take(torch.cat(rows))
        sheet = make_grid(shown.pixels, nrow=each, padding=1, pad_value=255)
        path = out / f"{name}-{'public' if public else 'private'}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = io.BytesIO()
        to_pil_image(sheet).save(picture, "PNG")
        put(path, picture.getvalue())
    click.echo(path)


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
