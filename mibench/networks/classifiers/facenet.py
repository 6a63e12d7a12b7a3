"""IR and IR-SE: what judges reconstructed faces, and KED-MI's further targets.

Deng et al., CVPR 2019, https://arxiv.org/abs/1801.07698, with the parameter names of the files
that face.evoLVe and InsightFace_Pytorch released.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.networks.classifiers.face import Face, FaceSpec, Maps, Unit, resize, stages
from mibench.spec import require
from mibench.types import Images

CHANNELS = (64, 128, 256, 512)


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


class IR(nn.Module):
    """The backbone: four stages, each of which halves the image, and a linear embedding."""

    def __init__(self, spec: "FaceNet", *, squeeze: bool, dropout: float) -> None:
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
        zs = stages(self.body, self.input_layer(x), self.ends)
        return (*zs, self.output_layer(zs[-1]))


class FaceIR(Face):
    """The network of :class:`FaceNet`, :class:`FaceNet64` and :class:`IR152`."""

    channels_last = True

    def __init__(self, spec: "FaceNet", num_classes: int) -> None:
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

    channels_last = True

    def __init__(self, spec: "IRSE50", num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.size = spec.size
        self.backbone = IR(spec, squeeze=True, dropout=0.6)
        self.neck = Unit(1.0)
        self.last = Decoder(spec.scale(CHANNELS[-1]), num_classes)

    def prepare(self, x: Images) -> Maps:
        """Returns the images at the backbone's size, blue first, in [-1, 1]."""
        return 2 * resize(x, self.size).flip(1) - 1


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
    makes: ClassVar[type[Face]] = FaceIR

    size: int = 112
    blocks: tuple[int, int, int, int] = (3, 4, 14, 3)

    @property
    def has_skips(self) -> bool:
        """Whether the network is made of stages of residual blocks: it is."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, size=(16, 1024), blocks=(1, 100))
        if self.size % 16:
            raise ValueError(
                f"{type(self).__name__}.size must be divisible by 16, got {self.size}"
            )


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
    makes: ClassVar[type[Face]] = FaceIRSE
