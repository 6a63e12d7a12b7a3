"""The augmentations of StyleGAN2-ADA that its discriminator sees images through.

Karras et al., *Training Generative Adversarial Networks with Limited Data*, NeurIPS 2020,
https://arxiv.org/abs/2006.06676, Appendix B: pixel blitting, general geometric and colour
transformations ("bgc"), each applied to each image with probability p. All geometric ones are
one warp, at twice the resolution, between two low-pass filters; all colour ones one affine map.
Everything is differentiable, twice with respect to the images, as the R1 penalty needs.

Images are on the scale [-1, 1]; randomness is drawn on the CPU.
"""

from functools import cache
from math import pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
    -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""Daubechies' least asymmetric wavelet of six vanishing moments, its low-pass filter.

Orthogonal to its own shifts by two, so that going up and down again changes nothing. It is
nearly symmetric about tap 5, not about its middle.
"""
CENTRE = 5


def augment(
    x: Float[Tensor, "n c s s"], p: float, rng: torch.Generator
) -> Float[Tensor, "n c s s"]:
    """Returns the images, each transformed in its own way.

    Args:
        x: Images of one or three channels, at least 4 pixels a side, on [-1, 1].
        p: Probability of each transformation, 0 to 1; at 0 nothing is drawn or changed.
        rng: Draws on the CPU.
    """
    if p == 0:
        return x
    maps = geometry(len(x), p, x.shape[2], rng).to(x.device)
    return recolour(warp(x, maps), colour(len(x), p, rng).to(x.device))


# Geometry ---------------------------------------------------------------------------------


def geometry(n: int, p: float, side: int, rng: torch.Generator) -> Float[Tensor, "n 2 3"]:
    """Draws affine maps from where a pixel goes to where it comes from, in half sides.

    Flips and quarter turns, whole-pixel shifts up to an eighth of the side, scaling by
    2^N(0, 0.2²), rotation before and after stretching by 2^N(0, 0.2²), shifts by N(0, 0.125²)
    sides. Each one and its inverse are equally likely, so inverses are drawn, the last first.

    Args:
        n: Images.
        p: Probability of each; a rotation before or after happens with probability p.
        side: Of the images, in pixels.
        rng: Draws on the CPU.
    """
    p_turn = 1 - sqrt(1 - p)

    def gate(q: float) -> Tensor:
        return (torch.rand(n, generator=rng) < q).float()

    def uniform() -> Tensor:
        return torch.rand(n, generator=rng) * 2 - 1

    def normal(deviation: float) -> Tensor:
        return torch.randn(n, generator=rng) * deviation

    mirrored = gate(p) * (torch.rand(n, generator=rng) < 0.5)
    matrix = _linear(1 - 2 * mirrored, torch.ones(n))
    quarter = (torch.rand(n, generator=rng) * 4).floor()
    matrix = matrix @ _rotation(gate(p) * quarter * (pi / 2))
    whole = [(uniform() * 0.125 * side).round() * (2 / side) for _ in range(2)]
    matrix = matrix @ _shift(whole, gate(p))
    scale = 2 ** (normal(0.2) * gate(p))
    matrix = matrix @ _linear(scale, scale)
    matrix = matrix @ _rotation(gate(p_turn) * uniform() * pi)
    stretch = 2 ** (normal(0.2) * gate(p))
    matrix = matrix @ _linear(stretch, 1 / stretch)
    matrix = matrix @ _rotation(gate(p_turn) * uniform() * pi)
    return (matrix @ _shift([normal(0.125) * 2 for _ in range(2)], gate(p)))[:, :2]


def _linear(x: Tensor, y: Tensor) -> Float[Tensor, "n 3 3"]:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], dim=1))


def _rotation(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    matrix = torch.eye(3).repeat(len(angle), 1, 1)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 1, 0] = angle.sin()
    matrix[:, 0, 1] = -angle.sin()
    return matrix


def _shift(by: list[Tensor], on: Tensor) -> Float[Tensor, "n 3 3"]:
    matrix = torch.eye(3).repeat(len(on), 1, 1)
    matrix[:, :2, 2] = torch.stack(by, dim=1) * on[:, None]
    return matrix


def warp(x: Float[Tensor, "n c s s"], maps: Float[Tensor, "n 2 3"]) -> Float[Tensor, "n c s s"]:
    """Returns what each image looks like after its affine map; the world is its mirror images.

    Args:
        x: Images, at least 4 pixels a side.
        maps: From where a pixel goes to where it comes from; x, then y, in half sides from
            the centre.
    """
    side = x.shape[2]
    up, down = _resampling(side, x.device)
    along = (torch.arange(-CENTRE, down.shape[1] - CENTRE, device=x.device) + 1) / side - 1
    here = torch.cartesian_prod(along, along).flip(1)
    grid = torch.baddbmm(maps[:, None, :, 2], here.expand(len(x), -1, -1), maps[:, :, :2].mT)
    fine = up @ x @ up.T
    moved = sample(fine, grid.view(len(x), len(along), -1, 2))
    return down @ moved @ down.T


@cache
def _resampling(
    side: int, device: torch.device
) -> tuple[Float[Tensor, "fine s"], Float[Tensor, "s reach"]]:
    """Returns matrices that double the resolution of mirrored pixels, and that halve it.

    Pixel i lies at 2i of the fine ones, which begin and end on the image's edges, -1 and
    2 side - 1; halving reads 5 before the first pixel and 6 after the last.
    """
    up = torch.zeros(2 * side + 1, side)
    down = torch.zeros(side, 2 * side + 10)
    for i in range(-3, side + 3):
        mirrored = min(max(i, -1 - i), 2 * side - 1 - i)
        for k, tap in enumerate(SYM6):
            j = 2 * i + k - CENTRE
            if -1 <= j < 2 * side:
                up[j + 1, mirrored] += tap
            if 0 <= i < side:
                down[i, j + CENTRE] = tap
    return up.to(device), down.to(device)


def sample(
    x: Float[Tensor, "n c h w"], grid: Float[Tensor, "n i j 2"]
) -> Float[Tensor, "n c i j"]:
    """Samples bilinearly, mirroring beyond the outermost pixels' centres.

    As ``grid_sample`` with reflection and aligned corners does, which has no second derivative
    and no deterministic first one on a GPU.

    Args:
        x: Images.
        grid: Where, (column, row) in [-1, 1] from the first pixel's centre to the last's.
    """
    h, w = x.shape[2:]
    sides = grid.new_tensor([w - 1, h - 1])
    at = ((grid + 1) / 2 * sides).remainder(2 * sides)
    at = torch.where(at > sides, 2 * sides - at, at)
    low = at.floor().minimum(sides - 1).clamp(min=0)
    share = (at - low).unbind(3)
    column, row = low.long().unbind(3)
    flat = x.flatten(2)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        index = ((row + down) * w + column + right).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        weight = (share[0] if right else 1 - share[0]) * (share[1] if down else 1 - share[1])
        total = total + flat.gather(2, index) * weight.flatten(1)[:, None]
    return total.view(len(x), x.shape[1], *grid.shape[1:3])


# Colour -----------------------------------------------------------------------------------


def colour(n: int, p: float, rng: torch.Generator) -> Float[Tensor, "n 3 4"]:
    """Draws affine maps of (red, green, blue).

    Brightness + N(0, 0.2²), contrast times 2^N(0, 0.5²), luma flipped for one in two, hue
    turned by any angle, saturation times 2^N(0, 1).

    Args:
        n: Images.
        p: Probability of each.
        rng: Draws on the CPU.
    """

    def gate() -> Tensor:
        return (torch.rand(n, generator=rng) < p).float()

    grey = torch.full((3, 3), 1 / 3)  # projects on the luma axis
    coloured = torch.eye(3) - grey
    turn = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / sqrt(3)

    def mix(*parts: tuple[Tensor, Tensor]) -> Tensor:
        """Returns Σ factor · matrix, (n, 3, 3)."""
        return sum((f[:, None, None] * m for f, m in parts), torch.zeros(n, 3, 3))

    brightness = torch.randn(n, generator=rng) * 0.2 * gate()
    contrast = 2 ** (torch.randn(n, generator=rng) * 0.5 * gate())
    flipped = (torch.rand(n, generator=rng) < 0.5) * gate()
    angle = (torch.rand(n, generator=rng) * 2 - 1) * pi * gate()
    saturation = 2 ** (torch.randn(n, generator=rng) * gate())
    matrix = mix((contrast * (1 - 2 * flipped), grey), (contrast, coloured))
    rotation = mix((torch.ones(n), grey), (angle.cos(), coloured), (angle.sin(), turn))
    matrix = mix((torch.ones(n), grey), (saturation, coloured)) @ rotation @ matrix
    offset = matrix @ brightness[:, None, None].expand(-1, 3, 1)
    return torch.cat([matrix, offset], dim=2)


def recolour(
    x: Float[Tensor, "n c h w"], maps: Float[Tensor, "n 3 4"]
) -> Float[Tensor, "n c h w"]:
    """Applies each image's colour map; a grey image is one of three equal channels.

    Of a grey image hue and saturation change nothing, and flipping the luma inverts it.
    """
    if x.shape[1] == 1:
        maps = torch.cat([maps[:, :, :3].sum(2, keepdim=True), maps[:, :, 3:]], dim=2)
        maps = maps.mean(1, keepdim=True)
    pixels = torch.baddbmm(maps[:, :, -1:], maps[:, :, :-1], x.flatten(2))
    return pixels.view_as(x)
