"""MobileFaceNet, a small network that judges faces: Chen et al., CCBR 2018.

https://arxiv.org/abs/1804.07573
"""

from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.networks.classifiers.face import Face, FaceSpec, Maps, Unit, resize, stages
from mibench.types import Images

STAGES = (
    ((2, 64, 5, 2),),
    ((4, 128, 1, 2), (2, 128, 6, 1)),
    ((4, 128, 1, 2), (2, 128, 2, 1)),
)
"""(expansion, channels, repeats, first stride) of the bottlenecks, stage by stage."""

ALIGN = (1.5835, 0.03488, 4.29714, 1.34823)
"""(a, b, c, d) that take pixel (x, y) of CelebA's 64x64 crop to (ax + by + c, ay - bx + d) of the
112x112 frame that face embeddings are trained on; pixel centres are whole numbers."""


def align(x: Images) -> Maps:
    """Returns CelebA's crops in the 112x112 frame of face embeddings; the border is repeated.

    Each pixel is the bilinear mean of four, gathered: unlike grid sampling, this has a
    deterministic gradient on the GPU.
    """
    a, b, c, d = ALIGN
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=torch.float64)
    v, u = torch.meshgrid(*[torch.arange(112, dtype=torch.float64)] * 2, indexing="ij")
    u, v = u.flatten() - c, v.flatten() - d
    at = torch.stack([a * u - b * v, b * u + a * v], dim=1) / (a * a + b * b)
    at = (at + 0.5) * size / 64 - 0.5
    low = at.floor()
    share = at - low
    flat, out = x.flatten(2), x.new_zeros(*x.shape[:2], 112 * 112)
    for corner in torch.cartesian_prod(torch.arange(2), torch.arange(2)):
        weight = torch.where(corner == 1, share, 1 - share).prod(1)
        column, row = (low + corner).clamp(min=torch.zeros(2), max=size - 1).long().unbind(1)
        index = (row * x.shape[3] + column).to(x.device)
        out = out + weight.to(x) * flat[:, :, index]
    return out.view(*x.shape[:2], 112, 112)


class Separable(nn.Module):
    """A depthwise and a pointwise 3x3 convolution, each normalised and rectified."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Maps) -> Maps:
        """Returns the maps."""
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Global(nn.Module):
    """A depthwise convolution over the whole 7x7 map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Maps) -> Maps:
        """Returns one number per channel."""
        y: Maps = self.bn(self.depthwise(x))
        return y


class Mobile(nn.Module):
    """The backbone, 112x112 to 128 numbers."""

    def __init__(self, spec: "MobileFaceNet") -> None:
        from torchvision.models.mobilenetv2 import InvertedResidual
        from torchvision.ops import Conv2dNormActivation

        super().__init__()
        channels, wide, out = spec.scale(64), spec.scale(512), spec.scale(128)
        self.conv1 = Conv2dNormActivation(3, channels, 3, 2, activation_layer=nn.ReLU6)
        self.dw_conv = Separable(channels)
        self.features = nn.Sequential()
        self.ends = set(accumulate(sum(row[2] for row in stage) for stage in STAGES))
        for expansion, full, repeats, stride in (row for stage in STAGES for row in stage):
            width = spec.scale(full)
            for i in range(repeats):
                step = 1 if i else stride
                self.features.append(InvertedResidual(channels, width, step, expansion))
                channels = width
        self.conv2 = Conv2dNormActivation(channels, wide, 1, activation_layer=nn.ReLU6)
        self.gdconv = Global(wide)
        self.conv3 = nn.Conv2d(wide, out, 1)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Maps) -> tuple[Tensor, ...]:
        """Returns the stem, the three stages and the embedding."""
        stem = self.dw_conv(self.conv1(x))
        zs = stages(self.features, stem, self.ends)
        return (stem, *zs, self.bn(self.conv3(self.gdconv(self.conv2(zs[-1])))).flatten(1))


class FaceMobile(Face):
    """The network of :class:`MobileFaceNet`.

    The embedding enters the last layer at length sqrt(d): its coordinates then have mean
    square 1, for which linear layers and learning rates are made. At length 1 the logits of
    fresh weights differ too little for a softmax over many classes to learn from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: "MobileFaceNet", num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.warp = spec.warp
        self.frozen = spec.frozen
        self.backbone = Mobile(spec).requires_grad_(requires_grad=not spec.frozen)
        width = spec.scale(128)
        self.neck = Unit(sqrt(width))
        self.last = nn.Linear(width, num_classes)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        self.register_buffer("mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(3, 1, 1), persistent=False)

    def prepare(self, x: Images) -> Maps:
        """Returns the images in the 112x112 frame, standardised as ImageNet's."""
        x = align(x) if self.warp else resize(x, 112)
        return (x - self.mean) / self.std

    def train(self, mode: bool = True) -> "FaceMobile":
        """Sets the mode of all but a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


@dataclass(frozen=True)
class MobileFaceNet(FaceSpec):
    """A small evaluation classifier for faces: a 128-d embedding and one linear layer, M = 5.

    Z_1 is the stem, Z_2 to Z_4 are the stages at 28, 14 and 7 pixels a side, Z_5 is the
    embedding at length sqrt(128).

    Attributes:
        weights: The backbone's; without them it starts at random.
        width: Factor on the channels; 1 is that of the released file.
        warp: Whether images show CelebA's crop, at any size, and are taken to the frame that the
            backbone was trained on. If not, they are resized.
        frozen: Whether training leaves the backbone, its batch statistics included, as it is.
    """

    name: ClassVar[str] = "mobilefacenet"
    makes: ClassVar[type[Face]] = FaceMobile

    warp: bool = True
    frozen: bool = True
