"""Weaker skip connections, RoLSS and SSF: Koh et al., ECCV 2024, https://arxiv.org/abs/2409.01696."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, ClassVar

from torch import Tensor, nn

from mibench.networks import FaceNet
from mibench.roles import NetworkSpec, NoDefense
from mibench.spec import require
from mibench.types import Classifier


@dataclass(frozen=True)
class RoLSS(NoDefense):
    r"""Weighs the skip connections of each stage: out = relu(F(x) + k · shortcut(x)).

    The objective is the plain cross-entropy, Eq. (6) of Peng et al. With k = 0 a stage has no
    skips, and projections on their way are gone. IR networks have no ReLU behind the sum.

    Attributes:
        scales: k of each of the four stages, each in [0, 1]; all at 1 change nothing.
        tail: Share of the third stage's last blocks, rounded up, that have no skip whatever
            ``scales`` says: 0.2 in every network of the released code, those without defense too.
    """

    name: ClassVar[str] = "rolss"
    undefended: ClassVar[bool] = False
    checked_on: ClassVar[NetworkSpec | None] = FaceNet(width=0.05, size=16, blocks=(1, 1, 1, 1))

    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)
    tail: float = 0.0

    def __post_init__(self) -> None:
        require(self, scales=(0, 1), tail=(0, 1))

    def scales_of(self, depths: Sequence[int]) -> list[list[float]]:
        """Returns k of every block of the stages, which have so many."""
        result = [[k] * depth for k, depth in zip(self.scales, depths, strict=True)]
        without = ceil(self.tail * depths[2])
        result[2][depths[2] - without :] = [0.0] * without
        return result

    def harden(self, network: Classifier) -> Classifier:
        """Weighs the network's skips; raises ValueError if it has none that are known."""
        stages = [list(stage) for stage in _stages(network)]
        scales = self.scales_of([len(stage) for stage in stages])
        for stage, of_stage in zip(stages, scales, strict=True):
            for block, scale in zip(stage, of_stage, strict=True):
                name = "shortcut" if hasattr(block, "shortcut") else "shortcut_layer"
                if scale != 1:
                    setattr(block, name, weighed(getattr(block, name), scale))
        return network

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Refuses networks without skips."""
        network = cell.setting.network
        if network.has_skips:
            return ""
        return (
            f"not applicable: {self.name} weighs skip connections, and {network.name} has none; "
            "take resnet34, facenet64 or ir152"
        )


@dataclass(frozen=True)
class SSF(RoLSS):
    """RoLSS whose last stage keeps a fifth of its skips: k = 0.2 for those that are added."""

    name: ClassVar[str] = "ssf"

    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.2)


class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product."""
        return self.factor * x


class Nothing(nn.Module):
    """Adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns one 0, which is added to maps of any shape."""
        return x.new_zeros(())


def weighed(shortcut: nn.Module, scale: float) -> nn.Module:
    """Returns a shortcut whose weights, if it is kept, have the names that they had."""
    if not scale:
        return Nothing()
    layers = list(shortcut) if isinstance(shortcut, nn.Sequential) else [shortcut]
    return nn.Sequential(*layers, Scale(scale))


def _stages(network: Classifier) -> Iterator[list[nn.Module]]:
    """Yields the blocks of each stage of a ResNet or an IR network."""
    if isinstance(stages := getattr(network, "stages", None), nn.ModuleList):
        yield from map(list, stages)  # type: ignore[arg-type]
        return
    backbone = getattr(network, "backbone", None)
    ends: set[int] | None = getattr(backbone, "ends", None)
    body = getattr(backbone, "body", None)
    if ends is None or not hasattr(next(iter(body or [])), "shortcut_layer"):
        raise ValueError(f"the network, {type(network).__name__}, has no known skip connections")
    for start, end in pairwise([0, *sorted(ends)]):
        yield list(body[start:end])  # type: ignore[index]
