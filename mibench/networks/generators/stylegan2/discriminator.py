"""StyleGAN2's residual discriminator."""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.convolution import conv2d
from mibench.networks.generators.stylegan2.layers import (
    Dense,
    Filtered,
    Maps,
    activate,
    at_precision,
    first_half_precision,
    profile,
    smooth,
)


class Conv(Filtered):
    r"""A convolution with an equalised learning rate, used as :math:`w / \sqrt{c k^2}`.

    Args:
        inputs: Maps in.
        outputs: Maps out.
        size: k, odd.
        down: Whether to halve the resolution, after the low-pass filter.
        clamp: Activations stay within ± this, times the gain of the call.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, clamp: float, *, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_gain = 1 / sqrt(inputs * size * size)
        self.down = down
        self.clamp = clamp

    def forward(self, x: Maps, gain: float = 1.0) -> Maps:
        """Returns activations, times ``gain``."""
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = self.bias.to(x.dtype)
        if self.down:
            x = smooth(x, self.resample_filter, padding=2)
            y = conv2d(x, w, b, stride=2)
        else:
            y = conv2d(x, w, b, padding=w.shape[2] // 2)
        return activate(y, gain, self.clamp)


class Skip(Filtered):
    """The linear way round a block: halves the resolution, then a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.weight_gain = 1 / sqrt(inputs)

    def forward(self, x: Maps, gain: float) -> Maps:
        """Returns maps of half the side, times ``gain``."""
        x = smooth(x, self.resample_filter, padding=1, down=2)
        return conv2d(x, (self.weight * (self.weight_gain * gain)).to(x.dtype))


class DiscriminatorBlock(Filtered):
    """One resolution of the residual discriminator; the first reads the image."""

    def __init__(
        self, channels: int, inputs: int, outputs: int, clamp: float, *, fp16: bool
    ) -> None:
        super().__init__()
        self.fp16 = fp16
        self.first = channels > 0
        if self.first:
            self.fromrgb = Conv(channels, inputs, 1, clamp)
        self.conv0 = Conv(inputs, inputs, 3, clamp)
        self.conv1 = Conv(inputs, outputs, 3, clamp, down=True)
        self.skip = Skip(inputs, outputs)

    def forward(self, x: Maps) -> Maps:
        """Returns maps of half the side; both ways count alike, so that the variance stays."""
        x = at_precision(x, fp16=self.fp16)
        if self.first:
            x = self.fromrgb(x)
        around: Tensor = self.skip(x, gain=sqrt(0.5))
        through: Tensor = self.conv1(self.conv0(x), gain=sqrt(0.5))
        return around + through


def minibatch_deviation(x: Maps, group: int) -> Maps:
    """Appends a map that says how much the images of a group differ.

    The standard deviation over the group (with 1e-8 under the root), averaged over maps and
    pixels. Image i is in group i modulo their number. Karras et al., ICLR 2018,
    https://arxiv.org/abs/1710.10196.

    Args:
        x: Maps.
        group: Images per group; where that does not divide the batch, the largest smaller
            number that does.
    """
    n, c, h, w = x.shape
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    groups = x.reshape(size, n // size, c, h, w)
    variance = (groups - groups.mean(0)).square().mean(0)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([x, deviation.repeat(size)[:, None, None, None].expand(-1, 1, h, w)], dim=1)


class Epilogue(nn.Module):
    """The discriminator's 4x4 end."""

    def __init__(self, width: int, clamp: float, group: int) -> None:
        super().__init__()
        self.group = group
        self.conv = Conv(width + 1, width, 3, clamp)
        self.fc = Dense(width * 16, width, nonlinear=True)
        self.out = Dense(width, 1)

    def forward(self, x: Maps) -> Float[Tensor, " n"]:
        """Returns the logits."""
        y: Tensor = self.conv(minibatch_deviation(x.float(), self.group))
        logits: Tensor = self.out(self.fc(y.flatten(1)))
        return logits[:, 0]


class Discriminator(nn.Sequential):
    """StyleGAN2's residual discriminator: images on [-1, 1] to logits (n,), higher for real ones.

    An image's logit depends on its minibatch.

    Args:
        resolution: Side of the images; this and the others are as the generator's.
        channels: Of the images.
        channel_base: Maps at resolution r: channel_base / r, at most channel_max.
        channel_max: Most maps.
        conv_clamp: Activations stay within ± this.
        num_fp16_res: How many of the highest resolutions compute with 16 bits on a GPU.
        mbstd_group: Images that the minibatch deviation looks across.

    Raises:
        ValueError: If the resolution is not one of these, or leaves no maps.
    """

    def __init__(
        self,
        resolution: int,
        channels: int,
        channel_base: int = 16384,
        channel_max: int = 512,
        conv_clamp: float = 256.0,
        num_fp16_res: int = 0,
        mbstd_group: int = 4,
    ) -> None:
        super().__init__()
        widths = profile(resolution, channel_base, channel_max)
        for side in list(widths)[:0:-1]:
            fp16 = side >= first_half_precision(resolution, num_fp16_res)
            reads = channels if side == resolution else 0
            block = DiscriminatorBlock(
                reads, widths[side], widths[side // 2], conv_clamp, fp16=fp16
            )
            self.add_module(f"b{side}", block)
        self.b4 = Epilogue(widths[4], conv_clamp, mbstd_group)
