"""The commands data …: look at the raw data sets."""

from collections.abc import Sequence
from pathlib import Path

import click

from mibench.commands.shared import anywhere, fetch, refusing


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
def check(name: str, settings: Sequence[str], data: Path, download: bool) -> None:
    """Read the task NAME whole and say what is there."""
    from mibench.data import TASKS
    from mibench.spec import override, unknown

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
    private, public = splits.private, splits.public
    held = int(private.validation.sum())
    click.echo(f"{name}: images of {'x'.join(map(str, task.shape))}, digest {digest[:16]}")
    click.echo(f"private classes   {private.num_classes}")
    click.echo(f"private train     {len(private.train)}, {held} of them held out for validation")
    click.echo(f"private test      {len(private.test)}")
    click.echo(f"public            {len(public)} of {len(set(public.labels.tolist()))} classes")
    everything = splits.evaluation
    click.echo(f"evaluation        {len(everything.train)} of {everything.num_classes} classes")
