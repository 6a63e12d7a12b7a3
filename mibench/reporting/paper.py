"""The figures of Peng et al., KDD 2022: training, what was recovered, and what privacy costs."""

from pathlib import Path
from typing import Any

from torch import Tensor

from mibench.benchmarks.row import Row
from mibench.reporting.drawing import own_style
from mibench.reporting.figures import COLOURS, MARKERS, draw_strip, new_figure, save
from mibench.reporting.gallery import gallery
from mibench.reporting.results import collect
from mibench.running.grid import Grid

PANELS = 2
"""Figure 1 has a panel for small weights and one for large ones."""
IMAGES = 8
"""Reconstructions of a row that Figure 3 shows at most."""
STYLES = ("-", (0, (5, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)))


@own_style()
def training(grid: Grid, path: Path, *, private: bool) -> None:
    """Figure 1: accuracy epoch by epoch, small weights left and large ones right.

    The accuracy is that on the images by which epochs are selected, first seed. Rows are taken in
    the table's order; those that share a target share a curve.

    Raises:
        ValueError: If no target that is done was judged while it trained.
    """
    shown = []
    for label, target in grid.targets().items():
        history = grid.store.load(target)["history"]
        if history and all("accuracy" in epoch for epoch in history):
            shown.append((Row.of(label).defended, [epoch["accuracy"] for epoch in history]))
    if not shown:
        raise ValueError("no target in the store was judged epoch by epoch while it trained")
    panels = PANELS if len(shown) >= 2 * PANELS else 1
    size = -(-len(shown) // panels)
    figure = new_figure((3.4 * panels, 2.8))
    for p in range(panels):
        axes = figure.add_subplot(1, panels, p + 1)
        for i, (label, accuracies) in enumerate(shown[p * size : (p + 1) * size]):
            j = p * size + i
            axes.plot(
                range(1, len(accuracies) + 1), accuracies, label=label, linewidth=1.4,
                color=COLOURS[j % len(COLOURS)], linestyle=STYLES[i % len(STYLES)],
                marker=MARKERS[j % len(MARKERS)], markersize=3,
            )  # fmt: skip
        _finish(axes, "Epoch", "Accuracy, %" if p == 0 else "")
        axes.set_ylim(-2, 102)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=7)
        if panels > 1:
            axes.set_title(f"({'ab'[p]})", fontsize=9)
    save(figure, path)


@own_style()
def reconstructions(grid: Grid, path: Path, *, private: bool) -> None:
    """Figure 3: of every row the first reconstructions, the most similar private ones below.

    Most similar is, of the private images of the attacked class that FID compares with, the
    nearest in the evaluator's features.

    Raises:
        ValueError: If no row is done.
    """
    strips: list[tuple[str, Tensor]] = []
    for label, record in grid.first.items():
        shown = gallery(record.evidence[0], grid.store, IMAGES, private=private)
        strips.append((label, shown.images))
        if shown.nearest is not None:
            strips.append(("most similar", shown.nearest))
    if not strips:
        raise ValueError("no row is in the store")
    margin = 0.4 + 0.075 * max(len(label) for label, _ in strips)
    figure = new_figure((margin + 0.5 * len(strips[0][1]), 0.5 * len(strips) + 0.1))
    for i, (label, images) in enumerate(strips):
        draw_strip(figure.add_subplot(len(strips), 1, i + 1), label, images, 1)
    save(figure, path)


@own_style()
def tradeoff(grid: Grid, path: Path, *, private: bool) -> None:
    """Figure 4: Attack Acc against Accuracy; the weights of one defense joined by a line.

    Labels that differ only in what follows " (" are one defense at several weights.

    Raises:
        ValueError: If no row has both numbers.
    """
    panels: dict[str, dict[str, list[tuple[float, float, float | None, float | None]]]] = {}
    results = collect(grid)
    for label, e in results.entries.items():
        if not {"accuracy", "attack_acc"} <= set(e):
            continue
        x, y = e["accuracy"], e["attack_acc"]
        if x.mean is not None and y.mean is not None:
            row = Row.of(label)
            family = panels.setdefault(row.attack, {}).setdefault(row.defense, [])
            spread = y.std if results.seeds == 1 else y.half
            family.append((x.mean, y.mean, x.half, spread))
    if not panels:
        raise ValueError("no row in the store has both Accuracy and Attack Acc")
    names = list(dict.fromkeys(name for families in panels.values() for name in families))
    figure = new_figure((0.9 + 3.1 * len(panels), 3.0))
    for p, (attack, families) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), p + 1)
        for name, points in families.items():
            j = names.index(name)
            xs, ys, dxs, dys = zip(*sorted(points), strict=True)
            axes.errorbar(
                xs, ys, xerr=[d or 0 for d in dxs], yerr=[d or 0 for d in dys], label=name,
                color=COLOURS[j % len(COLOURS)], marker=MARKERS[j % len(MARKERS)],
                markersize=5, linewidth=1, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        _finish(axes, "Accuracy of the target, %", "Attack Acc, %" if p == 0 else "")
        axes.set_ylim(-2, 102)
        axes.margins(x=0.15)
        axes.set_title(attack, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path)


def _finish(axes: Any, xlabel: str, ylabel: str) -> None:  # noqa: ANN401 - no stubs
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(visible=True, alpha=0.3)


FIGURES = {"training": training, "reconstructions": reconstructions, "tradeoff": tradeoff}
"""Name → what draws it."""
NUMBERS = {"1": "training", "3": "reconstructions", "4": "tradeoff"}
"""The paper's number → name."""
