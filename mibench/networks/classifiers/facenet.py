"""Face recognition networks: what judges reconstructed faces, and KED-MI's further targets.

IR and IR-SE: Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, with the parameter names
of the files that face.evoLVe and InsightFace_Pytorch released. MobileFaceNet: Chen et al.,
CCBR 2018, https://arxiv.org/abs/1804.07573.
"""

from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.networks.foreign.weights import Weights, load_exactly, read_weights
from mibench.roles import NetworkSpec
from mibench.spec import require
from mibench.types import Classifier, Images, Shape

CHANNELS = (64, 128, 256, 512)
Maps: TypeAlias = Float[Tensor, "n _ _ _"]


# What all of them share -----------------------------------------------------------------------


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

    def check(self, shape: Shape) -> None:
        """Raises ValueError unless images are grey or coloured."""
        if shape[0] not in (1, 3):
            raise ValueError(f"{self.name} takes images of 1 or 3 channels, not {shape[0]}")


class Unit(nn.Module):
    """Gives every row the length ``length``."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Returns the rows at their new length."""
        return self.length * F.normalize(z)


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


# IR and IR-SE ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaceNet(FaceSpec):
    """IR-50 at 112x112, the papers' evaluation classifier for CelebA: 512 features, M = 5.

    Images of any size are resized inside; the features are not normalised.

    Attributes:
        weights: The backbone's, in face.evoLVe's layout; without them it starts at random.
        width: Factor on the channels; 1 is that of the released files.
        size: Pixels a side that images are resized to; 16 divides it.
        blocks: Residual blocks of each stage.
    """

    name: ClassVar[str] = "facenet"

    size: int = 112
    blocks: tuple[int, int, int, int] = (3, 4, 14, 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, size=(16, 1024), blocks=(1, 100))
        if self.size % 16:
            raise ValueError(
                f"{type(self).__name__}.size must be divisible by 16, got {self.size}"
            )

    def build(self, shape: Shape, num_classes: int) -> Face:
        """Returns the network; raises ValueError unless images are grey or coloured."""
        self.check(shape)
        return FaceIR(self, num_classes)


@dataclass(frozen=True)
class FaceNet64(FaceNet):
    """IR-50 at 64x64, a further target of KED-MI: 512 features, M = 5."""

    name: ClassVar[str] = "facenet64"

    size: int = 64


@dataclass(frozen=True)
class IR152(FaceNet):
    """IR-152 at 64x64, a further target of KED-MI: 512 features, M = 5."""

    name: ClassVar[str] = "ir152"

    size: int = 64
    blocks: tuple[int, int, int, int] = (3, 8, 36, 3)


@dataclass(frozen=True)
class IRSE50(FaceNet):
    """IR-SE-50 at 112x112 and a decoder, VMI's evaluation classifier: 512 features, M = 5.

    The features are the embedding at length 1; the decoder is a perceptron of three layers.
    The backbone sees blue, green, red in [-1, 1].
    """

    name: ClassVar[str] = "irse50"

    def build(self, shape: Shape, num_classes: int) -> Face:
        """Returns the network; raises ValueError unless images are grey or coloured."""
        self.check(shape)
        return FaceIRSE(self, num_classes)


class Residual(nn.Module):
    """IR's block: normalisation, convolution, PReLU, strided convolution, normalisation."""

    def __init__(self, channels: int, width: int, stride: int, *, squeeze: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels != width:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        if squeeze:
            self.res_layer.append(Squeeze(width))

    def forward(self, x: Maps) -> Maps:
        """Returns the sum of both ways."""
        y: Maps = self.res_layer(x) + self.shortcut_layer(x)
        return y


class Squeeze(nn.Module):
    """Weighs each channel by what all channels' means say, Hu et al., CVPR 2018."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Maps) -> Maps:
        """Returns the weighted channels."""
        gates: Maps = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * gates


class IR(nn.Module):
    """The backbone: four stages, each of which halves the image, and a linear embedding."""

    def __init__(self, spec: FaceNet, *, squeeze: bool, dropout: float) -> None:
        super().__init__()
        channels = spec.scale(CHANNELS[0])
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
        )
        self.body = nn.Sequential()
        self.ends = set(accumulate(spec.blocks))
        for full, depth in zip(CHANNELS, spec.blocks, strict=True):
            width = spec.scale(full)
            for i in range(depth):
                self.body.append(Residual(channels, width, 1 if i else 2, squeeze=squeeze))
                channels = width
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(channels * (spec.size // 16) ** 2, channels),
            nn.BatchNorm1d(channels),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Maps) -> tuple[Tensor, ...]:
        """Returns the four stages and the embedding."""
        zs = []
        x = self.input_layer(x)
        for i, block in enumerate(self.body, start=1):
            x = block(x)
            if i in self.ends:
                zs.append(x)
        return (*zs, self.output_layer(x))


class FaceIR(Face):
    """The network of :class:`FaceNet`, :class:`FaceNet64` and :class:`IR152`."""

    def __init__(self, spec: FaceNet, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size = spec.size
        self.backbone = IR(spec, squeeze=False, dropout=0.5)
        self.neck = nn.Identity()
        self.last = nn.Linear(spec.scale(CHANNELS[-1]), num_classes)

    def prepare(self, x: Images) -> Maps:
        """Returns the images at the backbone's size, in [0, 1]."""
        return resize(x, self.size)


class Decoder(nn.Linear):
    """A linear layer behind two hidden ones of the same width, each normalised and rectified."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)]
        self.hidden = nn.Sequential(*layers, nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Maps the embedding to logits."""
        return super().forward(self.hidden(z))


class FaceIRSE(Face):
    """The network of :class:`IRSE50`."""

    def __init__(self, spec: IRSE50, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size = spec.size
        self.backbone = IR(spec, squeeze=True, dropout=0.6)
        self.neck = Unit(1.0)
        self.last = Decoder(spec.scale(CHANNELS[-1]), num_classes)

    def prepare(self, x: Images) -> Maps:
        """Returns the images at the backbone's size, blue first, in [-1, 1]."""
        return 2 * resize(x, self.size).flip(1) - 1


# MobileFaceNet --------------------------------------------------------------------------------

STAGES = (
    ((2, 64, 5, 2),),
    ((4, 128, 1, 2), (2, 128, 6, 1)),
    ((4, 128, 1, 2), (2, 128, 2, 1)),
)
"""(expansion, channels, repeats, first stride) of the bottlenecks, stage by stage."""

ALIGN = (1.5835, 0.03488, 4.29714, 1.34823)
"""(a, b, c, d) that take pixel (x, y) of CelebA's 64x64 crop to (ax + by + c, ay - bx + d) of the
112x112 frame that face embeddings are trained on; pixel centres are whole numbers."""


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

    warp: bool = True
    frozen: bool = True

    def build(self, shape: Shape, num_classes: int) -> Face:
        """Returns the network; raises ValueError unless images are grey or coloured."""
        self.check(shape)
        return FaceMobile(self, num_classes)


class FaceMobile(Face):
    """The network of :class:`MobileFaceNet`.

    The embedding enters the last layer at length sqrt(d): its coordinates then have mean
    square 1, for which linear layers and learning rates are made. At length 1 the logits of
    fresh weights differ too little for a softmax over many classes to learn from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: MobileFaceNet, num_classes: int) -> None:
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


def _convolution(channels: int, width: int, kernel: int, stride: int, groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


class Separable(nn.Module):
    """A depthwise and a pointwise 3x3 convolution, each normalised and rectified."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Maps) -> Maps:
        """Returns the map."""
        return F.relu(self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x))))))


class Inverted(nn.Module):
    """An inverted residual: expand, convolve each channel, contract linearly."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.adds = stride == 1 and channels == width
        hidden = channels * expansion
        self.conv = nn.Sequential(
            _convolution(channels, hidden, 1, 1, 1),
            _convolution(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Maps) -> Maps:
        """Returns the contraction, plus the input if it has the same shape."""
        y: Maps = self.conv(x)
        return x + y if self.adds else y


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
    """MobileFaceNet's backbone, 112x112 to 128 numbers."""

    def __init__(self, spec: MobileFaceNet) -> None:
        super().__init__()
        channels = spec.scale(64)
        self.conv1 = _convolution(3, channels, 3, 2, 1)
        self.dw_conv = Separable(channels)
        self.features = nn.Sequential()
        self.ends = set(accumulate(sum(row[2] for row in stage) for stage in STAGES))
        for expansion, full, repeats, stride in (row for stage in STAGES for row in stage):
            width = spec.scale(full)
            for i in range(repeats):
                self.features.append(Inverted(channels, width, 1 if i else stride, expansion))
                channels = width
        self.conv2 = _convolution(channels, spec.scale(512), 1, 1, 1)
        self.gdconv = Global(spec.scale(512))
        self.conv3 = nn.Conv2d(spec.scale(512), spec.scale(128), 1)
        self.bn = nn.BatchNorm2d(spec.scale(128))

    def forward(self, x: Maps) -> tuple[Tensor, ...]:
        """Returns the stem, the three stages and the embedding."""
        x = self.dw_conv(self.conv1(x))
        zs = [x]
        for i, block in enumerate(self.features, start=1):
            x = block(x)
            if i in self.ends:
                zs.append(x)
        return (*zs, self.bn(self.conv3(self.gdconv(self.conv2(x)))).flatten(1))
