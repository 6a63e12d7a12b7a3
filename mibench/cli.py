"""The command line: a group of the commands in ``mibench.commands``.

Results go to stdout; progress, warnings and errors to stderr. Exit status 2: nothing was
started (bad input); 1: something failed after work had begun.
"""

import atexit
import gc

import click

from mibench.commands import COMMANDS
from mibench.commands.shared import Commands

atexit.register(gc.freeze)  # at the end of the process nothing need be looked through again


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
