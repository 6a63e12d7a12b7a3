"""Figures as files: PNG to look at and PDF for papers, the same bytes for the same numbers."""

from pathlib import Path
from typing import Any


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
