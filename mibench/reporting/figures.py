"""Figures: what the attacks recovered, and what privacy costs."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.benchmarks.row import Row
from mibench.reporting.drawing import own_style
from mibench.reporting.results import Results
from mibench.running.grid import Grid
from mibench.spec import fingerprint

VERSION = 3
COLUMNS = 16
"""Classes that a picture shows at most."""
COLOURS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#999933",
)  # fmt: skip
"""Okabe and Ito's palette, which colour-blind readers can tell apart; its yellow darkened."""
MARKERS = "osD^vPX<"
IMAGES = 40
"""Images that a row of a picture shows at most: of each class 8 or, if there are many, 2."""


@own_style()
def draw_reconstructions(grid: Grid, path: Path, *, private: bool = True) -> bool:
    """Writes a PNG: rows are private examples, then each row's reconstructions; columns classes.

    The first passes of the first seed are shown, not the best ones. Rows that are not in the
    store are left out.

    Args:
        grid: The rows.
        path: The PNG.
        private: Whether to show private training images.

    Returns:
        Whether there was anything to show; as of every function that draws here.
    """
    done, store = grid.first, grid.store
    if not done:
        return False
    if _current(path, stamp := _stamp("images", done.values(), private)):
        return True
    first = next(iter(done.values())).evidence[0]
    classes = min(COLUMNS, min(r.evidence[0].inversion.classes for r in done.values()))
    passes = max(2, min(8, IMAGES // classes))
    strips: list[tuple[str, Tensor]] = []
    if private:
        train = first.images.splits(store.load).private.train
        examples = [train.pixels[train.labels == c][:passes] for c in range(classes)]
        strips.append(("Private", torch.cat(examples).float() / 255))
    for label, record in done.items():
        images = store.load(record.evidence[0].inversion)["images"][:passes, :classes].float()
        strips.append((label, images.transpose(0, 1).flatten(0, 1)))
    figure = new_figure((1.9 + 0.42 * classes * passes, 0.46 * len(strips) + 0.4))
    per_class = len(strips[-1][1]) // classes
    for i, (label, images) in enumerate(strips):
        axes = figure.add_subplot(len(strips), 1, i + 1)
        width = draw_strip(axes, label, images, per_class) / classes
        if i == 0:
            axes.set_xticks([(c + 0.5) * width for c in range(classes)], map(str, range(classes)))
            axes.xaxis.tick_top()
    save(figure, path, stamp)
    return True


def draw_strip(axes: Any, label: str, images: Tensor, per_class: int) -> float:  # noqa: ANN401
    """Draws images side by side, the label before them; returns the width."""
    strip = _strip(images, per_class)
    grey = strip.shape[2] == 1
    axes.imshow(
        strip[:, :, 0] if grey else strip, cmap="gray" if grey else None, vmin=0, vmax=1,
        interpolation="nearest", aspect="equal",
    )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes.spines[:].set_visible(b=False)
    width: float = strip.shape[1]
    return width


def _strip(images: Tensor, per_class: int) -> Any:  # noqa: ANN401 - a NumPy array (h, w, c)
    """Returns the images side by side, a gap of a few pixels after each class."""
    gap = max(1, images.shape[-1] // 8)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0)
    groups = padded.split(per_class)  # type: ignore[no-untyped-call]
    white = torch.ones(*padded.shape[1:3], gap)
    pieces = [p for g in groups for p in (*g, white)]
    return torch.cat(pieces, dim=2).permute(1, 2, 0).numpy()


@own_style()
def draw_tradeoff(results: Results, path: Path, key: str) -> bool:
    """Writes a PNG: Attack Acc against Accuracy, one marker per row, one panel per attack."""
    rows = {
        label: (e["accuracy"], e["attack_acc"])
        for label, e in results.entries.items()
        if {"accuracy", "attack_acc"} <= set(e) and e["attack_acc"].mean is not None
    }
    if not rows:
        return False
    if _current(path, stamp := fingerprint(["tradeoff", VERSION, key])):
        return True
    attacks = list(dict.fromkeys(Row.of(label).attack for label in rows))
    defenses = list(dict.fromkeys(Row.of(label).defended for label in rows))
    figure = new_figure((0.8 + 3.1 * len(attacks), 3.2))
    for i, attack in enumerate(attacks):
        axes = figure.add_subplot(1, len(attacks), i + 1)
        for j, defense in enumerate(defenses):
            label = f"{attack} / {defense}" if attack else defense
            if label not in rows:
                continue
            x, y = rows[label]
            spread = y.std if results.seeds == 1 else y.half
            axes.errorbar(
                x.mean, y.mean, xerr=x.half, yerr=spread, color=COLOURS[j % 8],
                marker=MARKERS[j % 8], label=defense, capsize=3, linestyle="",
            )  # fmt: skip
        axes.set_title(attack, fontsize=9)
        axes.set_xlabel("Accuracy of the target, %", fontsize=8)
        if i == 0:
            axes.set_ylabel("Attack Acc, % (lower is more private)", fontsize=8)
        axes.set_ylim(-2, 102)
        axes.tick_params(labelsize=8)
        axes.grid(visible=True, alpha=0.3)
        axes.margins(x=0.2)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, stamp)
    return True


@own_style()
def draw_training(grid: Grid, path: Path) -> bool:
    """Writes a PNG: the targets' accuracy by which weights are selected, epoch by epoch.

    First seed; rows that share a target share a curve. Targets that keep the last epoch are
    judged by no images while they train, and are left out.
    """
    targets = grid.targets()
    keys = [target.key for target in targets.values()]
    if _current(path, stamp := fingerprint(["training", VERSION, keys])):
        return True
    curves = {}
    for label, target in targets.items():
        history = grid.store.load(target)["history"]
        if history and all("accuracy" in epoch for epoch in history):
            curves[Row.of(label).defended] = [epoch["accuracy"] for epoch in history]
    if not curves:
        return False
    figure = new_figure((5.4, 3.4))
    axes = figure.add_subplot(1, 1, 1)
    for j, (label, accuracies) in enumerate(curves.items()):
        epochs = range(1, len(accuracies) + 1)
        axes.plot(
            epochs, accuracies, color=COLOURS[j % 8], marker=MARKERS[j % 8], markersize=3,
            linewidth=1, label=label,
        )  # fmt: skip
    axes.set_xlabel("Epoch", fontsize=8)
    axes.set_ylabel("Accuracy on selection images, %", fontsize=8)
    axes.set_ylim(-2, 102)
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    save(figure, path, stamp)
    return True


@own_style()
def draw_samples(grid: Grid, path: Path) -> bool:
    """Writes a PNG: a row for every prior that kept samples of its end, one per seed."""
    priors = grid.finished(record.evidence[0].inversion.prior for record in grid.last)
    if _current(path, stamp := fingerprint(["samples", VERSION, [p.key for p in priors]])):
        return True
    strips = {
        f"{prior.spec.name}, seed {prior.seed}": history["samples"][-1].float() / 255
        for prior in priors
        if "samples" in (history := grid.store.load(prior).get("history", {}))
    }
    if not strips:
        return False
    figure = new_figure((9.0, 0.55 * len(strips) + 0.1))
    for i, (label, images) in enumerate(strips.items()):
        draw_strip(figure.add_subplot(len(strips), 1, i + 1), label, images, 1)
    save(figure, path, stamp)
    return True


def new_figure(size: tuple[float, float]) -> Any:  # noqa: ANN401 - matplotlib has no stubs
    """Returns an empty figure of ``size`` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _stamp(what: str, records: Any, private: bool) -> str:  # noqa: ANN401
    return fingerprint([what, VERSION, private, [r.key for r in records]])


def _current(path: Path, stamp: str) -> bool:
    """Whether the file was drawn from the same records: a picture of old ones is redrawn."""
    return path.exists() and stamp.encode() in path.read_bytes()


def save(figure: Any, path: Path, stamp: str = "") -> None:  # noqa: ANN401 - no stubs
    """Writes a PNG or, by the path's suffix, a PDF with its fonts inside: the same each time."""
    from matplotlib import rc_context

    form = path.suffix.removeprefix(".")
    metadata: dict[str, str | None] = {"Software": "mibench", "Comment": stamp}
    if form == "pdf":
        metadata = {"Creator": "mibench", "Producer": None, "CreationDate": None}
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):  # whole TrueType fonts, which journals ask for
        figure.savefig(buffer, format=form, metadata=metadata)
    path.write_bytes(buffer.getvalue())
