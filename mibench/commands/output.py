"""Standard output and error that may be closed, full, or without some characters."""

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
"""Name of the error handler that replaces characters which an encoding does not have."""


class Sink(io.RawIOBase):
    """A stream that never fails: it keeps the first error and drops what is written after it.

    So a command still writes its files, and can say at its end that its output is lost.

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
    """Writes ? for a character that the encoding does not have, and says so once."""

    noted = False

    def __call__(self, error: UnicodeError) -> tuple[str, int]:
        """Returns the replacement, and where to go on."""
        if not isinstance(error, UnicodeEncodeError):
            raise error
        if not self.noted:
            self.noted = True
            character = ascii(error.object[error.start])
            click.echo(
                f"note: standard output is {sys.stdout.encoding}, which has no {character}: "
                "such characters are written as ?; PYTHONIOENCODING=utf-8 keeps them",
                err=True,
            )
        return "?" * (error.end - error.start), error.end


@contextmanager
def safe_output() -> Iterator[None]:
    """Lets a command print to any output; exits with 1 if nothing could be printed.

    Streams that are not those of the process, such as a test's, stay as they are.
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
    """Returns a stream that writes into the sink, or the given one if that is safe."""
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
