"""Errors of the file system, and what people are told while a stage runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path


class StoreError(OSError):
    """The store cannot be read or written: nothing that follows could be kept."""


def tell(sentence: str) -> None:
    """Writes a note to stderr."""
    with suppress(OSError, AttributeError):  # it is full, or closed: the work goes on
        sys.stderr.write(f"note: {sentence}\n")
        sys.stderr.flush()


_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


def remark(sentence: str, example: str = "") -> None:
    """Says how the running stage was computed otherwise than usual; its meta.json keeps it.

    Args:
        sentence: What readers of every result that rests on the stage should know.
        example: What is shown now and not kept, such as names of private files.
    """
    tell(f"{sentence} {example}".rstrip())
    if (kept := _remarks.get()) is not None:
        kept.append(sentence)


@contextmanager
def keeping(remarks: list[str]) -> Iterator[None]:
    """Appends to ``remarks`` what :func:`remark` says inside the block."""
    token = _remarks.set(remarks)
    try:
        yield
    finally:
        _remarks.reset(token)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns an error of a write into one sentence that ends the run, a StoreError."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise store_error("write to", place, error) from error


def store_error(what: str, place: Path, error: OSError) -> StoreError:
    """Returns the sentence on what could not be done with a place: "read" or "write to" it."""
    return StoreError(
        f"cannot {what} {place} ({error.strerror or error}); what is finished is kept: "
        "see to it and run the same command again"
    )
