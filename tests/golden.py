"""Numbers that authors' released functions gave, and the formulas that make their inputs.

A file of ``tests/golden`` says in its own words what was computed, of what, by which code. Its
numbers are of float64, rounded to twelve digits. An input is a :func:`wave`; a network's weights
are waves too, by :func:`fill`.
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "golden"
TIGHT = 1e-10
"""Relative tolerance of float64."""
RIDGE = 1e-9
"""The same where normalised HSIC comes in: its ridge makes it ill-conditioned."""
NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)


def read(name: str) -> dict[str, Any]:
    """Returns a file's content; ``name`` is as in "defenses/01a-dependence-matrices"."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    assert found["golden"] == Path(name).name
    samples = next((v for k, v in found.items() if k.startswith("wave samples")), None)
    if samples is not None:
        ours = wave((123_457,), 0.7, 0.2)[[0, 1, 2, 100, 9972, 123_456]]
        assert ours.tolist() == pytest.approx(samples, rel=1e-11)
    return found


def wave(shape: Sequence[int], a: float, b: float) -> Tensor:
    """Returns sin(a (i² mod 9973) + b) over the flat places i, float64."""
    i = np.arange(prod(shape), dtype=np.int64)
    return torch.from_numpy(np.sin(a * ((i * i) % 9973) + b)).reshape(tuple(shape))


def ordered(names: Sequence[str], order: Sequence[str] = ()) -> list[str]:
    """Returns names in the order of a released network, whose modules may stand elsewhere.

    Args:
        names: Ours.
        order: Beginnings of names. Those that begin so come last, in this order; others keep
            their places.
    """
    return sorted(
        names, key=lambda n: next((i for i, o in enumerate(order) if n.startswith(o)), -1)
    )


def fill(network: nn.Module, a: float, b: float, order: Sequence[str] = ()) -> nn.Module:
    """Fills all weights and statistics with waves and returns the network, as float64.

    Args:
        network: Changed in place.
        a: Of the waves.
        b: Of the first tensor's wave; the k-th has b + k.
        order: Of the tensors, as for :func:`ordered`.
    """
    network.double()
    state = network.state_dict()
    norms = {name for name, module in network.named_modules() if isinstance(module, NORMS)}
    k = 0
    for name in ordered(list(state), order):
        value = state[name]
        if not value.is_floating_point():
            value.zero_()
            continue
        module, _, kind = name.rpartition(".")
        filling = 0.1 * wave(value.shape, a, b + k)
        if kind == "running_var":
            filling = 1 + filling.abs()
        elif kind == "weight" and module in norms:
            filling = 1 + filling
        value.copy_(filling)
        k += 1
    return network


def norm(gradient: Tensor) -> float:
    """Returns the Euclidean norm."""
    return float(gradient.norm())


def dot_wave(gradient: Tensor) -> float:
    """Returns the inner product with a wave, which sees signs and order."""
    return float((gradient * wave(gradient.shape, 0.9, 0.3)).sum())


def check_gradients(
    network: nn.Module,
    golden: Mapping[str, Mapping[str, float] | None],
    tolerance: float,
    order: Sequence[str] = (),
) -> None:
    """Compares the gradient of every parameter, in its place, relative to the largest norm.

    Args:
        network: After a backward pass.
        golden: Released name → "norm" and "dot_wave", in the released order; None for a
            parameter that is not trained.
        tolerance: Relative to the largest norm of the network.
        order: Of the parameters, as for :func:`ordered`.
    """
    ours = dict(network.named_parameters())
    largest = max(told["norm"] for told in golden.values() if told is not None)
    for name, (released, told) in zip(ordered(list(ours), order), golden.items(), strict=True):
        gradient = ours[name].grad
        if told is None:
            assert gradient is None, name
            continue
        assert gradient is not None, name
        for measured, told_of in ((norm, "norm"), (dot_wave, "dot_wave")):
            want = pytest.approx(told[told_of], rel=0, abs=tolerance * largest)
            assert measured(gradient) == want, (name, released)
