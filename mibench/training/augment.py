"""Random changes to a batch of training images, each image its own; drawn on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

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


def cutout(x: Images, rng: torch.Generator) -> Images:
    """Blackens a square of half the side in each image, as DiffAugment does.

    Zhao et al., NeurIPS 2020, https://arxiv.org/abs/2006.10738: the middle of the square is
    uniform over the image with its border, and what lies outside is lost.
    """

    def covered(side: int) -> Tensor:
        length = (side + 1) // 2
        places = side + 1 - length % 2  # an even length has its middle between two pixels
        first = torch.randint(0, places, (len(x), 1), generator=rng) - length // 2
        pixels = torch.arange(side)
        return (pixels >= first) & (pixels < first + length)

    rows, columns = covered(x.shape[2]), covered(x.shape[3])
    hole = (rows[:, None, :, None] & columns[:, None, None, :]).to(x.device)
    return x.masked_fill(hole, 0)


AUGMENTATIONS: dict[str, Callable[[Images, torch.Generator], Images]] = {
    "flip": flip,
    "crop": crop,
    "cutout": cutout,
}
