"""What commands share: the group they are in, and how they refuse bad input."""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mibench.commands.output import safe_output

if TYPE_CHECKING:
    from mibench.data import Task


class RefusedError(click.ClickException):
    """Bad input: one sentence on stderr, exit status 2."""

    exit_code = 2


class Commands(click.Group):
    """Commands by purpose; errors, also those that click finds, are one sentence.

    Args:
        sections: Title in the help → the commands below it.
        renamed: Former name → the words that call the command now. The former name still works.
        settings: Of :class:`click.Group`.
    """

    def __init__(
        self,
        sections: Mapping[str, Sequence[click.Command]] | None = None,
        renamed: Mapping[str, str] | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        self.sections = sections or {}
        self.renamed = renamed or {}
        every = [command for part in self.sections.values() for command in part]
        super().__init__(commands=every, **settings)

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Runs the command line that was given, and exits."""
        with safe_output():
            return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:  # noqa: ANN401
        """Parses the group's own options."""
        with in_one_sentence():
            return super().make_context(*args, **kwargs)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command, by a former name too."""
        if now := self.renamed.get(args[0]):
            click.echo(f"note: mibench {args[0]} is now called mibench {now}", err=True)
            args = [*now.split(), *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Parses a command's options and runs it."""
        try:
            with in_one_sentence():
                return super().invoke(ctx)
        except OSError as error:
            if type(error).__name__ != "StoreError":  # whose module would import torch
                raise
            fail(str(error))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands below the titles of their sections."""
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(c.name or "", c.get_short_help_str(70)) for c in commands])


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Leaves out the usage lines that click puts before a complaint."""
    try:
        yield
    except click.UsageError as error:
        asks_for_help = type(error).__name__ == "NoArgsIsHelpError"
        if error.ctx is None or asks_for_help:
            raise
        sentence = " ".join(error.format_message().split()).rstrip(".")
        raise RefusedError(f"{sentence}; see {error.ctx.command_path} --help") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turns errors that mibench raises for bad input into one sentence and exit status 2."""
    try:
        yield
    except KeyError as error:
        raise RefusedError(str(getattr(error, "told", error.args[0]))) from error  # AbsentError
    except (ValueError, TypeError) as error:
        raise RefusedError(str(getattr(error, "told", error))) from error  # DamagedError
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.strerror else str(error)
        raise RefusedError(text) from error


def fail(sentence: str) -> NoReturn:
    """Ends with exit status 1: something failed after work had begun."""
    click.echo(f"Error: {sentence}", err=True)
    sys.exit(1)


def escaped(text: str) -> str:
    """Returns a line with what is not printed, such as a newline in a file's name, as escapes.

    So no name can look like another line.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def changed(spec: Any, settings: Iterable[str]) -> Any:  # noqa: ANN401 - returns what it gets
    """Returns a component with other values of its fields, each given as FIELD=VALUE.

    Raises:
        ValueError: If there is no =, no such field, or the field does not take the value.
    """
    from mibench.override import override

    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {setting!r}")
        spec = override(spec, path.strip(), text.strip())
    return spec


def fetch(tasks: "Iterable[Task]", data: Path) -> None:
    """Downloads the raw data of those tasks that are not there.

    Raises:
        FileNotFoundError: If data are not there, and nobody may, or can, download them.
        ValueError: If they are there and not sound, or a download does not succeed.
    """
    from mibench.data.base import NoDownloadError

    for task in tasks:
        try:
            task.digest(data)
        except (FileNotFoundError, ValueError):
            try:
                task.download(data)
            except NoDownloadError:
                task.digest(data)  # says what is wrong with what is there


def check_writable(*folders: Path) -> None:
    """Makes the folders, and proves that files can be made in them."""
    for path in folders:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror}") from error
