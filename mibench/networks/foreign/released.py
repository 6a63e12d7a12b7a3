"""The layouts in which GMI, KED-MI, BiDO and LOMMA released their networks.

Their classifiers keep the layers under ``feature`` (those of MNIST under ``feature1`` and so on),
``bn`` and ``fc_layer`` (``st_layer`` before it with MID). Where a file uses other names, its
entries are taken in their order if it has one and every entry is of the kind and shape of the one
in its place.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from mibench.networks.foreign.checkpoints import places, same_places
from mibench.networks.foreign.weights import check_exactly
from mibench.types import Classifier, Shape

SIZES = (32, 64, 112, 128, 160, 224, 28, 16, 8)
"""Pixels a side to try where nobody says the size of the images."""


def _classifier(layers: str, last: str) -> Callable[[str], str]:
    names = {
        "feature": layers,
        "bn": "neck",
        "st_layer": "last.statistics",
        "fc_layer": last,
        "fc": last,
    }

    def rename(name: str) -> str:
        head, dot, rest = name.partition(".")
        if block := re.fullmatch(r"feature(\d{1,2})", head):
            return f"{layers}.{int(block[1]) - 1}{dot}{rest}"
        return names.get(head, head) + dot + rest

    return rename


LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    _classifier("features", "last"),
    _classifier("features", "last.classify"),
    _classifier("backbone", "last"),
    _classifier("backbone", "last.classify"),
    _classifier("blocks", "last"),
    _classifier("blocks", "last.classify"),
)
"""From a released name to ours, layout by layout."""


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` under the names of the layout that shares most names with ``own``."""
    named = [{rename(name): value for name, value in state.items()} for rename in LAYOUTS]
    return max(named, key=lambda renamed: len(renamed.keys() & own.keys()))


def translate(state: Mapping[str, Tensor], module: nn.Module, what: str) -> dict[str, Tensor]:
    """Returns ``state`` under the names of ``module``, whole.

    Args:
        state: Released weights, in the order of their modules.
        module: What they are to fit; its own weights do not matter and may be on the meta device.
        what: The subject of the complaint, such as "the weights in vgg16.tar".

    Raises:
        ValueError: If a name is missing or left over, or a shape is another one.
    """
    own = module.state_dict()
    best = _renamed(state, own)
    try:
        check_exactly(best, own, what, type(module).__name__)
    except ValueError as error:
        try:
            best = same_places(state, own)
        except ValueError as other:
            raise ValueError(f"{error}; nor do they fit in their order: {other}") from other
    return {
        name: best.get(name, torch.zeros(value.shape, dtype=value.dtype))  # a count of batches
        for name, value in own.items()
    }


def released_classifier(
    state: Mapping[str, Tensor],
    build: Callable[[Shape, int], Classifier],
    size: int | None,
    what: str,
) -> tuple[dict[str, Tensor], Shape, int]:
    """Returns a classifier's weights under our names, the shape of its images and its classes.

    Args:
        state: Released weights.
        build: Makes the network.
        size: Pixels a side of its images; None to try usual ones.
        what: The subject of the complaint.

    Raises:
        ValueError: If the weights do not fit the network at any size.
    """
    if not {2, 4} <= {value.ndim for value in state.values()}:
        raise ValueError(f"{what} are those of no convolutional classifier")
    unbuilt: list[ValueError] = []
    complaints: list[ValueError] = []
    for side in SIZES if size is None else (size,):
        try:
            channels, classes = _ends(state, build, side)
            shape = (channels, side, side)
            with torch.device("meta"):
                network = build(shape, classes)
        except ValueError as error:
            unbuilt.append(error)
            continue
        try:
            return translate(state, network, what), shape, classes
        except ValueError as error:
            complaints.append(error)
    raise _nearest(complaints) if complaints else unbuilt[0]


def _nearest(complaints: Sequence[ValueError]) -> ValueError:
    """Returns the complaint about the sizes that fit best: the shortest one."""
    return min(complaints, key=lambda error: len(str(error)))


def _ends(
    state: Mapping[str, Tensor], build: Callable[[Shape, int], Classifier], side: int
) -> tuple[int, int]:
    """Returns the channels and classes of the weights whose names are those of the ends.

    3 and 2 where there are no such names.
    """
    with torch.device("meta"):
        own, other = (build((3, side, side), classes).state_dict() for classes in (2, 3))
    known = _renamed(state, own)
    if not known.keys() & own.keys():
        with suppress(ValueError):
            known = places(state, own)
    first = next((name for name, value in own.items() if value.ndim == 4), "")
    last = next((name for name, value in own.items() if value.shape != other[name].shape), "")
    channels = known[first].shape[1] if first in known and known[first].ndim == 4 else 3
    if channels not in (1, 3):
        raise ValueError(f"the weights take images of {channels} channels")
    return channels, known[last].shape[0] if last in known and known[last].ndim else 2
