"""Small convolutional classifiers for digits, and a perceptron."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar

from torch import Tensor, nn

from mibench.roles import NetworkSpec
from mibench.spec import require
from mibench.types import Classifier, Images, Shape


@dataclass(frozen=True)
class MCNN(NetworkSpec):
    """The MNIST target of Peng et al. (their "LeNet"): convolutions, then one linear layer.

    Each block is convolution, batch normalisation, LeakyReLU(0.2); the first two end in a
    2x2 max pooling. Z_j is the output of block j. The defaults are the paper's for 32x32
    images: 64x14x14, 128x5x5, 256x1x1, so M = 3.

    Attributes:
        widths: Channels of each block.
        kernels: Kernel size of each block, in pixels.
        paddings: Zero padding of each block, in pixels.
    """

    name: ClassVar[str] = "mcnn"

    widths: tuple[int, ...] = (64, 128, 256)
    kernels: tuple[int, ...] = (7, 5, 5)
    paddings: tuple[int, ...] = (1, 0, 0)

    def __post_init__(self) -> None:
        require(self, widths=(1, 4096), kernels=(1, 64), paddings=(0, 64))
        if not len(self.widths) == len(self.kernels) == len(self.paddings) > 0:
            raise ValueError(f"{type(self).__name__} needs as many widths as kernels and paddings")

    def build(self, shape: Shape, num_classes: int) -> "ConvNet":
        """Returns the network; raises ValueError if the image is too small for it."""
        return ConvNet(self, shape, num_classes)


@dataclass(frozen=True)
class SCNN(MCNN):
    """The MNIST evaluation classifier of Peng et al.: five blocks, 512 features."""

    name: ClassVar[str] = "scnn"

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    kernels: tuple[int, ...] = (7, 5, 5, 3, 3)
    paddings: tuple[int, ...] = (1, 0, 0, 1, 1)


class ConvNet(Classifier):
    """The network of :class:`MCNN` and :class:`SCNN`."""

    channels_last = True

    def __init__(self, spec: MCNN, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.blocks = nn.ModuleList()
        channels, *size = shape
        for i, (width, kernel, pad) in enumerate(
            zip(spec.widths, spec.kernels, spec.paddings, strict=True)
        ):
            layers: list[nn.Module] = [
                nn.Conv2d(channels, width, kernel, padding=pad),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
            size = [s + 2 * pad - kernel + 1 for s in size]
            if i < 2:
                layers.append(nn.MaxPool2d(2))
                size = [s // 2 for s in size]
            if min(size) < 1:
                raise ValueError(
                    f"{spec.name} with kernels {spec.kernels} does not fit images of "
                    f"{shape[1]}x{shape[2]} pixels"
                )
            self.blocks.append(nn.Sequential(*layers))
            channels = width
        self.neck = nn.Identity()
        self.last = nn.Linear(channels * prod(size), num_classes)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns the output of every block, the last one flat."""
        zs = []
        for block in self.blocks:
            x = block(x)
            zs.append(x)
        return (*zs[:-1], self.neck(zs[-1].flatten(1)))


@dataclass(frozen=True)
class MLP(NetworkSpec):
    """Hidden layers of equal width with ReLU, for tests; Z_j is hidden layer j.

    Attributes:
        width: Units of each hidden layer.
        depth: Hidden layers.
    """

    name: ClassVar[str] = "mlp"

    width: int = 64
    depth: int = 2

    def __post_init__(self) -> None:
        require(self, width=(1, 65_536), depth=(1, 64))

    def build(self, shape: Shape, num_classes: int) -> "Perceptron":
        """Returns the network."""
        return Perceptron(self, shape, num_classes)


class Perceptron(Classifier):
    """The network of :class:`MLP`."""

    def __init__(self, spec: MLP, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [prod(shape), *[spec.width] * spec.depth]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)
        )
        self.neck = nn.Identity()
        self.last = nn.Linear(spec.width, num_classes)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns every hidden layer, each (n, width)."""
        z = x.flatten(1)
        zs = []
        for layer in self.layers:
            z = layer(z)
            zs.append(z)
        return (*zs[:-1], self.neck(zs[-1]))
