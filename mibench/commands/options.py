"""Options that several commands have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mibench.spec import MOST_SEEDS

F = TypeVar("F", bound=Callable[..., Any])


class NamedPath(click.Path):
    """A path that is not empty: an unset variable of a script would mean the current folder."""

    def convert(self, value: Any, *context: Any) -> Any:  # noqa: ANN401
        """Refuses the empty text."""
        if value == "":
            self.fail("the path is empty", *context)
        return super().convert(value, *context)


anywhere = NamedPath(path_type=Path)
folder = NamedPath(path_type=Path, file_okay=False)
number_of_seeds = click.IntRange(1, MOST_SEEDS)


def apply(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns a decorator that adds the options in the order given."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def out(kind: click.Path, help: str, default: str = "mibench-out") -> Callable[[F], F]:
    """Returns the option that says where a command writes."""
    variable = "MIBENCH_OUT" if default == "mibench-out" else None
    return click.option("-o", "--out", type=kind, default=Path(default), show_default=True,
                        help=help, envvar=variable)  # fmt: skip


def settings(help: str) -> Callable[[F], F]:
    """Returns the option that changes fields of one component, see ``shared.changed``."""
    return click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help=help)


store = click.option(
    "--store", type=anywhere, default=Path("mibench-store"), envvar="MIBENCH_STORE",
    show_default=True, help="Folder of finished stages.",
)  # fmt: skip
data = click.option(
    "--data", type=anywhere, default=Path("data"), envvar="MIBENCH_DATA", show_default=True,
    help="Folder of raw data sets and of trained weights.",
)  # fmt: skip
records = click.option(
    "--records", "published", type=anywhere,
    help="Read the record files in and below this folder, in place of a store and raw data; "
    "without --seeds, all their seeds.",
)  # fmt: skip
precision = apply(
    click.option(
        "--precision", type=click.Choice(["float32", "bf16", "auto"]),
        help="Of networks. bf16: large products in bf16, quicker where the processor has "
        "instructions for it. auto: bf16 where a product is 1.5 times as fast. [default: float32]",
    ),
    click.option(
        "--mix-precision", is_flag=True,
        help="With --precision: use finished stages of another precision, too.",
    ),
)  # fmt: skip
download = click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
controls = click.option(
    "--controls", is_flag=True,
    help="Also the Attack Acc of unoptimised samples of each row's prior, on the same target.",
)  # fmt: skip
private = click.option(
    "--with-private", is_flag=True,
    help="Show private images of people too; other tasks' are shown anyway.",
)  # fmt: skip
