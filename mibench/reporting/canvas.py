"""Drawing: one style, axes and marks for every figure, and files with the same bytes each time."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.benchmarks.row import Row
from mibench.store import AbsentError, put

COLOURS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999933",
)  # fmt: skip
"""Okabe and Ito's palette, which colour-blind readers can distinguish; its yellow darkened."""
MARKERS = "osD^vPX<"
STYLES = ("-", (0, (5, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)))
ACCURACY = "Accuracy of the target, %"
ATTACK_ACC = "Attack Acc, % (lower is more private)"


@dataclass(frozen=True)
class Mark:
    """A point of Attack Acc against Accuracy, both in percent.

    Attributes:
        accuracy: Where it lies from left to right.
        attack_acc: Where it lies from bottom to top.
        dx: Half of the horizontal error bar; None where there is none.
        dy: Half of the vertical one.
    """

    accuracy: float
    attack_acc: float
    dx: float | None = None
    dy: float | None = None


@contextmanager
def own_style() -> Iterator[None]:
    """Draws in matplotlib's own style, whatever style and backend the user has chosen.

    What a label has between two $ is no formula. To decorate what draws and saves a figure.

    Raises:
        AbsentError: If a stage that is drawn is not in the store.
        OSError: If a file cannot be written.
        ValueError: If there is nothing to draw, or matplotlib cannot draw it.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # one that is not installed ends the import
    try:
        from matplotlib import style

        with style.context(["default", {"text.parse_math": False}]):
            yield
    except (OSError, ValueError, AbsentError):
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


def look(number: int) -> dict[str, str]:
    """Returns colour and marker of the curve or point of that number; both repeat after 64."""
    rounds, colour = divmod(number, len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[(number + rounds) % len(MARKERS)]}


def finish(axes: Any, xlabel: str, ylabel: str) -> None:  # noqa: ANN401
    """Names the axes, of which the vertical one is in percent, and draws a grid."""
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.set_ylim(-2, 102)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, alpha=0.3)


def tradeoff(axes: Any, lines: Mapping[str, Sequence[Mark]], **style: Any) -> None:  # noqa: ANN401
    """Draws Attack Acc against Accuracy.

    Args:
        axes: Where.
        lines: Name → its marks in order; a name without marks takes a colour and draws nothing.
        style: What differs from circles of the usual size on a line of the usual width.
    """
    for number, (name, marks) in enumerate(lines.items()):
        if marks:
            axes.errorbar(
                [m.accuracy for m in marks],
                [m.attack_acc for m in marks],
                xerr=[m.dx or 0 for m in marks] if any(m.dx is not None for m in marks) else None,
                yerr=[m.dy or 0 for m in marks] if any(m.dy is not None for m in marks) else None,
                label=name,
                **{**look(number), **style},
            )
    finish(axes, ACCURACY, ATTACK_ACC)


def tradeoff_figure(marks: Mapping[str, Mark], *, joined: bool) -> Any:  # noqa: ANN401
    """Returns Attack Acc against Accuracy, one panel per attack.

    Args:
        marks: Label → its mark; at least one.
        joined: Whether a line joins the weights of one defense; else each is for itself.
    """
    panels: dict[str, dict[str, list[Mark]]] = {}
    for label, mark in marks.items():
        row = Row.of(label)
        lines = panels.setdefault(row.attack, {})
        lines.setdefault(row.defense if joined else row.defended, []).append(mark)
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    figure = new_figure((0.8 + 3.1 * len(panels), 3.2))
    for i, (attack, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        ordered = {n: sorted(lines.get(n, []), key=lambda m: m.accuracy) for n in names}
        style = {"linestyle": "-", "linewidth": 1} if joined else {"linestyle": ""}
        tradeoff(axes, ordered, capsize=3, **style)
        axes.set_title(attack, fontsize=9)
        axes.margins(x=0.2)
        if i:
            axes.set_ylabel("")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return figure


def strip(axes: Any, label: str, images: Tensor, per_class: int) -> float:  # noqa: ANN401
    """Draws images side by side, the label before them; returns the width.

    Args:
        axes: Where.
        label: What they are.
        images: (n, c, h, w) in [0, 1].
        per_class: After how many images there is a gap of a few pixels.
    """
    gap = max(1, images.shape[-1] // 8)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    groups = padded.split(per_class)  # type: ignore[no-untyped-call]
    white = torch.ones(*padded.shape[1:3], gap)
    joined = torch.cat([p for g in groups for p in (*g, white)], dim=2).permute(1, 2, 0).numpy()
    grey = joined.shape[2] == 1
    axes.imshow(
        joined[:, :, 0] if grey else joined, cmap="gray" if grey else None, vmin=0, vmax=1,
        interpolation="nearest", aspect="equal",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes.spines[:].set_visible(b=False)
    width: float = joined.shape[1]
    return width


def save(figure: Any, path: Path, stamp: str = "") -> None:  # noqa: ANN401
    """Writes a PNG or, by the path's suffix, a PDF with its fonts inside: the same each time."""
    from matplotlib import rc_context

    form = path.suffix.removeprefix(".")
    metadata: dict[str, str | None] = {"Software": "mibench", "Comment": stamp}
    if form == "pdf":
        metadata = {"Creator": "mibench", "Producer": None, "CreationDate": None}
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):  # whole TrueType fonts, which journals ask for
        figure.savefig(buffer, format=form, metadata=metadata)
    put(path, buffer.getvalue())


def save_both(figure: Any, stem: Path) -> list[Path]:  # noqa: ANN401
    """Writes ``stem``.png and ``stem``.pdf; returns both paths."""
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    for path in paths:
        save(figure, path)
    return paths
