"""StyleGAN2's generator and discriminator, in plain PyTorch.

Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, CVPR 2020,
https://arxiv.org/abs/1912.04958, in the configuration of *Training Generative Adversarial
Networks with Limited Data*, NeurIPS 2020, https://arxiv.org/abs/2006.06676. Parameters and
buffers carry the names and shapes of the networks released with the latter, so that their
state dicts load. Images are in [-1, 1] here, not clamped.
"""

from collections.abc import Sequence
from math import log2, prod, sqrt
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Maps: TypeAlias = Float[Tensor, "n _c _h _w"]
Noise: TypeAlias = Literal["const", "random", "none"]

TAPS = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter of every change of resolution."""


def binomial_filter() -> Float[Tensor, "4 4"]:
    """Returns the two-dimensional low-pass filter, its sum 1."""
    taps = torch.tensor(TAPS)
    kernel = torch.outer(taps, taps)
    return kernel / kernel.sum()


def smooth(
    x: Maps, kernel: Float[Tensor, "k k"], padding: int, down: int = 1, gain: float = 1.0
) -> Maps:
    """Filters every map with ``kernel``, zeros around it, and keeps each ``down``-th pixel."""
    channels = x.shape[1]
    each = (gain * kernel).to(x.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(x, each, stride=down, padding=padding, groups=channels)


def upsample(x: Maps, kernel: Float[Tensor, "4 4"]) -> Maps:
    """Doubles the resolution: zeros between the pixels, then the filter, which keeps the mean."""
    channels = x.shape[1]
    each = (4 * kernel).to(x.dtype).expand(channels, 1, 4, 4)
    return F.conv_transpose2d(x, each, stride=2, padding=1, groups=channels)


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


def modulated_convolution(
    x: Maps,
    weight: Float[Tensor, "o c k k"],
    styles: Float[Tensor, "n c"],
    *,
    demodulate: bool = True,
    kernel: Float[Tensor, "4 4"] | None = None,
) -> Maps:
    r"""Convolves each sample with weights that its style scales, Section 2.2 of StyleGAN2.

    .. math::
        w'_{nocij} = s_{nc} w_{ocij}, \qquad
        w''_{nocij} = w'_{nocij} \Big/ \sqrt{\sum_{cij} w'^2_{nocij} + 10^{-8}}

    A convolution is linear, so scaling what goes in by s and what comes out by the root does
    the same with one set of weights for the whole batch.

    Args:
        x: Maps in, one side ``r``.
        weight: Shared weights; odd k.
        styles: One factor per sample and input map.
        demodulate: Whether to divide by the root.
        kernel: If given, doubles the resolution: a transposed convolution, which sees the
            weights mirrored, then this filter.

    Returns:
        Maps of side r, or 2r with ``kernel``.
    """
    half = x.dtype == torch.float16
    if half and demodulate:  # demodulation undoes both, and products stay in range
        weight = weight / (sqrt(prod(weight.shape[1:])) * weight.abs().amax((1, 2, 3), True))
        styles = styles / styles.abs().amax(1, True)
    y = x * styles.to(x.dtype)[:, :, None, None]
    w = weight.to(x.dtype)
    if kernel is None:
        y = F.conv2d(y, w, padding=weight.shape[2] // 2)
    else:
        y = F.conv_transpose2d(y, w.transpose(0, 1), stride=2)
        y = smooth(y, kernel, padding=1, gain=4)
    if not demodulate:
        return y
    power = styles.square() @ weight.square().sum((2, 3)).T
    return y * (power + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]


class SynthesisLayer(nn.Module):
    """A modulated 3x3 convolution, noise, a bias and a leaky ReLU.

    Args:
        inputs: Maps in.
        outputs: Maps out.
        w_dim: Size of w.
        resolution: Side of the maps that come out.
        up: Whether those that go in have half that side.
        clamp: Activations stay within ± this.
    """

    resample_filter: Tensor
    noise_const: Tensor

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, resolution: int, *, up: bool, clamp: float
    ) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", binomial_filter())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.resolution = resolution
        self.up = up
        self.clamp = clamp

    def forward(self, x: Maps, w: Float[Tensor, "n d"], noise: Tensor | None) -> Maps:
        """Returns maps; ``noise``, broadcast against them, is scaled by its learned strength."""
        kernel = self.resample_filter if self.up else None
        y = modulated_convolution(x, self.weight, self.affine(w), kernel=kernel)
        shift = self.bias[:, None, None]
        if noise is not None:
            shift = shift + noise * self.noise_strength
        return activate(y + shift.to(y.dtype), clamp=self.clamp)


class ToRGB(nn.Module):
    """A modulated 1x1 convolution to image channels, without demodulation."""

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain = 1 / sqrt(inputs)
        self.clamp = clamp

    def forward(self, x: Maps, w: Float[Tensor, "n d"]) -> Maps:
        """Returns this resolution's contribution to the image, as float32."""
        styles = self.affine(w) * self.weight_gain
        y = modulated_convolution(x, self.weight, styles, demodulate=False)
        return (y + self.bias.to(y.dtype)[:, None, None]).clamp(-self.clamp, self.clamp).float()


class SynthesisBlock(nn.Module):
    """One resolution of the skip generator; the first starts from a learned constant."""

    resample_filter: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        channels: int,
        clamp: float,
        *,
        fp16: bool,
    ) -> None:
        super().__init__()
        self.first = inputs == 0
        self.fp16 = fp16
        self.register_buffer("resample_filter", binomial_filter())
        if self.first:
            self.const = nn.Parameter(torch.randn(outputs, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(inputs, outputs, w_dim, resolution, up=True, clamp=clamp)
        self.conv1 = SynthesisLayer(outputs, outputs, w_dim, resolution, up=False, clamp=clamp)
        self.torgb = ToRGB(outputs, channels, w_dim, clamp)

    @property
    def layers(self) -> tuple[SynthesisLayer, ...]:
        """The convolutions, in order; each takes a w and noise."""
        return (self.conv1,) if self.first else (self.conv0, self.conv1)

    def forward(
        self,
        x: Maps | None,
        image: Maps | None,
        ws: Sequence[Tensor],
        noise: Sequence[Tensor | None],
    ) -> tuple[Maps, Maps]:
        """Returns the maps for the next block and the image so far.

        Args:
            x: The last block's maps.
            image: The last block's image.
            ws: One w (n, d) per convolution, then one for the image.
            noise: Noise per convolution.
        """
        if x is None:
            x = self.const.expand(len(ws[0]), -1, -1, -1)
        half = self.fp16 and x.is_cuda
        x = x.to(torch.float16 if half else torch.float32)
        for layer, w, shift in zip(self.layers, ws[:-1], noise, strict=True):
            x = layer(x, w, shift)
        mine: Tensor = self.torgb(x, ws[-1])
        return x, mine if image is None else upsample(image, self.resample_filter) + mine


class Mapping(nn.Module):
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
        self.num_layers = layers
        for i in range(layers):
            inputs = w_dim if i else z_dim
            self.add_module(f"fc{i}", Dense(inputs, w_dim, lr_multiplier=0.01, nonlinear=True))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Float[Tensor, "n z"], psi: float = 1.0) -> Float[Tensor, "n s d"]:
        """Returns (n, num_ws, w_dim) styles, ``psi`` of the way from the mean w to their own."""
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)
        if psi != 1:
            x = self.w_avg.lerp(x, psi)
        return x[:, None].expand(-1, self.num_ws, -1)

    @torch.no_grad()
    def track(self, ws: Float[Tensor, "n s d"], beta: float = 0.995) -> None:
        """Moves the mean w towards that of a batch of styles."""
        self.w_avg.lerp_(ws[:, 0].mean(0), 1 - beta)


class Synthesis(nn.Module):
    """Styles to images: one block per resolution, from 4x4 up."""

    def __init__(
        self,
        w_dim: int,
        resolution: int,
        channels: int,
        widths: dict[int, int],
        clamp: float,
        num_fp16_res: int,
    ) -> None:
        super().__init__()
        self.resolutions = list(widths)
        self.num_ws = 2 * len(widths)
        inputs = 0
        for side, width in widths.items():
            fp16 = side >= _first_half_precision(resolution, num_fp16_res)
            block = SynthesisBlock(inputs, width, w_dim, side, channels, clamp, fp16=fp16)
            self.add_module(f"b{side}", block)
            inputs = width

    def forward(
        self,
        ws: Float[Tensor, "n s d"],
        noise: Noise = "const",
        rng: torch.Generator | None = None,
    ) -> Maps:
        """Returns images on the scale [-1, 1], unclamped, differentiable in ``ws``.

        Args:
            ws: One w per style, (n, num_ws, w_dim).
            noise: "const" adds the same stored noise to every image, "random" draws it.
            rng: What draws it, on the CPU.
        """
        blocks = [self.get_submodule(f"b{side}") for side in self.resolutions]
        layers = [layer for b in blocks if isinstance(b, SynthesisBlock) for layer in b.layers]
        shifts: list[Tensor | None] = [None] * len(layers)
        if noise == "const":
            shifts = [layer.noise_const for layer in layers]
        elif noise == "random":
            if rng is None:
                raise ValueError("random noise needs a generator that draws it")
            sides = [layer.resolution for layer in layers]
            drawn = torch.randn(len(ws), sum(s * s for s in sides), generator=rng).to(ws.device)
            parts = torch.split(drawn, [s * s for s in sides], dim=1)
            shifts = [p.view(-1, 1, s, s) for p, s in zip(parts, sides, strict=True)]
        each = ws.unbind(1)
        x: Tensor | None = None
        image: Tensor | None = None
        at = 0
        for block in blocks:
            count = 1 if at == 0 else 2
            x, image = block(x, image, each[at : at + count + 1], shifts[at : at + count])
            at += count
        assert image is not None
        return image


class Generator(nn.Module):
    """StyleGAN2's generator: ``mapping``, then ``synthesis``.

    Args:
        z_dim: Size of z.
        w_dim: Size of w.
        resolution: Side of the images: 8, 16, 32, …
        channels: Of the images.
        mapping_layers: Dense layers from z to w.
        channel_base: Maps at resolution r: channel_base / r, …
        channel_max: … and at most so many.
        conv_clamp: Activations stay within ± this.
        num_fp16_res: So many of the highest resolutions compute with 16 bits on a GPU.

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


def _first_half_precision(resolution: int, num_fp16_res: int) -> int:
    """Returns the lowest resolution that computes with 16 bits; never 4."""
    return max(2 * resolution >> num_fp16_res, 8)


class Conv(nn.Module):
    r"""A convolution with an equalised learning rate, used as :math:`w / \sqrt{c k^2}`.

    Args:
        inputs: Maps in.
        outputs: Maps out.
        size: k, odd.
        down: Whether to halve the resolution, after the low-pass filter.
        clamp: Activations stay within ± this, times the gain of the call.
    """

    resample_filter: Tensor

    def __init__(
        self, inputs: int, outputs: int, size: int, clamp: float, *, down: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("resample_filter", binomial_filter())
        self.weight_gain = 1 / sqrt(inputs * size * size)
        self.down = down
        self.clamp = clamp

    def forward(self, x: Maps, gain: float = 1.0) -> Maps:
        """Returns activations, times ``gain``."""
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = self.bias.to(x.dtype)
        if self.down:
            x = smooth(x, self.resample_filter, padding=2)
            y = F.conv2d(x, w, b, stride=2)
        else:
            y = F.conv2d(x, w, b, padding=w.shape[2] // 2)
        return activate(y, gain, self.clamp)


class Skip(nn.Module):
    """The linear way round a block: halves the resolution, then a 1x1 convolution."""

    resample_filter: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.register_buffer("resample_filter", binomial_filter())
        self.weight_gain = 1 / sqrt(inputs)

    def forward(self, x: Maps, gain: float) -> Maps:
        """Returns maps of half the side, times ``gain``."""
        x = smooth(x, self.resample_filter, padding=1, down=2)
        return F.conv2d(x, (self.weight * (self.weight_gain * gain)).to(x.dtype))


class DiscriminatorBlock(nn.Module):
    """One resolution of the residual discriminator; the first reads the image."""

    resample_filter: Tensor

    def __init__(
        self, channels: int, inputs: int, outputs: int, clamp: float, *, fp16: bool
    ) -> None:
        super().__init__()
        self.register_buffer("resample_filter", binomial_filter())
        self.fp16 = fp16
        self.first = channels > 0
        if self.first:
            self.fromrgb = Conv(channels, inputs, 1, clamp)
        self.conv0 = Conv(inputs, inputs, 3, clamp)
        self.conv1 = Conv(inputs, outputs, 3, clamp, down=True)
        self.skip = Skip(inputs, outputs)

    def forward(self, x: Maps) -> Maps:
        """Returns maps of half the side; both ways count alike, so that the variance stays."""
        half = self.fp16 and x.is_cuda
        x = x.to(torch.float16 if half else torch.float32)
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


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator; an image's logit depends on its minibatch.

    Args:
        resolution: Side of the images: 8, 16, 32, …
        channels: Of the images.
        channel_base: Maps at resolution r: channel_base / r, …
        channel_max: … and at most so many.
        conv_clamp: Activations stay within ± this.
        num_fp16_res: So many of the highest resolutions compute with 16 bits on a GPU.
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
        self.resolutions = [side for side in reversed(widths) if side > 4]
        for side in self.resolutions:
            fp16 = side >= _first_half_precision(resolution, num_fp16_res)
            reads = channels if side == resolution else 0
            block = DiscriminatorBlock(
                reads, widths[side], widths[side // 2], conv_clamp, fp16=fp16
            )
            self.add_module(f"b{side}", block)
        self.b4 = Epilogue(widths[4], conv_clamp, mbstd_group)

    def forward(self, x: Maps) -> Float[Tensor, " n"]:
        """Returns a logit per image, higher for a more real one; ``x`` is on [-1, 1]."""
        for side in self.resolutions:
            x = self.get_submodule(f"b{side}")(x)
        logits: Tensor = self.b4(x)
        return logits
