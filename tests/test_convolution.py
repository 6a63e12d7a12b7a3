"""Convolutions in bf16 on a CPU: the same mathematics as torch's in float32, rounded."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench import convolution
from mibench.convolution import FEW_ROWS, ROWS, InBf16, weight_gradient
from mibench.seeding import generator, seeded

CONVOLUTIONS = [
    lambda: nn.Conv2d(3, 6, 3, 1, 1),
    lambda: nn.Conv2d(4, 6, 5, 2, 2, bias=False),
    lambda: nn.Conv2d(4, 6, (3, 5), (1, 2), (0, 1)),
    lambda: nn.Conv2d(4, 6, (3, 5), 1, (0, 2)),
    lambda: nn.ConvTranspose2d(4, 3, 5, 2, 2, 1),
    lambda: nn.ConvTranspose2d(4, 6, 3, 1, 0, bias=False),
    lambda: nn.Conv2d(4, 6, 3, dilation=2),
    lambda: nn.Conv2d(4, 6, 3, groups=2),
    lambda: nn.Conv2d(4, 6, 3, padding="same"),
    lambda: nn.InstanceNorm2d(4, affine=True),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True).eval(),
]


def data(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(*shape))


def near(a: Tensor, b: Tensor) -> bool:
    return bool((a.float() - b).norm() < 0.02 * b.norm() + 1e-3)


def gradients(layer: Any, x: Tensor, *, narrow: bool) -> list[Tensor]:
    """Returns what a layer makes, and the gradients at its input and its weights."""
    x = x.clone().requires_grad_()
    if narrow:
        with torch.autocast("cpu", torch.bfloat16), InBf16():
            y = layer(x)
    else:
        y = layer(x)
    loss = (y.float() * data(*y.shape)).sum()
    return [y, *torch.autograd.grad(loss, [x, *layer.parameters()])]


@pytest.mark.parametrize("make", CONVOLUTIONS)
@pytest.mark.parametrize("rows", [0, 10**6], ids=["torch's own", "products"])
def test_values_and_gradients_are_those_of_float32(
    make: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "ROWS", rows)
    monkeypatch.setattr(convolution, "FEW_ROWS", rows)
    with seeded("test"):
        layer = make()
    x = data(2, getattr(layer, "in_channels", 4), 8, 9)
    wide, narrow = (gradients(layer, x, narrow=n) for n in (False, True))
    for a, b in zip(narrow, wide, strict=True):
        assert a.shape == b.shape
        assert near(a, b)
    if "Conv" in str(layer) and layer.groups == 1 and set(layer.dilation) == {1}:
        assert narrow[0].dtype == torch.bfloat16


def test_only_the_weights_gradients_that_are_wanted_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed = []
    whole = weight_gradient

    def noted(*arguments: Any) -> Tensor:
        computed.append(len(arguments))
        return whole(*arguments)

    monkeypatch.setattr(convolution, "weight_gradient", noted)
    with seeded("test"):
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    x = data(2, 3, 6, 6).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), InBf16():
        y = layers(x).float().sum()
    torch.autograd.grad(y, x, retain_graph=True)
    torch.autograd.grad(y, list(layers[1].parameters()), create_graph=True)  # is left to torch
    assert len(computed) == 0
    torch.autograd.grad(y, list(layers[1].parameters()), retain_graph=True)
    assert len(computed) == 1
    y.backward()
    assert len(computed) == 3


def test_a_product_is_taken_of_small_maps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    monkeypatch.setattr(convolution, "weight_gradient", lambda small, *_: computed.append(small))
    for n in (ROWS, ROWS + 1):
        with seeded("test"):
            layer, x = nn.Conv2d(4, 4, 3, padding=1, bias=False), data(n, 4, 2, 2)
        with torch.autocast("cpu", torch.bfloat16), InBf16():
            layer(x).float().sum().backward()
    assert [len(small) for small in computed] == [ROWS]


def test_a_convolution_is_a_product_where_its_maps_are_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    whole = convolution._by_product

    def noted(x: Tensor, *rest: Any) -> Tensor:
        rows.append(len(x))
        return whole(x, *rest)

    monkeypatch.setattr(convolution, "_by_product", noted)
    for n in (FEW_ROWS, FEW_ROWS + 1):
        x, w = data(n, 4, 2, 2).requires_grad_(), data(4, 4, 3, 3)
        with torch.autocast("cpu", torch.bfloat16), InBf16():
            torch.autograd.grad(F.conv2d(x, w, padding=1).float().sum(), x)
    assert rows == [FEW_ROWS, FEW_ROWS]


@pytest.mark.parametrize("make", [CONVOLUTIONS[0], CONVOLUTIONS[4], CONVOLUTIONS[9]])
def test_gradients_have_gradients(make: Any) -> None:
    """As a gradient penalty needs them."""
    with seeded("test"):
        layer = make()
    x = data(2, getattr(layer, "in_channels", 4), 6, 6).requires_grad_()

    def penalty(*, narrow: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            if narrow:
                with InBf16():
                    y = layer(x)
            else:
                y = layer(x)
        y = y.float().square().sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        return list(torch.autograd.grad(g.square().sum(), [x, layer.weight]))

    for a, b in zip(penalty(narrow=True), penalty(narrow=False), strict=True):
        assert near(a, b)


def test_maps_go_channels_last_whatever_they_were() -> None:
    with torch.autocast("cpu", torch.bfloat16), InBf16():
        y = F.conv2d(data(2, 4, 6, 6), data(8, 4, 3, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_float32_is_torchs_own() -> None:
    x, w = data(2, 4, 6, 6), data(8, 4, 3, 3)
    assert torch.equal(convolution.conv2d(x, w, None, 2, 1), F.conv2d(x, w, None, 2, 1))
    t = w.transpose(0, 1)
    assert torch.equal(convolution.conv_transpose2d(x, t), F.conv_transpose2d(x, t))
    narrow = convolution.conv_transpose2d(x.bfloat16(), t.bfloat16(), stride=2)
    assert near(narrow, F.conv_transpose2d(x, t, stride=2))
