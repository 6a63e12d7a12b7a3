"""Generators and discriminators of GMI and KED-MI, for 4 * 2^k pixels square.

Zhang et al., CVPR 2020, https://arxiv.org/abs/1911.07135; Chen et al., ICCV 2021,
https://arxiv.org/abs/2010.04092. The layer sizes are those of their released code.
"""

from collections.abc import Sequence
from itertools import groupby
from math import log2

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.precision import mixed
from mibench.types import Images, Logits, Shape

FAR = 60.0
"""Distance from which on closeness is lost when it is added to that of a sample to itself.

Beyond some 87 a processor would take a hundred times as long for the exponential.
"""


def doublings(shape: Shape) -> int:
    """Returns how often 4 must be doubled to give the image size.

    Raises:
        ValueError: If the images are not square with 8, 16, 32, … pixels a side.
    """
    _, height, width = shape
    if height != width or height < 8 or not log2(height).is_integer():
        raise ValueError(
            f"this GAN draws square images of 8, 16, 32, … pixels a side, not {height}x{width}"
        )
    return int(log2(height)) - 2


class Generator(nn.Module):
    """Latents to images: a linear layer to 4x4, then transposed 5x5 convolutions.

    Args:
        z_dim: Size of the latent space.
        width: Channels of the largest hidden map; each smaller map has twice as many.
        shape: (c, h, w) of the images.
    """

    def __init__(self, z_dim: int, width: int, shape: Shape) -> None:
        super().__init__()
        steps = doublings(shape)
        self.top = width * 2 ** (steps - 1)
        self.project = nn.Sequential(
            nn.Linear(z_dim, self.top * 16, bias=False),
            nn.BatchNorm1d(self.top * 16),
            nn.ReLU(),
        )
        layers: list[nn.Module] = []
        channels = self.top
        for _ in range(steps - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 5, 2, 2, 1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        layers += [nn.ConvTranspose2d(channels, shape[0], 5, 2, 2, 1), nn.Sigmoid()]
        self.draw = nn.Sequential(*layers)

    def forward(self, z: Float[Tensor, "n z"]) -> Images:
        """Returns images in [0, 1]."""
        x: Images = self.draw[-1](self.maps(z))
        return x

    @mixed
    def maps(self, z: Float[Tensor, "n z"]) -> Float[Tensor, "n c h w"]:
        """Returns what the last sigmoid makes images of."""
        x: Tensor = self.project(z).view(len(z), self.top, 4, 4)
        for layer in list(self.draw)[:-1]:
            x = layer(x)
        return x


def _encoder(
    widths: list[int], kernels: list[int], channels: int, *, norm_first: bool
) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        layers.append(nn.Conv2d(channels, width, kernel, 2, kernel // 2))
        if i > 0 or norm_first:
            layers.append(nn.InstanceNorm2d(width, affine=True))
        layers.append(nn.LeakyReLU(0.2))
        channels = width
    return nn.Sequential(*layers)


class Critic(nn.Module):
    """GMI's Wasserstein critic: one real number per image.

    Args:
        width: Channels of the first map; each later map has twice as many.
        shape: (c, h, w) of the images.
    """

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        steps = doublings(shape)
        widths = [width * 2**i for i in range(steps)]
        self.encode = _encoder(widths, [5] * steps, shape[0], norm_first=False)
        self.judge = nn.Conv2d(widths[-1], 1, 4)

    def forward(self, x: Images) -> Float[Tensor, " n"]:
        """Returns the critic's score."""
        score: Tensor = self.judge(self.maps(x)).flatten()
        return score

    @mixed
    def maps(self, x: Images) -> Float[Tensor, "n d 4 4"]:
        """Returns the maps that are judged."""
        maps: Tensor = self.encode(x)
        return maps


class MinibatchDiscrimination(nn.Module):
    r"""How close each sample is to the others of its batch, Salimans et al., NeurIPS 2016.

    .. math:: o(x_i)_b = \sum_{j \ne i} \exp(-\|M_{i,b} - M_{j,b}\|_1), \quad M_i = f(x_i) T
    """

    def __init__(self, features: int, out: int, kernels: int) -> None:
        super().__init__()
        self.T = nn.Parameter(torch.randn(features, out * kernels))
        self.out = out

    def forward(
        self, f: Float[Tensor, "n d"], sizes: Sequence[int] | None = None
    ) -> Float[Tensor, "n o"]:
        """Returns the closeness in each of the ``out`` projections.

        Args:
            f: Features, batch after batch.
            sizes: Lengths of the batches; one by default.
        """
        M = self.project(f).view(len(f), self.out, -1).transpose(0, 1)
        near, start = [], 0
        for size, run in groupby(sizes or [len(f)]):  # those of one length at once
            end = start + size * len(list(run))
            m = M[:, start:end].view(self.out, -1, size, M.shape[2])
            far = torch.cdist(m, m, p=1).clamp(max=FAR)
            near.append((-far).exp().sum(3).flatten(1) - 1)
            start = end
        return torch.cat(near, 1).T

    @mixed
    def project(self, f: Float[Tensor, "n d"]) -> Float[Tensor, "n o"]:
        """Returns f T, the projections side by side."""
        return f @ self.T


class InversionDiscriminator(nn.Module):
    """KED-MI's discriminator: K class logits whose log-sum-exp says how real an image is.

    Args:
        width: Channels of the first map; they double up to four times as many.
        shape: (c, h, w) of the images.
        num_classes: K, the target's classes.
        mbd: Projections of the minibatch discrimination.
        mbd_kernels: Their dimension.
    """

    def __init__(
        self, width: int, shape: Shape, num_classes: int, mbd: int, mbd_kernels: int
    ) -> None:
        super().__init__()
        steps = doublings(shape)
        widths = [width * min(2**i, 4) for i in range(steps)]
        kernels = [5 if i < 3 else 3 for i in range(steps)]
        self.encode = _encoder(widths, kernels, shape[0], norm_first=True)
        features = widths[-1] * 16
        self.closeness = MinibatchDiscrimination(features, mbd, mbd_kernels)
        self.last = nn.Linear(features + mbd, num_classes)

    @mixed
    def features(self, x: Images) -> Float[Tensor, "n d"]:
        """Returns the features before minibatch discrimination."""
        f: Tensor = self.encode(x).flatten(1)
        return f

    def forward(
        self, x: Images, sizes: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "n d"], Logits]:
        """Returns the features and the logits.

        Args:
            x: Images, batch after batch.
            sizes: Lengths of the batches within which closeness counts; one by default.
        """
        f = self.features(x)
        logits: Logits = self.last(torch.cat([f, self.closeness(f, sizes)], dim=1))
        return f, logits
