"""StyleGAN2's mapping network and the generator as a whole."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.networks.generators.stylegan2.layers import Dense, Maps, profile
from mibench.networks.generators.stylegan2.synthesis import Synthesis


class Mapping(nn.Sequential):
    """z to w: a few slow dense layers on z scaled to unit RMS.

    Args:
        z_dim: Size of z.
        w_dim: Size of w.
        num_ws: How often w is repeated, once for each style that the synthesis takes.
        layers: Dense layers.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, num_ws: int, layers: int) -> None:
        super().__init__()
        self.num_ws = num_ws
        for i in range(layers):
            inputs = w_dim if i else z_dim
            self.add_module(f"fc{i}", Dense(inputs, w_dim, lr_multiplier=0.01, nonlinear=True))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Float[Tensor, "n z"], psi: float = 1.0, cutoff: int = 0
    ) -> Float[Tensor, "n s d"]:
        """Returns (n, num_ws, w_dim) styles, ``psi`` of the way from the mean w to their own.

        Args:
            z: Latents.
            psi: How far of the way.
            cutoff: Only so many styles, from the coarsest on, are drawn to the mean; 0 for all.
        """
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self:
            x = layer(x)
        own = x[:, None].expand(-1, self.num_ws, -1)
        if psi != 1:
            x = self.w_avg.lerp(x, psi)
        drawn = x[:, None].expand(-1, self.num_ws, -1)
        return torch.cat([drawn[:, :cutoff], own[:, cutoff:]], 1) if cutoff else drawn

    @torch.no_grad()
    def track(self, ws: Float[Tensor, "n s d"], beta: float = 0.995) -> None:
        """Moves the mean w towards that of a batch of styles."""
        self.w_avg.lerp_(ws[:, 0].mean(0), 1 - beta)


class Generator(nn.Module):
    """StyleGAN2's generator: ``mapping``, then ``synthesis``.

    Args:
        z_dim: Size of z.
        w_dim: Size of w.
        resolution: Side of the images: 8, 16, 32, …
        channels: Of the images.
        mapping_layers: Dense layers from z to w.
        channel_base: Maps at resolution r: channel_base / r, at most channel_max.
        channel_max: Most maps.
        conv_clamp: Activations stay within ± this.
        num_fp16_res: How many of the highest resolutions compute with 16 bits on a GPU.

    Raises:
        ValueError: If the resolution is not one of these, or leaves no maps.
    """

    def __init__(
        self,
        z_dim: int,
        w_dim: int,
        resolution: int,
        channels: int,
        mapping_layers: int = 2,
        channel_base: int = 16384,
        channel_max: int = 512,
        conv_clamp: float = 256.0,
        num_fp16_res: int = 0,
    ) -> None:
        super().__init__()
        widths = profile(resolution, channel_base, channel_max)
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.synthesis = Synthesis(w_dim, resolution, channels, widths, conv_clamp, num_fp16_res)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(z_dim, w_dim, self.num_ws, mapping_layers)

    def forward(self, z: Float[Tensor, "n z"], psi: float = 1.0) -> Maps:
        """Returns images on the scale [-1, 1] with constant noise."""
        image: Tensor = self.synthesis(self.mapping(z, psi))
        return image
