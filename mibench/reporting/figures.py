"""Figures: what the attacks recovered, how targets trained, and what privacy costs.

Each function here returns whether there was anything to draw; if not, it writes nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mibench.benchmarks.row import Row
from mibench.reporting.canvas import (
    STYLES,
    Mark,
    finish,
    look,
    new_figure,
    own_style,
    save,
    save_both,
    strip,
    tradeoff,
    tradeoff_figure,
)
from mibench.reporting.gallery import gallery
from mibench.reporting.results import Results, collect
from mibench.reporting.tradeoff import Tradeoff, front
from mibench.running.grid import Grid
from mibench.spec import fingerprint
from mibench.store import Stage, Store

VERSION = 3
COLUMNS = 16
"""Classes that a picture shows at most."""
IMAGES = 40
"""Images that a row of a picture shows at most: of each class 8 or, if there are many, 2."""
SIMILAR = 8
"""Reconstructions of a row that Figure 3 shows at most."""


@own_style()
def draw_reconstructions(grid: Grid, path: Path, *, private: bool = True) -> bool:
    """Writes a PNG: rows are private examples, then each row's reconstructions; columns classes.

    The first passes of the first seed are shown, not the best ones. Rows that are not in the
    store are left out.

    Args:
        grid: The rows.
        path: The PNG.
        private: Whether to show private training images.
    """
    done, store = grid.first, grid.store
    if not done:
        return False
    shown = {label: record.evidence[0].inversion for label, record in done.items()}
    if _current(path, stamp := fingerprint(["images", VERSION, private, _held(store, shown)])):
        return True
    first = next(iter(done.values())).evidence[0]
    classes = min(COLUMNS, min(r.evidence[0].inversion.classes for r in done.values()))
    passes = max(2, min(8, IMAGES // classes))
    strips: list[tuple[str, Tensor]] = []
    if private:
        train = first.images.splits(store.load).private.train
        examples = [train.pixels[train.labels == c][:passes] for c in range(classes)]
        strips.append(("Private", torch.cat(examples).float() / 255))
    for label in done:
        images = store.load(shown[label])["images"][:passes, :classes].float()
        strips.append((label, images.transpose(0, 1).flatten(0, 1)))
    figure = new_figure((1.9 + 0.42 * classes * passes, 0.46 * len(strips) + 0.4))
    per_class = len(strips[-1][1]) // classes
    for i, (label, images) in enumerate(strips):
        axes = figure.add_subplot(len(strips), 1, i + 1)
        width = strip(axes, label, images, per_class) / classes
        if i == 0:
            axes.set_xticks([(c + 0.5) * width for c in range(classes)], map(str, range(classes)))
            axes.xaxis.tick_top()
    save(figure, path, stamp)
    return True


@own_style()
def draw_similar(grid: Grid, path: Path, *, private: bool) -> bool:
    """Draws of every row the first reconstructions, the most similar private ones below.

    Most similar is, of the private images of the attacked class that FID compares with, the
    nearest in the evaluator's features.
    """
    strips: list[tuple[str, Tensor]] = []
    for label, record in grid.first.items():
        shown = gallery(record.evidence[0], grid.store, SIMILAR, private=private)
        strips.append((label, shown.images))
        if shown.nearest is not None:
            strips.append(("most similar", shown.nearest))
    if strips:
        margin = 0.4 + 0.075 * max(len(label) for label, _ in strips)
        _save_strips(strips, (margin + 0.5 * len(strips[0][1]), 0.5 * len(strips) + 0.1), path)
    return bool(strips)


@own_style()
def draw_samples(grid: Grid, path: Path) -> bool:
    """Writes a PNG: a row for every prior that kept samples of its end, one per seed."""
    priors = grid.finished(record.evidence[0].inversion.prior for record in grid.last)
    held = _held(grid.store, {prior.key: prior for prior in priors})
    if _current(path, stamp := fingerprint(["samples", VERSION, held])):
        return True
    strips = [
        (f"{prior.spec.name}, seed {prior.seed}", history["samples"][-1].float() / 255)
        for prior in priors
        if "samples" in (history := grid.store.load(prior).get("history", {}))
    ]
    if strips:
        _save_strips(strips, (9.0, 0.55 * len(strips) + 0.1), path, stamp)
    return bool(strips)


def _save_strips(
    strips: list[tuple[str, Tensor]], size: tuple[float, float], path: Path, stamp: str = ""
) -> None:
    figure = new_figure(size)
    for i, (label, images) in enumerate(strips):
        strip(figure.add_subplot(len(strips), 1, i + 1), label, images, 1)
    save(figure, path, stamp)


@own_style()
def draw_tradeoff(results: Results, path: Path, key: str = "", *, joined: bool = False) -> bool:
    """Draws Attack Acc against Accuracy, one panel per attack.

    Args:
        results: The rows.
        path: The PNG or PDF.
        key: Names the results: a picture of the same ones is not drawn again. "" names none.
        joined: Whether a line joins the weights of one defense; else each is for itself.
    """
    marks = results.tradeoff()
    if not marks:
        return False
    if _current(path, stamp := fingerprint(["tradeoff", VERSION, key]) if key else ""):
        return True
    save(tradeoff_figure(marks, joined=joined), path, stamp)
    return True


@own_style()
def draw_curves(compared: Tradeoff, stem: Path) -> list[Path]:
    """Writes a PNG and a PDF: Attack Acc against Accuracy, a line per defense over its weights.

    Marks are means, bars Student's 95 % intervals, faint marks single seeds; the dashed steps
    are the front of all means. Returns no path while no seed is whole.
    """
    if not compared.seeds:
        return []
    figure = new_figure((5.4, 3.8))
    axes = figure.add_subplot(1, 1, 1)
    points = {c.name: [p for own in c.points.values() for p in own] for c in compared.curves}
    for number, own in enumerate(points.values()):
        axes.plot(*zip(*own, strict=True), **look(number), linestyle="", markersize=3, alpha=0.3)
    lines = {
        curve.name: [Mark(x.mean, y.mean, x.half, y.half) for x, y in curve.means()]
        for curve in compared.curves
    }
    tradeoff(axes, lines, capsize=2, linewidth=1.2, elinewidth=0.6)
    best = front([(m.accuracy, m.attack_acc) for marks in lines.values() for m in marks])[::-1]
    axes.step(
        [x for x, _ in best], [y for _, y in best], where="pre", color="#777777",
        linestyle="--", linewidth=1, label="front of means", zorder=1,
    )  # fmt: skip
    axes.set_xlim(min(x for own in points.values() for x, _ in own) - 2, 101)
    axes.legend(fontsize=7)
    return save_both(figure, stem)


@own_style()
def draw_training(grid: Grid, path: Path, *, panels: int = 1) -> bool:
    """Draws the targets' accuracy by which weights are selected, epoch by epoch.

    First seed; rows that share a target share a curve. Targets that keep the last epoch are
    judged by no images while they train, and are left out.

    Args:
        grid: The rows, in whose order the targets are.
        path: The PNG or PDF.
        panels: How many panels the targets fill in their order, if there are two for each.
    """
    targets = grid.targets()
    held = _held(grid.store, targets) if panels == 1 else []
    if _current(path, stamp := fingerprint(["training", VERSION, held]) if held else ""):
        return True
    curves = []
    for label, target in targets.items():
        history = grid.store.load(target)["history"]
        if history and all("accuracy" in epoch for epoch in history):
            curves.append((Row.of(label).defended, [epoch["accuracy"] for epoch in history]))
    if not curves:
        return False
    panels = panels if len(curves) >= 2 * panels else 1
    size = -(-len(curves) // panels)
    figure = new_figure((5.4, 3.4) if panels == 1 else (3.4 * panels, 2.8))
    for p in range(panels):
        axes = figure.add_subplot(1, panels, p + 1)
        for i, (name, accuracies) in enumerate(curves[p * size : (p + 1) * size]):
            axes.plot(
                range(1, len(accuracies) + 1), accuracies, label=name, linewidth=1, markersize=3,
                linestyle=STYLES[i % len(STYLES)] if panels > 1 else "-", **look(p * size + i),
            )  # fmt: skip
        finish(axes, "Epoch", "Accuracy on selection images, %" if p == 0 else "")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if panels > 1:
            axes.legend(fontsize=7)
            axes.set_title(f"({'ab'[p]})", fontsize=9)
    if panels == 1:
        figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, stamp)
    return True


def _held(store: Store, stages: Mapping[str, Stage]) -> list[tuple[str, str, str]]:
    """Returns labels, keys and digests, since stages of one key differ between machines."""
    return [(label, s.key, store.meta(s)["digest"]) for label, s in stages.items()]


def _current(path: Path, stamp: str) -> bool:
    """Whether the file was drawn from the same results: a picture of old ones is redrawn."""
    if not stamp or not path.exists():
        return False
    drawn = path.read_bytes()
    return stamp.encode() in drawn and drawn.endswith(b"IEND\xaeB`\x82")  # it is whole


# The figures of Peng et al., KDD 2022 --------------------------------------------------------

FIGURES = ("training", "reconstructions", "tradeoff")
NUMBERS = {"1": "training", "3": "reconstructions", "4": "tradeoff"}
"""The paper's number → name."""


def draw_figure(name: str, grid: Grid, path: Path, *, private: bool) -> None:
    """Draws a figure of the paper: training in two panels, reconstructions, or the trade-off.

    Raises:
        ValueError: If the store has nothing of what it shows.
    """
    if name == "training":
        drawn = draw_training(grid, path, panels=2)
        lacking = "no target in the store was judged epoch by epoch while it trained"
    elif name == "reconstructions":
        drawn = draw_similar(grid, path, private=private)
        lacking = "no row is in the store"
    else:
        drawn = draw_tradeoff(collect(grid), path, joined=True)
        lacking = "no row in the store has both Accuracy and Attack Acc"
    if not drawn:
        raise ValueError(lacking)
