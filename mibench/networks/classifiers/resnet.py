"""The ResNet-34 that VMI attacks, Wang et al., NeurIPS 2021, https://arxiv.org/abs/2201.10787."""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.roles import NetworkSpec
from mibench.spec import require
from mibench.types import Classifier, Images, Shape

CHANNELS = (64, 128, 256, 512)
BLOCKS = (3, 4, 6, 3)
Maps: TypeAlias = Float[Tensor, "n _ _ _"]


@dataclass(frozen=True)
class ResNet34(NetworkSpec):
    """VMI's target: a ResNet-34 with a hidden layer before the last, M = 7.

    Z_1 is the stem, Z_2 to Z_5 are the stages, Z_6 is the hidden layer before its ReLU, Z_7
    is the output of the neck, which rectifies and normalises it.

    Attributes:
        latent_dim: Units of the hidden layer.
        width: Factor on the channels; 1 is the paper's.
    """

    name: ClassVar[str] = "resnet34"
    version: ClassVar[int] = 3

    latent_dim: int = 50
    width: float = 1.0

    def __post_init__(self) -> None:
        require(self, latent_dim=(1, 65_536), width=(1e-3, 16))

    @property
    def has_skips(self) -> bool:
        """Whether the network is made of stages of residual blocks: it is."""
        return True

    def build(self, shape: Shape, num_classes: int) -> "ResNet":
        """Returns the network, for images of any size."""
        return ResNet(self, shape, num_classes)


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution if channels change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Maps) -> Maps:
        """Returns the rectified sum."""
        return F.relu(self.residual(x) + self.shortcut(x))


class RectifiedNorm(nn.BatchNorm1d):
    """Batch normalisation of what a ReLU lets through."""

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Returns the normalised, of any sign."""
        return super().forward(F.relu(x))


class ResNet(Classifier):
    """The network of :class:`ResNet34`.

    The last map is averaged over its pixels, which at 64x64 is a pooling of 2x2. Without the
    neck, Z_M is the hidden layer before its ReLU: what the released MID puts its bottleneck on.
    """

    channels_last = True

    def __init__(self, spec: ResNet34, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [max(1, round(spec.width * c)) for c in CHANNELS]
        channels = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(shape[0], channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, BLOCKS, strict=True)):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(Block(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width
            self.stages.append(stage)
        self.hidden = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, spec.latent_dim))
        self.neck = RectifiedNorm(spec.latent_dim)
        self.last = nn.Linear(spec.latent_dim, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = layer.out_channels * layer.kernel_size[0] ** 2
                nn.init.normal_(layer.weight, std=sqrt(2 / fan_out))

    def own_input(self, x: Images) -> Tensor:
        """Returns the images in [-1, 1]."""
        return 2 * x - 1

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns stem, stages, hidden layer and neck, of images in [0, 1]."""
        zs = [self.stem(self.own_input(x))]
        for stage in self.stages:
            zs.append(stage(zs[-1]))
        hidden = self.hidden(F.relu(zs[-1].mean((2, 3))))
        return (*zs, hidden, self.neck(hidden))
