"""Standard output and error as they come: closed, full, or of an encoding that lacks signs."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

REPLACED = "mibench.replaced"
"""Name of the way in which signs are written that an encoding lacks."""


class Sink(io.RawIOBase):
    """A descriptor that takes what it can: the first failure is kept, and what follows dropped.

    So a command goes on and writes its files, and can say at its end that its output is lost.

    Args:
        descriptor: Where bytes go; -1 if that was closed.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Returns True."""
        return True

    def fileno(self) -> int:
        """Returns the descriptor."""
        return self.descriptor

    def write(self, data: "ReadableBuffer") -> int:
        """Returns how many bytes were written, or dropped."""
        view = memoryview(data)
        if self.error is None:
            try:
                return os.write(self.descriptor, view)
            except OSError as error:
                self.error = error
        return view.nbytes


class Replacement:
    """Writes ? for a sign that an encoding lacks, and says so once."""

    told = False

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        """Returns what stands for the signs, and where to go on."""
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not self.told:
            self.told = True
            sign = ascii(error.object[error.start])
            click.echo(
                f"note: standard output is {sys.stdout.encoding}, which lacks {sign}: such signs "
                "are written as ?; PYTHONIOENCODING=utf-8 keeps them",
                err=True,
            )
        return "?" * (error.end - error.start), error.end


@contextmanager
def safe_output() -> Iterator[None]:
    """Makes what a command prints fit where it goes; exits with 1 if it could go nowhere.

    Streams other than the process's own, such as those of a test, stay as they are.
    """
    codecs.register_error(REPLACED, Replacement())
    before = sys.stdout, sys.stderr
    out, err = (Sink(-1 if s is None else n) for n, s in enumerate(before, start=1))
    sys.stdout = _over(out, sys.stdout, sys.__stdout__, REPLACED)
    sys.stderr = _over(err, sys.stderr, sys.__stderr__, "backslashreplace")
    status: str | int | None = None
    try:
        yield
    except SystemExit as leaving:
        status = leaving.code
    finally:
        sys.stdout.flush()
        if out.error is not None:
            why = "it is closed" if out.descriptor < 0 else out.error.strerror
            click.echo(f"Error: cannot write to standard output ({why})", err=True)
            status = 1
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
    sys.exit(status)


def _over(sink: Sink, stream: TextIO | None, own: TextIO | None, errors: str) -> TextIO:
    """Returns a stream that writes into the sink, or the given one where it can stay."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(sink), encoding="utf-8", errors="replace")
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream.isatty():
        stream.reconfigure(errors=errors)
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(sink), stream.encoding, errors, line_buffering=stream.line_buffering
    )
