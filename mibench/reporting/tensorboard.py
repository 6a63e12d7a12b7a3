"""Training statistics of priors as TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def write_events(history: Mapping[str, Tensor], folder: Path) -> None:
    """Writes statistics over thousands of images shown, in place of events written before.

    Args:
        history: "kimg" (t,), and series (t,) by name; pictures, bytes (g, m, c, h, w), have
            their own positions (g,) under their name and " kimg".
        folder: Where the event file goes.

    Raises:
        ValueError: If TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard is missing: pip install 'mibench[tensorboard]'") from error
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, values in history.items():
            if name.endswith("kimg"):
                continue
            at = history.get(f"{name} kimg", history["kimg"])
            for kimg, value in zip(at.tolist(), values, strict=True):
                step = round(1000 * kimg)
                if value.ndim == 0:
                    writer.add_scalar(name, value.item(), step)
                else:
                    writer.add_image(name, side_by_side(value), step)


def side_by_side(images: Tensor) -> Tensor:
    """Returns (m, c, h, w) images as one, (c, h, m w)."""
    return torch.cat(list(images), dim=2)
