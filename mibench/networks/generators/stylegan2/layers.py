"""What StyleGAN2's generator and discriminator share."""

from math import log2, sqrt
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.precision import BF16, current

Maps: TypeAlias = Float[Tensor, "n _c _h _w"]

TAPS = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter of every change of resolution."""


def binomial_filter() -> Float[Tensor, "4 4"]:
    """Returns the two-dimensional low-pass filter, its sum 1."""
    taps = torch.tensor(TAPS)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


class Filtered(nn.Module):
    """A module with the low-pass filter as a buffer."""

    resample_filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("resample_filter", binomial_filter())


def at_precision(x: Maps, *, fp16: bool) -> Maps:
    """Returns maps as the 16-bit numbers that networks compute with here, else as float32.

    They are bf16 in a run at that precision; else half precision on a GPU, if ``fp16``.
    """
    if current() == BF16:
        return x.to(torch.bfloat16)
    return x.to(torch.float16 if fp16 and x.is_cuda else torch.float32)


def smooth(
    x: Maps, kernel: Float[Tensor, "k k"], padding: int, down: int = 1, gain: float = 1.0
) -> Maps:
    """Filters every map with ``kernel``, zeros around it, and keeps each ``down``-th pixel."""
    each = (gain * kernel).to(x.dtype).expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(x, each, stride=down, padding=padding, groups=x.shape[1])


def upsample(x: Maps, kernel: Float[Tensor, "4 4"]) -> Maps:
    """Doubles the resolution: zeros between the pixels, then the filter, which keeps the mean."""
    each = (4 * kernel).to(x.dtype).expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, each, stride=2, padding=1, groups=x.shape[1])


def activate(x: Tensor, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """Returns the leaky ReLU of ``x`` times √2 and ``gain``, within ± ``gain`` times ``clamp``."""
    x = F.leaky_relu(x, 0.2) * (sqrt(2) * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


class Dense(nn.Module):
    r"""A linear layer with an equalised learning rate.

    Weights are drawn from N(0, 1 / lr_multiplier²) and used as
    :math:`w \cdot \mathrm{lr\_multiplier} / \sqrt{\mathrm{fan\_in}}`.

    Args:
        inputs: Features in.
        outputs: Features out.
        lr_multiplier: Slows learning down without changing what the layer starts from.
        bias: Where all biases start.
        nonlinear: Whether the leaky ReLU follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        lr_multiplier: float = 1.0,
        bias: float = 0.0,
        nonlinear: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.weight_gain = lr_multiplier / sqrt(inputs)
        self.bias_gain = lr_multiplier
        self.nonlinear = nonlinear

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """Returns the features."""
        y = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return activate(y) if self.nonlinear else y


def profile(resolution: int, channel_base: int, channel_max: int) -> dict[int, int]:
    """Returns the number of maps at every resolution from 4 up.

    Raises:
        ValueError: If the resolution is not 8, 16, 32, … or leaves no maps.
    """
    if resolution < 8 or not log2(resolution).is_integer():
        raise ValueError(
            f"StyleGAN2 draws square images of 8, 16, 32, … pixels a side, not {resolution}"
        )
    if channel_base < resolution:
        raise ValueError(f"channel_base must be at least the resolution, {resolution}")
    sides = [2**i for i in range(2, int(log2(resolution)) + 1)]
    return {side: min(channel_base // side, channel_max) for side in sides}


def first_half_precision(resolution: int, num_fp16_res: int) -> int:
    """Returns the lowest resolution that computes with 16 bits; never 4."""
    return max(2 * resolution >> num_fp16_res, 8)
