"""StyleGAN2-ADA: networks against plain peers, augmentations by their statistics, training."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log2, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.attacks import StyleGAN2
from mibench.attacks.priors import stylegan
from mibench.attacks.priors.stylegan import GRIDS, StyleGANPrior, _Run, r1_penalty
from mibench.data.synthetic import Blobs
from mibench.networks.generators.ada import SYM6, augment, colour, geometry, recolour, sample, warp
from mibench.networks.generators.stylegan2 import Discriminator, Generator
from mibench.networks.generators.stylegan2.discriminator import Conv, minibatch_deviation
from mibench.networks.generators.stylegan2.layers import (
    Dense,
    activate,
    binomial_filter,
    profile,
    smooth,
    upsample,
)
from mibench.networks.generators.stylegan2.synthesis import modulated_convolution
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.running.stages import ImagesStage, PriorStage
from mibench.seeding import generator, seeded
from mibench.store import Store, Work, frozen, pack, unpack
from mibench.types import ImageSet

REFERENCE = os.environ.get("MIBENCH_STYLEGAN_REFERENCE", "")
SPEC = StyleGAN2(
    z_dim=6, w_dim=5, channel_base=64, channel_max=8, batch_size=4, kimg=0.036, lr=1e-2,
    r1_every=3, path_every=2, ada_every=2, ada_kimg=0.05,
)  # fmt: skip


def networks(resolution: int = 16, channels: int = 3) -> tuple[Generator, Discriminator]:
    """Small networks, with noise and biases that matter."""
    with seeded("networks"):
        G = Generator(6, 5, resolution, channels, 2, 64, 8)
        D = Discriminator(resolution, channels, 64, 8)
        for network in (G, D):
            for name, p in network.named_parameters():
                if name.endswith(("bias", "noise_strength")):
                    torch.nn.init.normal_(p)
    return G, D


def images(n: int, channels: int, side: int, rng: torch.Generator) -> Tensor:
    return torch.rand(n, channels, side, side, generator=rng) * 2 - 1


# Plain peers: one sample at a time, zeros written out, one line per fact ------------------

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8


def plain_smooth(x: Tensor, before: int, after: int, gain: float = 1.0) -> Tensor:
    x = F.pad(x, (before, after, before, after))
    h, w = x.shape[1] - 3, x.shape[2] - 3
    return gain * sum(
        (TAPS[i] * TAPS[j] * x[:, i : i + h, j : j + w] for i in range(4) for j in range(4)),
        torch.zeros(()),
    )


def with_zeros(x: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    y[:, ::2, ::2] = x
    return y


def plain_convolution(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    return F.conv2d(x[None], weight, padding=padding)[0]


def plain_modulated(
    x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool, up: bool
) -> Tensor:
    w = weight * style[None, :, None, None]
    if demodulate:
        w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if not up:
        return plain_convolution(x, w, w.shape[2] // 2)
    wide = plain_convolution(F.pad(with_zeros(x), (2, 1, 2, 1)), w.flip(2, 3), 0)
    return plain_smooth(wide, 1, 1, gain=4)


def plain_activate(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * sqrt(2)


def plain_synthesis(state: Mapping[str, Tensor], ws: Tensor, resolution: int) -> Tensor:
    def affine(at: str, w: Tensor) -> Tensor:
        weight = state[f"{at}.affine.weight"]
        return weight @ w / sqrt(weight.shape[1]) + state[f"{at}.affine.bias"]

    def layer(at: str, x: Tensor, w: Tensor, *, up: bool) -> Tensor:
        y = plain_modulated(x, state[f"{at}.weight"], affine(at, w), demodulate=True, up=up)
        y = y + state[f"{at}.noise_const"] * state[f"{at}.noise_strength"]
        return plain_activate(y + state[f"{at}.bias"][:, None, None])

    drawn = []
    for w in ws:
        x, image, index = state["synthesis.b4.const"], torch.zeros(()), 0
        for side in (2**i for i in range(2, int(log2(resolution)) + 1)):
            at = f"synthesis.b{side}"
            if side > 4:
                x = layer(f"{at}.conv0", x, w[index], up=True)
                image = plain_smooth(with_zeros(image), 2, 1, gain=4)
                index += 1
            x = layer(f"{at}.conv1", x, w[index], up=False)
            index += 1
            style = affine(f"{at}.torgb", w[index])
            weight = state[f"{at}.torgb.weight"] / sqrt(len(x))
            mine = plain_modulated(x, weight, style, demodulate=False, up=False)
            image = image + mine + state[f"{at}.torgb.bias"][:, None, None]
        drawn.append(image)
    return torch.stack(drawn)


def plain_discriminator(state: Mapping[str, Tensor], batch: Tensor) -> Tensor:
    def conv(at: str, x: Tensor, padding: int) -> Tensor:
        weight = state[f"{at}.weight"]
        y = plain_convolution(x, weight / sqrt(weight[0].numel()), padding)
        bias = state.get(f"{at}.bias")
        return y if bias is None else y + bias[:, None, None]

    ends = []
    for x in batch:
        side = x.shape[1]
        y = plain_activate(conv(f"b{side}.fromrgb", x, 0))
        while side > 4:
            around = conv(f"b{side}.skip", plain_smooth(y, 1, 1)[:, ::2, ::2], 0)
            y = plain_activate(conv(f"b{side}.conv0", y, 1))
            y = plain_activate(conv(f"b{side}.conv1", plain_smooth(y, 2, 2), 0)[:, ::2, ::2])
            y = (y + around) / sqrt(2)
            side //= 2
        ends.append(y)
    logits = []
    groups = len(ends) // 4
    for i, y in enumerate(ends):
        others = torch.stack(ends[i % groups :: groups])
        deviation = (others.var(0, correction=0) + 1e-8).sqrt().mean()
        y = torch.cat([y, deviation.expand(1, 4, 4)])
        y = plain_activate(conv("b4.conv", y, 1)).flatten()
        weight = state["b4.fc.weight"]
        y = plain_activate(weight @ y / sqrt(len(y)) + state["b4.fc.bias"])
        logits.append(state["b4.out.weight"][0] @ y / sqrt(len(y)) + state["b4.out.bias"][0])
    return torch.stack(logits)


# Networks ---------------------------------------------------------------------------------


@pytest.mark.skipif(not REFERENCE, reason="MIBENCH_STYLEGAN_REFERENCE names no file")
@pytest.mark.parametrize(("name", "side", "channels"), [("rgb64", 64, 3), ("grey32", 32, 1)])
def test_networks_agree_with_arrays_of_the_released_ones(
    name: str, side: int, channels: int
) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(REFERENCE).items()}
    with seeded("shapes only"):
        G = Generator(64, 64, side, channels, 2, 1024, 32)
        D = Discriminator(side, channels, 1024, 32)
    for part, network in (("G", G), ("D", D)):
        head = f"{name}/{part}/"
        own = {k.removeprefix(head): v for k, v in arrays.items() if k.startswith(head)}
        network.load_state_dict(own)
    z, want = arrays[f"{name}/z"], arrays[f"{name}/image"]

    def close(found: Tensor, want: Tensor) -> None:
        torch.testing.assert_close(found, want, rtol=0, atol=1e-4)

    close(G.mapping(z).contiguous(), arrays[f"{name}/w"])
    close(G(z), want)
    close(G(z, 0.7), arrays[f"{name}/image_psi0.7"])
    close(D(want), arrays[f"{name}/logits"][:, 0])


def test_synthesis_is_that_of_a_plain_peer(rng: torch.Generator) -> None:
    G, _ = networks()
    ws = torch.randn(2, G.num_ws, 5, generator=rng)
    assert G.num_ws == 6
    want = plain_synthesis(G.state_dict(), ws, 16)
    torch.testing.assert_close(G.synthesis(ws), want, rtol=1e-4, atol=1e-4)


def test_discriminator_is_that_of_a_plain_peer(rng: torch.Generator) -> None:
    _, D = networks()
    x = images(8, 3, 16, rng)
    torch.testing.assert_close(D(x), plain_discriminator(D.state_dict(), x))


def test_mapping_is_two_slow_dense_layers_on_z_of_unit_rms(rng: torch.Generator) -> None:
    G, _ = networks()
    z = torch.randn(3, 6, generator=rng)
    s = G.state_dict()
    y = z / z.square().mean(1, keepdim=True).sqrt()
    for i in range(2):
        weight, bias = s[f"mapping.fc{i}.weight"], s[f"mapping.fc{i}.bias"]
        y = plain_activate(0.01 * (y @ weight.T / sqrt(weight.shape[1]) + bias))
    ws = G.mapping(z)
    assert ws.shape == (3, 6, 5)
    torch.testing.assert_close(ws, y[:, None].expand(-1, 6, -1))
    torch.testing.assert_close(G.mapping(7 * z), ws)


def test_truncation_goes_part_of_the_way_from_the_mean_style(rng: torch.Generator) -> None:
    G, _ = networks()
    G.mapping.w_avg.copy_(torch.randn(5, generator=rng))
    z = torch.randn(3, 6, generator=rng)
    w, mean = G.mapping(z), G.mapping.w_avg
    torch.testing.assert_close(G.mapping(z, 0.3), mean + 0.3 * (w - mean))
    torch.testing.assert_close(G.mapping(z, 0.0), mean.expand_as(w))
    before = mean.clone()
    G.mapping.track(w)
    torch.testing.assert_close(mean, 0.995 * before + 0.005 * w[:, 0].mean(0))


def test_demodulated_features_have_unit_variance(rng: torch.Generator) -> None:
    x = torch.randn(4, 32, 16, 16, generator=rng)
    weight = 5 * torch.randn(16, 32, 3, 3, generator=rng)
    styles = torch.rand(4, 32, generator=rng) * 9
    y = modulated_convolution(x, weight, styles)[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(16), rtol=0.2, atol=0)
    assert y.var().item() == pytest.approx(1, abs=0.03)


def test_equalised_layers_start_with_unit_variance_whatever_their_speed(
    rng: torch.Generator,
) -> None:
    with seeded("layers"):
        slow, fast = Dense(400, 300, lr_multiplier=0.01, bias=3.0), Dense(400, 300, bias=3.0)
        conv = Conv(50, 40, 3, 256.0)
    x = torch.randn(100, 400, generator=rng)
    assert slow.weight.std().item() == pytest.approx(100, rel=0.02)
    assert (slow(x) - 0.03).std().item() == pytest.approx(1, rel=0.03)
    assert (fast(x) - 3).std().item() == pytest.approx(1, rel=0.03)
    y = conv(torch.randn(8, 50, 9, 9, generator=rng))[:, :, 1:-1, 1:-1]
    assert y.square().mean().item() == pytest.approx(1.04, rel=0.05)


def test_activation_is_clamped_after_its_gain() -> None:
    x = torch.tensor([-100.0, -1.0, 2.0, 100.0])
    want = torch.tensor([-5.0, -0.1 * sqrt(2), sqrt(2), 5.0])
    torch.testing.assert_close(activate(x, 0.5, 10.0), want)


def test_resampling_is_zero_insertion_and_a_filter(rng: torch.Generator) -> None:
    x = torch.randn(2, 3, 6, 6, generator=rng)
    kernel = binomial_filter()
    wide = torch.stack([plain_smooth(with_zeros(y), 2, 1, gain=4) for y in x])
    torch.testing.assert_close(upsample(x, kernel), wide)
    half = torch.stack([plain_smooth(y, 1, 1)[:, ::2, ::2] for y in x])
    torch.testing.assert_close(smooth(x, kernel, 1, down=2), half)
    flat = upsample(torch.ones(1, 1, 6, 6), kernel)[0, 0, 1:-1, 1:-1]
    torch.testing.assert_close(flat, torch.ones(10, 10))


@pytest.mark.parametrize(("n", "size"), [(8, 4), (6, 3), (5, 1), (2, 2)])
def test_minibatch_deviation_looks_across_interleaved_groups(
    n: int, size: int, rng: torch.Generator
) -> None:
    x = torch.randn(n, 3, 4, 4, generator=rng)
    y = minibatch_deviation(x, 4) if size != 1 else minibatch_deviation(x, 3)
    assert torch.equal(y[:, :3], x)
    groups = n // size
    for i in range(n):
        want = (x[i % groups :: groups].var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[i, 3], want.expand(4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_every_weight_and_style(channels: int, rng: torch.Generator) -> None:
    G, D = networks(8, channels)
    ws = G.mapping(torch.randn(4, 6, generator=rng))
    loss = D(G.synthesis(ws, "random", rng)).square().sum()
    weights = [*G.parameters(), *D.parameters()]
    slopes = torch.autograd.grad(loss, [*weights, ws])
    assert all(g.abs().sum() > 0 for g in slopes)
    assert (slopes[-1].abs().sum((0, 2)) > 0).all()


def test_noise_is_constant_random_or_absent(rng: torch.Generator) -> None:
    G, _ = networks(8, 1)
    ws = torch.randn(1, G.num_ws, 5, generator=rng).expand(2, -1, -1)
    still, none = G.synthesis(ws), G.synthesis(ws, "none")
    drawn = G.synthesis(ws, "random", rng)
    torch.testing.assert_close(still[0], still[1])
    torch.testing.assert_close(none[0], none[1])
    assert not torch.allclose(still, none)
    assert not torch.allclose(drawn[0], drawn[1])
    with pytest.raises(ValueError, match="needs a generator"):
        G.synthesis(ws, "random")


def test_sizes_follow_the_profile_and_others_are_refused() -> None:
    assert profile(64, 1024, 32) == {4: 32, 8: 32, 16: 32, 32: 32, 64: 16}
    assert profile(16, 256, 512) == {4: 64, 8: 32, 16: 16}
    for side in (4, 12):
        with pytest.raises(ValueError, match="8, 16, 32"):
            profile(side, 1024, 32)
    with pytest.raises(ValueError, match="channel_base"):
        profile(32, 16, 8)
    with pytest.raises(ValueError, match="square"):
        SPEC.build((1, 8, 16), 2)
    with pytest.raises(ValueError, match="square"):
        SPEC.build((2, 8, 8), 2)


# Augmentations ----------------------------------------------------------------------------


def test_the_wavelet_is_orthonormal_and_has_six_vanishing_moments() -> None:
    h = torch.tensor(SYM6, dtype=torch.float64)
    shifts = torch.stack([(h[2 * k :] * h[: 12 - 2 * k]).sum() for k in range(6)])
    torch.testing.assert_close(shifts, torch.eye(6, dtype=torch.float64)[0])
    k = torch.arange(12, dtype=torch.float64)
    moments = torch.stack([((-1) ** k * h * k**m).sum() for m in range(6)])
    torch.testing.assert_close(moments, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-8)


def picture(side: int) -> Tensor:
    """A smooth picture without symmetry, (1, 1, side, side)."""
    at = (torch.arange(side) + 0.5) / side
    return (torch.sin(3 * at)[:, None] * torch.cos(4 * at + 1)[None] + at[:, None])[None, None]


@pytest.mark.parametrize(
    ("matrix", "change"),
    [
        ([[1, 0, 0], [0, 1, 0]], lambda x: x),
        ([[-1, 0, 0], [0, 1, 0]], lambda x: x.flip(3)),
        ([[1, 0, 0], [0, -1, 0]], lambda x: x.flip(2)),
        ([[0, -1, 0], [1, 0, 0]], lambda x: x.rot90(1, (2, 3))),
        ([[1, 0, 0.25], [0, 1, 0]], lambda x: torch.cat([x, x.flip(3)], 3)[..., 4:36]),
        ([[1, 0, 0], [0, 1, -2]], lambda x: x.flip(2)),
    ],
)
def test_a_warp_moves_pixels_and_mirrors_what_lies_beyond(
    matrix: list[list[float]], change: Callable[[Tensor], Tensor]
) -> None:
    x = picture(32)
    found = warp(x, torch.tensor([matrix], dtype=torch.float32))
    torch.testing.assert_close(found, change(x), rtol=0, atol=0.02)


def test_identity_inside_is_exact_and_fine_detail_does_not_alias(rng: torch.Generator) -> None:
    x = images(2, 3, 16, rng)
    still = torch.eye(3)[:2].repeat(2, 1, 1)
    torch.testing.assert_close(warp(x, still)[..., 4:12, 4:12], x[..., 4:12, 4:12])
    stripes = ((-1.0) ** torch.arange(32)).expand(1, 1, 32, 32)
    shrunk = warp(stripes, torch.tensor([[[1.9, 0, 0], [0, 1.9, 0]]]))
    naive = F.grid_sample(
        stripes,
        F.affine_grid(torch.tensor([[[1.9, 0, 0], [0, 1.9, 0]]]), [1, 1, 32, 32], False),
        padding_mode="reflection",
        align_corners=False,
    )
    assert shrunk.square().mean() < 0.2 * naive.square().mean()


def test_nothing_is_drawn_or_changed_at_zero(rng: torch.Generator) -> None:
    x = images(2, 1, 8, rng)
    before = rng.get_state()
    assert augment(x, 0.0, rng) is x
    assert torch.equal(rng.get_state(), before)
    assert not torch.allclose(augment(x, 1.0, rng), x)


def test_sampling_has_both_derivatives(rng: torch.Generator) -> None:
    x = torch.randn(2, 2, 5, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    grid = 2 * torch.randn(2, 4, 4, 2, generator=rng, dtype=torch.float64)
    grid[0, 0, 0] = torch.tensor([1.0, -1.0])
    peer = F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)
    torch.testing.assert_close(sample(x, grid), peer)
    with seeded("directions"):
        assert torch.autograd.gradcheck(lambda t: sample(t, grid), (x,))
        assert torch.autograd.gradgradcheck(lambda t: sample(t, grid).square(), (x,))


N = 20_000
LOOSE = 0.02


def test_geometry_has_the_statistics_of_the_paper(rng: torch.Generator) -> None:
    maps = geometry(N, 1.0, 16, rng)
    linear = maps[:, :, :2]
    det = torch.linalg.det(linear)
    scale = det.abs().log2() / 2
    assert scale.mean().abs() < LOOSE
    assert scale.std().item() == pytest.approx(0.2, rel=0.03)
    assert (det < 0).float().mean().item() == pytest.approx(0.5, abs=LOOSE)
    singular = torch.linalg.svdvals(linear)
    stretch = (singular[:, 0] / singular[:, 1]).log2() / 2
    assert stretch.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    assert linear.mean(0).abs().max() < LOOSE  # all angles alike


def test_shifts_have_the_statistics_of_the_paper(rng: torch.Generator) -> None:
    maps = geometry(N, 1.0, 16, rng)
    # The fractional shift comes last, so its inverse first: all else turns and scales it.
    linear, shift = maps[:, :, :2], maps[:, :, 2]
    grown = linear.square().sum((1, 2)).mean().item() / 2
    pixels = (torch.rand(N, generator=rng) * 4 - 2).round().square().mean().item()
    want = 0.25**2 * grown + pixels / 64
    assert shift.square().sum(1).mean().item() / 2 == pytest.approx(want, rel=0.05)
    assert shift.mean(0).abs().max() < LOOSE


def test_each_geometric_transformation_has_its_probability(rng: torch.Generator) -> None:
    maps = geometry(N, 0.2, 16, rng)
    linear = maps[:, :, :2]
    det = torch.linalg.det(linear)
    assert (det < 0).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert ((det.abs() - 1).abs() > 1e-5).float().mean().item() == pytest.approx(0.2, abs=0.01)
    singular = torch.linalg.svdvals(linear)
    stretched = (singular[:, 0] / singular[:, 1] > 1.001).float().mean().item()
    assert stretched == pytest.approx(0.2, abs=0.01)
    still = (maps == torch.eye(3)[:2]).all(2).all(1).float().mean().item()
    never = 0.8**3 * (0.8 + 0.2 / 4) * (0.8 + 0.2 / 2)  # shifts, scale, stretch; quarter, flip
    assert still == pytest.approx(never * 0.8 * 0.8, abs=0.015)


def test_whole_pixel_shifts_are_whole_and_at_most_an_eighth(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randn", lambda *size, generator: torch.zeros(*size))
    pixels = geometry(4000, 1.0, 32, rng)[:, :, 2].norm(dim=1) * 16
    squares = pixels.square()
    torch.testing.assert_close(squares, squares.round(), rtol=0, atol=1e-2)
    assert pixels.max() <= 4 * sqrt(2) + 1e-3
    assert pixels.max() > 5


def test_colour_has_the_statistics_of_the_paper(rng: torch.Generator) -> None:
    maps = colour(N, 1.0, rng)
    linear, offset = maps[:, :, :3], maps[:, :, 3]
    luma = linear.sum((1, 2)) / 3
    torch.testing.assert_close(linear.sum(2), luma[:, None].expand(-1, 3), rtol=1e-4, atol=1e-4)
    contrast = luma.abs().log2()
    assert contrast.mean().abs() < LOOSE
    assert contrast.std().item() == pytest.approx(0.5, rel=0.03)
    assert (luma < 0).float().mean().item() == pytest.approx(0.5, abs=LOOSE)
    brightness = offset.mean(1) / luma
    assert brightness.std().item() == pytest.approx(0.2, rel=0.03)
    torch.testing.assert_close(offset, offset[:, :1].expand(-1, 3), rtol=1e-3, atol=1e-4)
    area = torch.linalg.det(linear) / luma  # of the plane of colours: (contrast saturation)²
    saturation = area.log2() / 2 - contrast
    assert saturation.mean().abs() < LOOSE
    assert saturation.std().item() == pytest.approx(1, rel=0.03)
    trace = torch.diagonal(linear, dim1=1, dim2=2).sum(1) - luma
    cosine = trace / (2 * area.sqrt())
    assert cosine.mean().abs() < LOOSE
    assert (cosine > 0.5 * sqrt(3)).float().mean().item() == pytest.approx(1 / 6, abs=LOOSE)
    turn = (linear - linear.mT)[:, 1, 0]
    assert turn.mean().abs() < 3 * LOOSE
    assert (turn > 0).float().mean().item() == pytest.approx(0.5, abs=LOOSE)


def test_each_colour_transformation_has_its_probability(rng: torch.Generator) -> None:
    maps = colour(N, 0.3, rng)
    linear = maps[:, :, :3]
    luma = linear.sum((1, 2)) / 3
    area = (torch.linalg.det(linear) / luma).log2() / 2 - luma.abs().log2()
    shares = {
        "contrast": ((luma.abs() - 1).abs() > 1e-5).float().mean().item(),
        "brightness": (maps[:, :, 3].abs() > 1e-6).any(1).float().mean().item(),
        "saturation": (area.abs() > 1e-4).float().mean().item(),
        "hue": ((linear - linear.mT).abs().amax((1, 2)) > 1e-4).float().mean().item(),
        "luma": 2 * (luma < 0).float().mean().item(),
    }
    assert shares == {name: pytest.approx(0.3, abs=0.015) for name in shares}


def test_a_grey_image_is_one_of_three_equal_channels(rng: torch.Generator) -> None:
    x = images(64, 1, 8, rng)
    maps = colour(64, 1.0, rng)
    grey = recolour(x, maps)
    threefold = recolour(x.expand(-1, 3, -1, -1), maps)
    torch.testing.assert_close(grey.expand(-1, 3, -1, -1), threefold, rtol=1e-3, atol=1e-4)


# Training ---------------------------------------------------------------------------------


def public(n: int = 12) -> ImageSet:
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator("x"), dtype=torch.uint8)
    return ImageSet(pixels, torch.zeros(n, dtype=torch.long))


def fresh(spec: StyleGAN2 = SPEC) -> StyleGANPrior:
    with seeded("prior"):
        return spec.build((1, 8, 8), 2)


def run(spec: StyleGAN2 = SPEC) -> _Run:
    return _Run(spec, fresh(spec), public(), generator("run"), Work())


def trained(work: Work) -> StyleGANPrior:
    prior = fresh()
    SPEC.train(prior, public(), None, generator("train"), work)
    return prior


@pytest.fixture(scope="module")
def whole() -> StyleGANPrior:
    return trained(Work())


@pytest.mark.parametrize("saves", [1, 6])
def test_a_killed_training_ends_with_the_same_bits(
    saves: int, whole: StyleGANPrior, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        trained(CheckedWork(tmp_path, saves))
    again = trained(Work(tmp_path))
    for k, v in whole.state_dict().items():
        assert torch.equal(v, again.state_dict()[k]), k
    assert whole.history.keys() == again.history.keys()
    for k, v in whole.history.items():
        assert torch.equal(v, again.history[k]), k


def test_history_has_rows_and_pictures(whole: StyleGANPrior) -> None:
    history = whole.history
    steps = 9
    assert history["kimg"].tolist() == pytest.approx([0.004 * (i + 1) for i in range(steps)])
    for name in ("p", "generator", "discriminator", "signs", "r1", "path length"):
        assert len(history[name]) == steps
    assert (history["r1"] > 0).tolist() == [i % 3 == 0 for i in range(steps)]
    assert (history["path length"] > 0).tolist() == [i % 2 == 0 for i in range(steps)]
    assert history["samples"].shape[1:] == (16, 1, 8, 8)
    assert history["samples"].dtype == torch.uint8
    assert 1 <= len(history["samples"]) == len(history["samples kimg"]) <= GRIDS
    z = whole.sample(16, generator("samples"))
    last = (whole.generate(z).detach() * 255).round().to(torch.uint8)
    assert torch.equal(history["samples"][-1], last)


def test_the_stage_stores_the_history(tmp_path: Path) -> None:
    task = Blobs(num_classes=2)
    pictures = ImagesStage(task, task.digest(Path()))
    stage = PriorStage(pictures, None, SPEC, 0)
    store = Store(tmp_path)
    store.complete(pictures)
    store.complete(stage)
    assert store.load(stage)["history"]["kimg"].shape == (9,)
    prior = stage.prior(store.load, torch.device("cpu"))
    assert not prior.training


def test_prior_draws_on_the_unit_scale_and_judges_on_the_other(whole: StyleGANPrior) -> None:
    z = whole.sample(4, generator("z"))
    ws = whole.styles(z)
    raw = whole.generator(z) / 2 + 0.5
    torch.testing.assert_close(whole.generate(z), raw.clamp(0, 1))
    torch.testing.assert_close(whole.synthesise(ws, clamp=False), raw)
    x = whole.generate(z)
    torch.testing.assert_close(whole.realism(x), whole.discriminator(2 * x - 1))


def test_lazy_regularisation_lowers_learning_and_decay_rates() -> None:
    for_G, for_D = (o.param_groups[0] for o in run().optimizers)
    assert for_G["lr"] == pytest.approx(1e-2 * 2 / 3)
    assert for_D["lr"] == pytest.approx(1e-2 * 3 / 4)
    assert for_G["betas"] == pytest.approx((0, 0.99 ** (2 / 3)))
    assert for_D["betas"] == pytest.approx((0, 0.99 ** (3 / 4)))
    plain = StyleGAN2(path_weight=0.0, z_dim=4, w_dim=4, channel_base=32, channel_max=4)
    assert run(plain).optimizers[0].param_groups[0]["lr"] == 2.5e-3


def test_a_step_of_r1_moves_every_weight_against_its_own_slope() -> None:
    """Slopes of slopes lie in memory in another order than the weights; the first step of Adam
    moves each weight by the learning rate, whatever the slope's size."""
    training = run()
    real = training.real()
    weights = list(training.D.parameters())
    slopes = torch.autograd.grad(r1_penalty(training.D, real), weights, materialize_grads=True)
    assert any(not s.is_contiguous() for s in slopes)
    before = [w.detach().clone() for w in weights]
    training.descend(r1_penalty(training.D, real), 1)
    lr = training.optimizers[1].param_groups[0]["lr"]
    for old, new, slope in zip(before, weights, slopes, strict=True):
        large = slope.abs() > 1e-5
        torch.testing.assert_close(
            (new - old)[large], -lr * slope.sign()[large], rtol=1e-2, atol=1e-7
        )


def test_r1_of_a_linear_judge_is_its_squared_weight(rng: torch.Generator) -> None:
    weight = torch.randn(3, 4, 4, generator=rng)
    x = images(5, 3, 4, rng)
    found = r1_penalty(lambda t: (t * weight).sum((1, 2, 3)), x)
    torch.testing.assert_close(found, weight.square().sum())


def test_path_lengths_are_those_of_an_explicit_jacobian() -> None:
    a, b = run(), run()
    a.path.fill_(0.3)
    penalty = a.path_penalty(2)
    ws = b.styles(2)
    state = b.rng.get_state()
    x = b.draw(ws)
    y = torch.randn(x.shape, generator=b.rng) / 8

    def draw(one: Tensor) -> Tensor:
        b.rng.set_state(state)
        return b.draw(one)

    jacobian: Tensor = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
        draw, ws.detach()
    )
    slope = torch.einsum("nchw,nchwmsd->msd", y, jacobian)
    lengths = slope.square().sum(2).mean(1).sqrt()
    mean = 0.99 * 0.3 + 0.01 * lengths.mean()
    torch.testing.assert_close(a.path, mean)
    torch.testing.assert_close(penalty.detach(), (lengths - mean).square().mean())


@pytest.mark.parametrize(("bias", "start", "end"), [(99, 0, 0.16), (-99, 0.5, 0.34), (-99, 0, 0)])
def test_augmentation_rises_while_the_judge_is_sure_and_falls_otherwise(
    bias: float, start: float, end: float
) -> None:
    trainer = run()
    trainer.p = start
    with torch.no_grad():
        trainer.D.b4.out.bias.fill_(bias)
    trainer.advance()
    assert trainer.p == start
    trainer.advance()
    assert trainer.p == pytest.approx(end)
    assert trainer.signs == 0


def test_a_regularisation_at_every_so_many_steps_counts_so_much_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = run()
    penalties = []
    descended = []
    path, descend = trainer.path_penalty, trainer.descend

    def follow(n: int) -> Tensor:
        penalties.append((n, path(n)))
        return penalties[-1][1]

    def note(loss: Tensor, which: int) -> None:
        descended.append((loss.item(), which))
        descend(loss, which)

    monkeypatch.setattr(trainer, "path_penalty", follow)
    monkeypatch.setattr(trainer, "descend", note)
    for _ in range(4):
        trainer.advance()
        assert [which for _, which in descended] == {1: [0, 0, 1, 1], 2: [0, 1], 3: [0, 0, 1]}.get(
            trainer.step, [0, 1, 1]
        )
        if trainer.step == 1:
            ((n, penalty),) = penalties
            assert n == 2
            assert descended[1][0] == pytest.approx(2 * 2 * penalty.item())
            r1 = trainer.sums[stylegan.MEANS.index("r1"), 0].item()
            assert descended[3][0] == pytest.approx(3 * 0.0128 / 2 * r1)
        descended.clear()


def test_what_a_training_saves_is_all_that_changes() -> None:
    """Also between two rows, when the sums of their means are not zero."""
    trainer, other = run(), run()
    trainer.advance()
    assert trainer.sums.any()
    other.restore(unpack(*pack(frozen(trainer.state()))))
    for training in (trainer, other):
        training.advance()
        training.note()
    assert other.rows == trainer.rows
    assert other.step == trainer.step == 2


def test_only_a_mirrored_training_flips_images() -> None:
    seen = {}
    for mirror in (False, True):
        trainer = run(replace(SPEC, mirror=mirror, batch_size=40))
        known = [x.float() / 127.5 - 1 for x in trainer.public.pixels]
        drawn = trainer.real()
        straight = [any(torch.equal(x, k) for k in known) for x in drawn]
        flipped = [any(torch.equal(x.flip(2), k) for k in known) for x in drawn]
        assert all(a or b for a, b in zip(straight, flipped, strict=True))
        seen[mirror] = sum(flipped)
    assert seen[False] == 0
    assert 10 <= seen[True] <= 30


def test_mixed_styles_switch_once() -> None:
    trainer = run(StyleGAN2(z_dim=6, w_dim=5, channel_base=64, channel_max=8, mixing=1.0))
    cuts = set()
    for _ in range(20):
        ws = trainer.styles(3)
        new = [i for i in range(1, 4) if not torch.equal(ws[:, i], ws[:, i - 1])]
        assert len(new) == 1
        cuts |= set(new)
    assert cuts == {1, 2, 3}
    assert trainer.G.mapping.w_avg.abs().sum() > 0


def test_the_discriminator_sees_everything_through_the_augmentations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = run()
    seen = []

    def note(x: Tensor, p: float, rng: torch.Generator) -> Tensor:
        seen.append((x.requires_grad, p))
        return augment(x, p, rng)

    monkeypatch.setattr(stylegan, "augment", note)
    trainer.p = 0.25
    trainer.advance()
    drawn, real, fake, penalised = (True, 0.25), (False, 0.25), (False, 0.25), (True, 0.25)
    assert seen == [drawn, real, fake, penalised]


def test_the_average_starts_as_a_copy_and_follows_with_its_half_life() -> None:
    trainer = run()
    with torch.no_grad():
        trainer.G.get_parameter("synthesis.b4.const").fill_(1)
        trainer.G.mapping.w_avg.fill_(7)
    trainer.average()
    mine = trainer.prior.generator
    const = mine.get_parameter("synthesis.b4.const")
    assert torch.equal(const, torch.ones(8, 4, 4))
    assert torch.equal(mine.mapping.w_avg, torch.full((5,), 7.0))
    trainer.step = 100
    with torch.no_grad():
        trainer.G.get_parameter("synthesis.b4.const").fill_(3)
    trainer.average()  # 400 images shown: half-life 20, batch 4
    want = 3 - 2 * 0.5 ** (4 / 20)
    torch.testing.assert_close(const, torch.full((8, 4, 4), want))


def test_it_learns_a_constant_image() -> None:
    spec = StyleGAN2(
        z_dim=6, w_dim=5, channel_base=64, channel_max=8, batch_size=8, kimg=0.24, lr=2e-2,
        r1_gamma=1.0, path_weight=0.0, pipeline="none",
    )  # fmt: skip
    half = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    half[:, :, :4] = 255
    prior = fresh(spec)
    spec.train(prior, ImageSet(half, torch.zeros(8).long()), None, generator("t"), Work())
    x = prior.generate(prior.sample(8, generator("z")))
    assert (x - half.float() / 255).abs().mean() < 0.15
