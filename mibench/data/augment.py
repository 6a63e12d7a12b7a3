"""Random changes to a batch of training images, each image its own; drawn on the CPU."""

from collections.abc import Callable

import torch

from mibench.types import Images

PAD = 4
"""Pixels that "crop" pads each side of a 32-pixel image with; in proportion for others."""


def flip(x: Images, rng: torch.Generator) -> Images:
    """Mirrors each image left to right with probability one half."""
    mirror = (torch.rand(len(x), generator=rng) < 0.5).to(x.device)
    return torch.where(mirror[:, None, None, None], x.flip(3), x)


def crop(x: Images, rng: torch.Generator) -> Images:
    """Shifts each image by up to PAD pixels of 32 each way, filling with black."""
    n, _, h, w = x.shape
    pad = max(1, round(PAD * h / 32))
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=rng).to(x.device)
    rows = top[:, None] + torch.arange(h, device=x.device)
    columns = left[:, None] + torch.arange(w, device=x.device)
    pick = torch.arange(n, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[pick, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


AUGMENTATIONS: dict[str, Callable[[Images, torch.Generator], Images]] = {
    "flip": flip,
    "crop": crop,
}
