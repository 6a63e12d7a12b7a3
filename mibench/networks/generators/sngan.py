"""A class-conditional generator and a projection discriminator, for 4 * 2^k pixels square.

Miyato & Koyama, ICLR 2018, https://arxiv.org/abs/1802.05637 (projection); Miyato et al., ICLR
2018, https://arxiv.org/abs/1802.05957 (spectral normalisation). The layer sizes are those of
PLG-MI's released code, which computes with 64 pixels.
"""

from itertools import pairwise
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from mibench.networks.generators.dcgan import doublings
from mibench.types import Images, Labels, Shape

Maps = Float[Tensor, "n _c _h _w"]


class ConditionalNorm(nn.BatchNorm2d):
    """Batch normalisation whose gain and shift are the class's own."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(channels, affine=False)
        self.gain = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Maps, y: Labels) -> Maps:  # type: ignore[override]
        """Returns normalised maps."""
        normal = super().forward(x)
        gain: Tensor = self.gain(y)[:, :, None, None]
        shift: Tensor = self.shift(y)[:, :, None, None]
        return gain * normal + shift


class UpBlock(nn.Module):
    """A residual block that doubles the resolution."""

    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(inputs, num_classes)
        self.norm2 = ConditionalNorm(outputs, num_classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Maps, y: Labels) -> Maps:
        """Returns maps of twice the side."""
        through: Tensor = self.conv1(doubled(self.norm1(x, y).relu()))
        through = self.conv2(self.norm2(through, y).relu())
        skipped: Tensor = self.skip(doubled(x))
        return through + skipped


def doubled(x: Maps) -> Maps:
    """Returns maps of twice the side, bilinear: two products with matrices.

    Unlike torch's own, they have the same gradients, to the bit, on every run of a GPU.
    """
    rows, columns = (_doubling(size, x) for size in x.shape[2:])
    return rows @ x @ columns.T


def _doubling(size: int, like: Tensor) -> Float[Tensor, "o i"]:
    at = ((torch.arange(2 * size) + 0.5) / 2 - 0.5).clamp(0, size - 1)
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0).to(like)


class Generator(nn.Module):
    """Latents and classes to images on the scale [-1, 1].

    Args:
        z_dim: Size of the latent space.
        width: Channels of the last block; each block before has twice as many.
        shape: (c, h, w) of the images.
        num_classes: Classes.
    """

    def __init__(self, z_dim: int, width: int, shape: Shape, num_classes: int) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(doublings(shape), -1, -1)]
        self.top = widths[0]
        self.project = nn.Linear(z_dim, self.top * 16)
        self.blocks = nn.ModuleList(UpBlock(*pair, num_classes) for pair in pairwise(widths))
        self.norm = nn.BatchNorm2d(width)
        self.draw = nn.Conv2d(width, shape[0], 1)

    def forward(self, z: Float[Tensor, "n z"], y: Labels) -> Images:
        """Returns images of the classes."""
        x: Tensor = self.project(z).view(len(z), self.top, 4, 4)
        for block in self.blocks:
            x = block(x, y)
        drawn: Tensor = self.draw(self.norm(x).relu())
        return drawn.tanh()


class DownBlock(nn.Module):
    """A residual block that halves the resolution; the first reads the image."""

    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        hidden = outputs if first else inputs
        self.conv1 = normed(nn.Conv2d(inputs, hidden, 3, padding=1), sqrt(2))
        self.conv2 = normed(nn.Conv2d(hidden, outputs, 3, padding=1), sqrt(2))
        self.skip = normed(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Maps) -> Maps:
        """Returns maps of half the side."""
        through = self.conv1(x if self.first else x.relu())
        through = F.avg_pool2d(self.conv2(through.relu()), 2)
        if self.first:
            skipped: Tensor = self.skip(F.avg_pool2d(x, 2))
        else:
            skipped = F.avg_pool2d(self.skip(x), 2)
        return through + skipped


def normed(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Returns the layer, its weights drawn as Glorot & Bengio do and spectrally normalised."""
    nn.init.xavier_uniform_(layer.weight, gain)  # type: ignore[arg-type]
    if getattr(layer, "bias", None) is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    register_parametrization(layer, "weight", SpectralNorm(layer.weight))  # type: ignore[arg-type]
    return layer


class SpectralNorm(nn.Module):
    """Weights over an estimate of their largest singular value.

    Each use in training mode first takes a step of the power iteration: v, then u. Torch's own
    takes them the other way round, and several at the start.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the normalised weights."""
        matrix = weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.v = F.normalize(matrix.T @ self.u, dim=0, eps=1e-12)
                self.u = F.normalize(matrix @ self.v, dim=0, eps=1e-12)
        return weight / (self.u[None] @ matrix @ self.v[:, None])[0, 0]


def down_blocks(width: int, shape: Shape) -> tuple[nn.Sequential, int]:
    """Returns the blocks of a discriminator, and how many channels come out of them."""
    widths = [shape[0], *(width * 2**i for i in range(doublings(shape) + 1))]
    blocks = (DownBlock(*pair, first=i == 0) for i, pair in enumerate(pairwise(widths)))
    return nn.Sequential(*blocks), widths[-1]


class Discriminator(nn.Module):
    """How real an image is as one of its class: w·h + b + ⟨e_y, h⟩, h the features.

    Args:
        width: Channels of the first block; each later one has twice as many.
        shape: (c, h, w) of the images.
        num_classes: Classes.
    """

    def __init__(self, width: int, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.blocks, features = down_blocks(width, shape)
        self.judge = normed(nn.Linear(features, 1))
        self.classes = normed(nn.Embedding(num_classes, features))

    def forward(self, x: Images, y: Labels) -> Float[Tensor, " n"]:
        """Returns the score."""
        features: Tensor = self.blocks(x).relu().sum((2, 3))
        score: Tensor = self.judge(features)[:, 0] + (self.classes(y) * features).sum(1)
        return score


class AuxiliaryDiscriminator(nn.Module):
    """How real an image is, and which class it is of, by the same features.

    Odena et al., ICML 2017, https://arxiv.org/abs/1610.09585. Its two heads are not normalised.

    Args:
        width: Channels of the first block; each later one has twice as many.
        shape: (c, h, w) of the images.
        num_classes: Classes.
    """

    def __init__(self, width: int, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.blocks, features = down_blocks(width, shape)
        self.judge = nn.Linear(features, 1)
        self.classes = nn.Linear(features, num_classes)

    def forward(self, x: Images) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """Returns the logit of being real, and those of the classes."""
        features: Tensor = self.blocks(x).relu().sum((2, 3))
        real: Tensor = self.judge(features)[:, 0]
        classes: Tensor = self.classes(features)
        return real, classes
