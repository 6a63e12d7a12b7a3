"""What the metrics are made of, against peers, definitions spelled out, and published examples."""

import warnings
from itertools import combinations
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from mibench.evaluation import UndefinedError
from mibench.evaluation.distance import nearest
from mibench.evaluation.fid import frechet_distance
from mibench.evaluation.kid import kernel_distance
from mibench.evaluation.manifold import covered, crowding, inside, radii
from mibench.evaluation.panel import agreement, fleiss_kappa
from mibench.evaluation.similarity import structural_similarity

# Fréchet distance ---------------------------------------------------------------------------


@pytest.mark.parametrize("width", [64, 512, pytest.param(2048, marks=pytest.mark.slow)])
def test_the_frechet_distance_is_that_of_pytorch_fid_at_every_width(
    width: int, rng: torch.Generator
) -> None:
    """Three times as many images as features, spread over a decade: well conditioned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("pytorch_fid.fid_score")
        scale = torch.logspace(-0.5, 0.5, width, dtype=torch.float64)
        a = torch.randn(3 * width, width, generator=rng, dtype=torch.float64) * scale
        b = torch.randn(3 * width, width, generator=rng, dtype=torch.float64) * scale.flip(0) + 0.1
        fits = [part for x in (a, b) for part in (x.mean(0).numpy(), np.cov(x.numpy().T))]
        try:
            want = peer.calculate_frechet_distance(*fits)
        except TypeError:
            pytest.skip("this SciPy has no sqrtm(disp=False), which pytorch-fid calls")
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-6)


# Kernel distance ----------------------------------------------------------------------------


def kernel(x: Tensor, y: Tensor) -> float:
    return float((x.double() @ y.double() / len(x) + 1) ** 3)


def test_the_kernel_distance_is_the_sum_over_pairs(rng: torch.Generator) -> None:
    a, b = torch.randn(7, 5, generator=rng), torch.randn(4, 5, generator=rng) + 0.5
    within = [np.mean([kernel(x, y) for x, y in combinations(rows, 2)]) for rows in (a, b)]
    between = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average(rng: torch.Generator) -> None:
    draws = [
        kernel_distance(*torch.randn(2, 6, 3, generator=rng, dtype=torch.float64).unbind())
        for _ in range(400)
    ]
    error = np.std(draws, ddof=1) / 20
    assert min(draws) < 0 < max(draws)
    assert abs(np.mean(draws)) < 4 * error


# Nearest neighbours -------------------------------------------------------------------------


def ball(x: Tensor, i: int, k: int) -> float:
    """The distance of row i to its k-th nearest other row."""
    others = [float((x[i] - x[j]).norm()) for j in range(len(x)) if j != i]
    return sorted(others)[k - 1]


def test_the_published_definitions_spelled_out(rng: torch.Generator) -> None:
    real = torch.randn(9, 2, generator=rng, dtype=torch.float64)
    found = 0.8 * torch.randn(13, 2, generator=rng, dtype=torch.float64) + 1.2

    def within(y: Tensor, x: Tensor, i: int, k: int) -> bool:
        return float((y - x[i]).norm()) <= ball(x, i, k)

    each = range(len(real))
    want_precision = np.mean([any(within(y, real, i, 3) for i in each) for y in found])
    want_recall = np.mean([any(within(x, found, j, 3) for j in range(len(found))) for x in real])
    want_density = sum(within(y, real, i, 5) for y in found for i in each) / (5 * len(found))
    want_coverage = np.mean([any(within(y, real, i, 5) for y in found) for i in each])
    assert 0 < want_precision < 1
    assert 0 < want_recall < 1
    assert 0 < want_coverage < 1
    assert inside(found, real).mean().item() == pytest.approx(100 * want_precision)
    assert inside(real, found).mean().item() == pytest.approx(100 * want_recall)
    assert crowding(found, real).mean().item() == pytest.approx(want_density)
    assert covered(real, found).mean().item() == pytest.approx(100 * want_coverage)


def test_density_averages_over_reconstructions_and_does_not_grow_with_their_number() -> None:
    real = torch.arange(7.0)[:, None]
    found = torch.tensor([[3.0]])
    once, often = crowding(found, real).mean(), crowding(found.repeat(8, 1), real).mean()
    assert once.item() == pytest.approx(7 / 5)  # the fifth neighbour of 0 and of 6 is at 5
    assert often == once


def test_copies_of_the_real_images_are_inside_and_cover_them_even_where_they_coincide() -> None:
    same = torch.ones(6, 3)
    assert radii(same, 5).tolist() == [0] * 6
    for measure in (inside, covered):
        assert measure(same, same).tolist() == [100] * 6
    assert inside(same + 1e-3, same).tolist() == [0] * 6


def test_as_many_neighbours_as_images_are_refused() -> None:
    with pytest.raises(UndefinedError, match="need more than 3 images, got 3"):
        radii(torch.zeros(3, 2), 3)


def test_the_nearest_is_of_the_same_class_though_another_is_nearer() -> None:
    real, labels = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]]), torch.tensor([1, 0, 0])
    apart, place = nearest(torch.zeros(1, 2), torch.tensor([0]), real, labels)
    assert apart.tolist() == [5.0]
    assert place.tolist() == [1]
    with pytest.raises(UndefinedError, match="class 2 has no real image"):
        nearest(torch.zeros(1, 2), torch.tensor([2]), real, labels)


# Several evaluators -------------------------------------------------------------------------

FLEISS = """
0 0 0 0 14
0 2 6 4 2
0 0 3 5 6
0 3 9 2 0
2 2 8 1 1
7 7 0 0 0
3 2 6 3 0
2 5 3 2 2
6 5 2 1 0
0 2 2 3 7
"""


def test_kappa_of_a_table_that_textbooks_work_through() -> None:
    """Ten subjects, fourteen raters, five categories: P = 0.378, P_e = 0.213, κ = 0.210."""
    counts = torch.tensor([[int(n) for n in line.split()] for line in FLEISS.split("\n") if line])
    votes = torch.stack([torch.arange(5).repeat_interleave(row) for row in counts], dim=1)
    votes = torch.nn.functional.one_hot(votes, 5).double()
    assert agreement(votes).mean().item() == pytest.approx(0.378, abs=5e-4)
    assert fleiss_kappa(votes) == pytest.approx(0.210, abs=5e-4)


def test_one_vote_for_all_is_agreement_but_no_evidence_beyond_chance() -> None:
    votes = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(3, 4, 2)
    assert agreement(votes).tolist() == [1] * 4
    with pytest.raises(UndefinedError, match="no chance to beat"):
        fleiss_kappa(votes)


def test_one_evaluator_agrees_with_nobody() -> None:
    with pytest.raises(UndefinedError, match="two or more evaluators, the setting has 1"):
        agreement(torch.ones(1, 4, 2))


# Structural similarity ----------------------------------------------------------------------


def by_windows(a: np.ndarray, b: np.ndarray, size: int) -> float:
    """The mean over all windows of Wang et al.'s Eq. (13), with sample covariances."""
    values = []
    for i in range(a.shape[0] - size + 1):
        for j in range(a.shape[1] - size + 1):
            x, y = (m[i : i + size, j : j + size].ravel() for m in (a, b))
            (vx, vxy), (_, vy) = np.cov(x, y)
            top = (2 * x.mean() * y.mean() + 1e-4) * (2 * vxy + 9e-4)
            values.append(top / ((x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize(("shape", "size"), [((1, 9, 9), 7), ((3, 8, 8), 7), ((1, 6, 5), 5)])
def test_structural_similarity_by_windows(
    shape: tuple[int, int, int], size: int, rng: torch.Generator
) -> None:
    a, b = torch.rand(2, 2, *shape, generator=rng, dtype=torch.float32)
    want = [
        np.mean([by_windows(x.double().numpy(), y.double().numpy(), size)
                 for x, y in zip(*pair, strict=True)])
        for pair in zip(a, b, strict=True)
    ]  # fmt: skip
    assert prod(shape) < 200
    assert structural_similarity(a, b).tolist() == pytest.approx(want)
    assert structural_similarity(a, a).tolist() == pytest.approx([1, 1])
