"""The command line: a group of the commands in ``mibench.commands``.

Results go to stdout; progress, warnings and errors to stderr. Exit status 2: nothing was
started (bad input); 1: something failed after work had begun.
"""

import atexit
import gc
import sys

import click

from mibench.commands import COMMANDS, RENAMED
from mibench.commands.shared import Commands


@atexit.register
def _leave() -> None:
    """Spares commands that only read the half second in which torch's objects are searched."""
    if "triton" not in sys.modules:  # which is there once something trains, and reports leaks
        gc.freeze()


@click.group(
    cls=Commands,
    sections=COMMANDS,
    renamed=RENAMED,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="mibench")
def main() -> None:
    """Train defended classifiers, attack them, and print what the attacks recovered.

    Example: mibench run avatars
    """


if __name__ == "__main__":
    main()
