"""Figures as files: PNG to look at and PDF for papers, the same bytes for the same numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def own_style() -> Iterator[None]:
    """Draws in matplotlib's own style, whatever style and backend the user has chosen.

    What a label has between two $ is no formula. To decorate what draws and saves a figure.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If there is nothing to draw, or matplotlib cannot draw it.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # one that is not installed ends the import
    try:
        from matplotlib import style

        with style.context(["default", {"text.parse_math": False}]):
            yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # whatever there is in matplotlib and what it rests on
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def new_figure(size: tuple[float, float]) -> Any:  # noqa: ANN401 - matplotlib has no stubs
    """Returns an empty figure.

    Args:
        size: Width and height in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401
    """Writes ``stem``.png and ``stem``.pdf, undated; returns both paths."""
    png, pdf = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf"))
    figure.savefig(png, metadata={"Software": "mibench"})
    figure.savefig(pdf, metadata={"Creator": "mibench", "CreationDate": None})
    return [png, pdf]
