"""Stub."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mibench.networks.stylegan2 import Discriminator, Generator
from mibench.types import Prior, PriorSpec


class StyleGANPrior(Prior):
    pooled = True

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.z_dim = generator.z_dim
        self.generator, self.discriminator = generator, discriminator

    def styles(self, z: Tensor) -> Tensor:
        return self.generator.mapping(z)

    def synthesise(self, ws: Tensor) -> Tensor:
        return self.generator.synthesis(ws) / 2 + 0.5

    def generate(self, z: Tensor) -> Tensor:
        return self.synthesise(self.styles(z)).clamp(0, 1)

    def realism(self, x: Tensor) -> Tensor:
        return self.discriminator(2 * x - 1).flatten()


@dataclass(frozen=True)
class StyleGAN2(PriorSpec):
    """Stub."""

    name: ClassVar[str] = "stylegan2-ada"
    sees_target: ClassVar[bool] = False
    z_dim: int = 512

    def build(self, shape, num_classes):
        return StyleGANPrior(
            Generator(self.z_dim, self.z_dim, shape[1], shape[0], channel_base=64, channel_max=16),
            Discriminator(shape[1], shape[0], channel_base=64, channel_max=16),
        )

    def train(self, *a):
        pass
