"""What face networks share: a classifier on the embedding of a backbone that may be in a file."""

from abc import abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.networks.foreign.weights import Weights, load_exactly, read_weights
from mibench.roles import NetworkSpec
from mibench.spec import require
from mibench.types import Classifier, Images, Shape

Maps: TypeAlias = Float[Tensor, "n _ _ _"]


class Face(Classifier):
    """A classifier on the embedding of a face; Z_M is the embedding after the neck.

    Attributes:
        backbone: Maps prepared images to its stages and, last, the embedding.
    """

    backbone: nn.Module

    def prepare(self, x: Images) -> Maps:
        """Returns what the backbone takes, of grey or colour images in [0, 1]."""
        raise NotImplementedError

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns the backbone's stages and the embedding after the neck."""
        zs = self.backbone(self.prepare(x.expand(-1, 3, -1, -1)))
        return (*zs[:-1], self.neck(zs[-1]))


@dataclass(frozen=True)
class FaceSpec(NetworkSpec):
    """A face network whose backbone may come from a file.

    Attributes:
        weights: The backbone's; without them it starts at random.
        width: Factor on the channels; 1 is that of the released files.
    """

    weights: Weights | None = None
    width: float = 1.0

    def __post_init__(self) -> None:
        require(self, width=(1e-3, 16))

    @property
    @abstractmethod
    def makes(self) -> type[Face]:
        """The network, made of a spec and the number of classes."""

    @property
    def starts_trained(self) -> bool:
        """Whether a file gives the backbone."""
        return self.weights is not None

    def build(self, shape: Shape, num_classes: int) -> Face:
        """Returns the network; raises ValueError unless images are grey or coloured."""
        if shape[0] not in (1, 3):
            raise ValueError(f"{self.name} takes images of 1 or 3 channels, not {shape[0]}")
        return self.makes(self, num_classes)

    def fetch(self, root: Path) -> None:
        """Reads ``weights`` once."""
        if self.weights is not None:
            read_weights(self.weights, root)

    def initialise(self, network: Classifier, root: Path) -> None:
        """Loads ``weights`` into the backbone."""
        assert isinstance(network, Face), "a face network initialises what it built"
        if self.weights is not None:
            state = read_weights(self.weights, root)
            load_exactly(network.backbone, state, f"the weights in {self.weights.file}")

    def scale(self, channels: int) -> int:
        """Returns the channels at this width."""
        return max(1, round(self.width * channels))


class Unit(nn.Module):
    """Gives every row the length ``length``."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Returns the rows at their new length."""
        return self.length * F.normalize(z)


def stages(blocks: Iterable[nn.Module], x: Maps, ends: Collection[int]) -> list[Tensor]:
    """Returns the maps after those of the blocks whose numbers, from 1 on, are in ``ends``."""
    zs = []
    for i, block in enumerate(blocks, start=1):
        x = block(x)
        if i in ends:
            zs.append(x)
    return zs


def resize(x: Images, size: int) -> Maps:
    """Returns images of ``size`` x ``size`` pixels, resampled as Pillow's bilinear filter does.

    Two matrix products: exact gradients on every device, and the same bits each time, where
    the GPU's own resampling has no deterministic gradient.
    """
    height, width = x.shape[2:]
    if height == width == size:
        return x
    return _triangles(height, size).to(x) @ x @ _triangles(width, size).to(x).T


def _triangles(old: int, new: int) -> Float[Tensor, "new old"]:
    """Returns each new pixel's weights: a triangle, wider than a pixel where it shrinks."""
    scale = old / new
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    gaps = torch.arange(old) - centres[:, None]
    weights = (1 - gaps.abs() / max(scale, 1)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
