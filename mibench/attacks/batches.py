"""How many blocks and restarts of an attack are computed at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mibench.types import BATCH_PIXELS

BYTES_PER_VALUE = 8192
"""Of a GPU's memory for each value of an image: a deep network's maps are so much larger."""


@dataclass(frozen=True)
class Part:
    """Groups of images that are computed together.

    Attributes:
        groups: Which groups.
        rows: Which images.
    """

    groups: slice
    rows: slice


def parts(sizes: Sequence[int], values: int, device: torch.device) -> list[Part]:
    """Returns the fewest parts of whole groups that fit the device.

    A GPU takes what its memory holds, whatever is free of it, so that all of a kind compute the
    same; a CPU, which gains little by more, what ``predict`` takes. Results differ in their
    last bits with the parts, and by no more where neither views nor the target draw at random.

    Args:
        sizes: Images of each group.
        values: Of an image: its channels times its pixels.
        device: Where they are computed.
    """
    room = BATCH_PIXELS // values
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        room = memory // (BYTES_PER_VALUE * values)
    full: list[Part] = []
    group = row = 0
    for i, size in enumerate(sizes):
        end = sum(sizes[group : i + 1])
        if i > group and end > room:
            full.append(Part(slice(group, i), slice(row, row + end - size)))
            group, row = i, row + end - size
    return [*full, Part(slice(group, len(sizes)), slice(row, sum(sizes)))]
