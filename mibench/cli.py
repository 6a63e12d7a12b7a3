"""The command line: a group of the commands in ``mibench.commands``.

Results go to stdout; progress, warnings and errors to stderr. Exit status 2: nothing was
started (bad input); 1: something failed after work had begun.
"""

import atexit
import gc
import sys

import click

from mibench.commands import COMMANDS
from mibench.commands.shared import Commands


@atexit.register
def _leave() -> None:
    """Spares what reads a store the half second in which torch's objects are searched at exit."""
    if "triton" not in sys.modules:  # it is once something trains, and would tell of leaks
        gc.freeze()


@click.group(
    cls=Commands,
    commands=list(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="mibench")
def main() -> None:
    """Train defended classifiers, invert them, and see what the attacks recover."""


if __name__ == "__main__":
    main()
