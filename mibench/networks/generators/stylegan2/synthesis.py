"""StyleGAN2's synthesis network: styles to images, Sections 2 to 4 of the paper."""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.convolution import conv2d, conv_transpose2d
from mibench.networks.generators.stylegan2.layers import (
    Dense,
    Filtered,
    Maps,
    activate,
    at_precision,
    first_half_precision,
    smooth,
    upsample,
)

Noise: TypeAlias = Literal["const", "random", "none"]


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
        y = conv2d(y, w, padding=weight.shape[2] // 2)
    else:
        y = conv_transpose2d(y, w.transpose(0, 1), stride=2)
        y = smooth(y, kernel, padding=1, gain=4)
    if not demodulate:
        return y
    power = styles.square() @ weight.square().sum((2, 3)).T
    return y * (power + 1e-8).rsqrt().to(x.dtype)[:, :, None, None]


class SynthesisLayer(Filtered):
    """A modulated 3x3 convolution, noise, a bias and a leaky ReLU.

    Args:
        inputs: Maps in.
        outputs: Maps out.
        w_dim: Size of w.
        resolution: Side of the maps that come out.
        up: Whether those that go in have half that side.
        clamp: Activations stay within ± this.
    """

    noise_const: Tensor

    def __init__(
        self, inputs: int, outputs: int, w_dim: int, resolution: int, *, up: bool, clamp: float
    ) -> None:
        super().__init__()
        self.affine = Dense(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
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


class SynthesisBlock(Filtered):
    """One resolution of the skip generator; the first starts from a learned constant."""

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
        x = at_precision(x, fp16=self.fp16)
        for layer, w, shift in zip(self.layers, ws[:-1], noise, strict=True):
            x = layer(x, w, shift)
        mine: Tensor = self.torgb(x, ws[-1])
        return x, mine if image is None else upsample(image, self.resample_filter) + mine


class Synthesis(nn.ModuleDict):
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
        self.num_ws = 2 * len(widths)
        inputs = 0
        for side, width in widths.items():
            fp16 = side >= first_half_precision(resolution, num_fp16_res)
            self[f"b{side}"] = SynthesisBlock(
                inputs, width, w_dim, side, channels, clamp, fp16=fp16
            )
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
        image = self.run(ws, noise, rng)[1]
        assert image is not None
        return image

    def run(
        self,
        ws: Float[Tensor, "n s d"],
        noise: Noise = "const",
        rng: torch.Generator | None = None,
        blocks: slice = slice(None),
        x: Maps | None = None,
        image: Maps | None = None,
    ) -> tuple[Maps | None, Maps | None]:
        """Returns the maps and the image after some of the blocks.

        Args:
            ws: As above.
            noise: As above.
            rng: As above.
            blocks: Which, one after the other.
            x: The maps before the first of them.
            image: The image before the first of them; without one, what blocks before it would
                add to the image is left out.
        """
        every: list[Any] = list(self.values())
        layers = [layer for block in every for layer in block.layers]
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
        chosen = range(len(every))[blocks]
        at = 0
        for i, block in enumerate(every):
            end = at + len(block.layers)
            if i in chosen:
                x, image = block(x, image, each[at : end + 1], shifts[at:end])
            at = end
        return x, image
