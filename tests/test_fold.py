"""Frozen networks made quick are the same functions with the same gradients."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mibench.networks import MCNN, VGG16, ResNet34, fold
from mibench.networks.fold import quick
from mibench.networks.generators.dcgan import (
    Critic,
    Generator,
    InversionDiscriminator,
    MinibatchDiscrimination,
)
from mibench.seeding import generator, seeded
from mibench.store import Work


def trained(network: nn.Module) -> nn.Module:
    """Gives batch normalisations statistics and weights that matter."""
    rng = generator("statistics")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for t in (module.running_mean, module.running_var, module.weight, module.bias):
                assert t is not None
                t.data = 0.5 + torch.rand(t.shape, generator=rng)
    return network.eval().requires_grad_(requires_grad=False)


def outputs(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what the network makes of x, and the gradient of a sum of it."""
    x = x.clone().requires_grad_()
    y = network(x)
    y = y[1] if isinstance(y, tuple) else y
    weights = torch.randn(y.shape, generator=generator("weights"))
    (slope,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), slope


def build(name: str) -> nn.Module:
    with seeded("fold"):
        match name:
            case "generator":
                return Generator(6, 4, (1, 16, 16))
            case "colour generator":
                return Generator(6, 4, (3, 16, 16))
            case "critic":
                return Critic(4, (1, 16, 16))
            case "discriminator":
                return InversionDiscriminator(4, (3, 16, 16), 5, mbd=6, mbd_kernels=3)
            case "mcnn":
                return MCNN(widths=(4, 6), kernels=(3, 3), paddings=(1, 0)).build((1, 16, 16), 5)
            case "vgg":
                return VGG16().build((3, 32, 32), 5)
            case _:
                return ResNet34().build((3, 32, 32), 5)


@pytest.mark.parametrize(
    "name", ["generator", "colour generator", "critic", "discriminator", "mcnn", "vgg", "resnet"]
)
def test_a_quick_network_computes_the_same_with_the_same_gradient(
    name: str, rng: torch.Generator
) -> None:
    slow = trained(build(name))
    shape = (6,) if "gener" in name else (1, 16, 16) if name in {"critic", "mcnn"} else (3, 16, 16)
    shape = (3, 32, 32) if name in {"vgg", "resnet"} else shape
    x = torch.rand(4, *shape, generator=rng)
    for got, want in zip(outputs(quick(slow), x), outputs(slow, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


@pytest.mark.parametrize("name", ["generator", "mcnn"])
def test_no_batch_normalisation_is_left_in_a_quick_network(name: str) -> None:
    kinds = {type(m) for m in quick(trained(build(name))).modules()}
    assert not kinds & {nn.BatchNorm1d, nn.BatchNorm2d}


def test_a_network_stays_as_it_was_when_a_quick_one_is_made() -> None:
    slow = trained(build("mcnn"))
    before = copy.deepcopy(slow)
    quick(slow)
    assert str(slow) == str(before)
    torch.testing.assert_close(slow.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_a_quick_network_works_for_the_same_stage() -> None:
    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.work = Work()

    slow = Watching()
    assert quick(slow).work is slow.work


def test_batch_normalisation_of_the_batchs_own_statistics_is_not_folded(
    rng: torch.Generator,
) -> None:
    slow = trained(build("mcnn")).train()
    x = torch.rand(4, 1, 16, 16, generator=rng)
    torch.testing.assert_close(quick(slow)(x), copy.deepcopy(slow)(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 5, (3, 5), (2, 1), (1, 2)),
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.Conv2d(2, 4, 3, dilation=2),
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(5, 2, (3, 5), (2, 3), (1, 2), (1, 2)),
        nn.ConvTranspose2d(4, 2, 3, groups=2),
        nn.ConvTranspose2d(4, 2, 3, dilation=2),
        nn.ConvTranspose2d(4, 3, 3, bias=False),
    ],
    ids=str,
)
def test_convolutions_of_any_kind_stay_what_they_are(
    conv: nn.Module, rng: torch.Generator
) -> None:
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    slow = nn.Sequential(conv, nn.MaxPool2d(2)).eval().requires_grad_(requires_grad=False)
    x = torch.randn(3, conv.in_channels, 9, 8, generator=rng)
    for got, want in zip(outputs(quick(slow), x), outputs(slow, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [8, 9, 11])
@pytest.mark.parametrize(("kernel", "pad"), [(3, 0), (3, 1), (5, 2), (4, 1)])
def test_images_gradients_are_the_same_in_bf16(
    stride: int, side: int, kernel: int, pad: int, rng: torch.Generator
) -> None:
    with seeded("narrow"):
        conv = nn.Conv2d(3, 32, kernel, stride, pad).requires_grad_(requires_grad=False)
    x = torch.randn(2, 3, side, side, generator=rng).requires_grad_()
    g = torch.randn(conv(x).shape, generator=rng)
    (exact,) = torch.autograd.grad(conv(x), x, g)
    narrow = fold._transposed(g.bfloat16(), conv, (side, side)).float()
    assert narrow.shape == exact.shape
    assert (narrow - exact).norm() < 0.01 * exact.norm()
    wide = fold._transposed(g, conv, (side, side))
    torch.testing.assert_close(wide, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("at", [0, 1])
def test_what_hooks_do_to_a_layer_stays(at: int, rng: torch.Generator) -> None:
    with seeded("hooks"):
        network = trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))
    layer = network.get_submodule(str(at))
    layer.register_forward_hook(lambda _, args, out: 2 * out)
    x = torch.randn(2, 1, 6, 6, generator=rng)
    plain, quicker = outputs(network, x), outputs(quick(network), x)
    torch.testing.assert_close(quicker, plain)


@pytest.mark.parametrize("rows", [1, 5, fold.PACKED_ROWS, fold.PACKED_ROWS + 1])
def test_a_packed_product_is_the_product(rows: int, rng: torch.Generator) -> None:
    with seeded("fold"):
        closeness = MinibatchDiscrimination(40, 6, 5)
    closeness.T.data /= math.sqrt(40)
    slow = nn.Sequential(closeness).requires_grad_(requires_grad=False)
    fast = quick(slow)
    x = torch.randn(rows, 40, generator=rng)
    for got, want in zip(outputs(fast, x), outputs(slow, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_a_packed_product_of_doubles_stays_one_of_doubles(rng: torch.Generator) -> None:
    with seeded("fold"):
        slow = nn.Sequential(MinibatchDiscrimination(6, 4, 3)).double()
    x = torch.rand(4, 6, generator=rng).double()
    torch.testing.assert_close(quick(slow)(x), slow(x), rtol=0, atol=1e-12)


def test_a_normalisation_is_folded_only_into_the_layer_that_it_follows(
    rng: torch.Generator,
) -> None:
    class Backwards(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self[1](self[0](x).relu())
            return y

    relu = nn.ReLU()  # one object in two places, as is often done
    with seeded("fold"):
        shared = nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu, nn.BatchNorm1d(3))
        between = Backwards(nn.Linear(3, 3), nn.BatchNorm1d(3))
    x = torch.randn(5, 3, generator=rng)
    for slow in (shared, between):
        trained(slow)
        torch.testing.assert_close(quick(slow)(x), slow(x))


class Rectified(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_what_derives_from_a_normalisation_is_not_folded() -> None:
    with seeded("fold"):
        network = nn.Sequential(nn.Linear(4, 4), Rectified(4)).eval()
    x = torch.randn(8, 4, generator=generator("x"))
    torch.testing.assert_close(quick(network)(x), network(x))
