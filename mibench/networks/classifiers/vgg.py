"""VGG with batch normalisation, Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556.

As the targets of Peng et al. use it: the five convolutional stages, one batch normalisation
of what they yield, one linear layer. Pixels go in as they are, in [0, 1], although the
ImageNet weights were trained on standardised ones.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from mibench.networks.foreign.weights import imagenet, load_exactly
from mibench.roles import NetworkSpec
from mibench.spec import require
from mibench.types import Classifier, Images, Shape

CHANNELS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class VGG16(NetworkSpec):
    """The CelebA and CIFAR-10 target of Peng et al.: configuration D, M = 5.

    Z_1 to Z_4 are the first four stages after their pooling, Z_5 is the neck's output: 65536,
    32768, 16384, 8192 and 2048 numbers for images of 64x64.

    Attributes:
        pretrained: Whether the convolutions start from torchvision's ImageNet weights.
        width: Factor on all channels; 1 is the paper's.
    """

    name: ClassVar[str] = "vgg16"
    depths: ClassVar[tuple[int, ...]] = (2, 2, 3, 3, 3)
    official: ClassVar[Literal["vgg16_bn", "vgg19_bn"]] = "vgg16_bn"

    pretrained: bool = True
    width: float = 1.0

    def __post_init__(self) -> None:
        require(self, width=(1e-3, 16))
        if self.pretrained and self.width != 1:
            raise ValueError(
                f"{type(self).__name__}: the ImageNet weights are of width 1, not {self.width:g}; "
                "set pretrained=false"
            )

    @property
    def starts_trained(self) -> bool:
        """Whether the convolutions are ImageNet's."""
        return self.pretrained

    def build(self, shape: Shape, num_classes: int) -> "VGG":
        """Returns the network; raises ValueError unless 32 divides the image's sides."""
        return VGG(self, shape, num_classes)

    def fetch(self, root: Path) -> None:
        """Reads the ImageNet weights once, downloading them if need be."""
        if self.pretrained:
            imagenet(self.official, root)

    def initialise(self, network: Classifier, root: Path) -> None:
        """Loads the ImageNet weights into the convolutions if ``pretrained``."""
        assert isinstance(network, VGG), "a VGG initialises what it built"
        if self.pretrained:
            state = imagenet(self.official, root)
            state = {
                k.removeprefix("features."): v
                for k, v in state.items()
                if k.startswith("features.")
            }
            load_exactly(network.features, state, f"the ImageNet weights of {self.official}")


@dataclass(frozen=True)
class VGG19(VGG16):
    """The CIFAR-10 evaluation classifier of Peng et al.: configuration E, M = 5."""

    name: ClassVar[str] = "vgg19"
    depths: ClassVar[tuple[int, ...]] = (2, 2, 4, 4, 4)
    official: ClassVar[Literal["vgg16_bn", "vgg19_bn"]] = "vgg19_bn"


class VGG(Classifier):
    """The network of :class:`VGG16` and :class:`VGG19`.

    ``features`` has torchvision's layers under torchvision's names. The neck's bias stays 0.
    """

    channels_last = True

    def __init__(self, spec: VGG16, shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        if height % 32 or width % 32:
            raise ValueError(
                f"{spec.name} halves images five times: 32 must divide their sides, "
                f"not {height}x{width}"
            )
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        for depth, full in zip(spec.depths, CHANNELS, strict=True):
            wide = max(1, round(full * spec.width))
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, wide, 3, padding=1),
                    nn.BatchNorm2d(wide),
                    nn.ReLU(),
                ]
                channels = wide
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        width_of_neck = channels * (height // 32) * (width // 32)
        self.neck = nn.BatchNorm1d(width_of_neck)
        self.neck.bias.requires_grad = False
        self.last = nn.Linear(width_of_neck, num_classes)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns the first four stages and the neck's output."""
        zs = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                zs.append(x)
        return (*zs[:-1], self.neck(zs[-1].flatten(1)))
