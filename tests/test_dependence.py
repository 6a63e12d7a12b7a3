"""Kernels and measures of dependence, against closed forms and a float64 NumPy oracle."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mibench.defenses.dependence import (
    MEASURES,
    center,
    coco,
    coco_frobenius,
    gaussian_kernel,
    hsic,
    imq_kernel,
    kcca,
    linear_kernel,
    measure,
    median_kernel,
    nhsic,
    squared_distances,
)

Array = npt.NDArray[np.float64]
every_measure = pytest.mark.parametrize("name", MEASURES)


# The oracle: definitions, written as they are printed ---------------------------------------


def centering(n: int) -> Array:
    return np.eye(n) - np.ones((n, n)) / n


def distances(x: Array) -> Array:
    gaps: Array = ((x[:, None] - x[None]) ** 2).sum(2)
    return gaps


def gaussian(x: Array) -> Array:
    K: Array = np.exp(-distances(x) / (2 * 25 * x.shape[1]))
    return K


def oracle_hsic(K: Array, L: Array) -> float:
    H = centering(len(K))
    return float(np.trace(K @ H @ L @ H)) / (len(K) - 1) ** 2


def oracle_nhsic(K: Array, L: Array) -> float:
    m = len(K)

    def shrink(G: Array) -> Array:
        one_sided = G @ centering(m)
        R: Array = one_sided @ np.linalg.inv(one_sided + 1e-5 * m * np.eye(m))
        return R

    return float((shrink(K) * shrink(L).T).sum())


def oracle_product(K: Array, L: Array) -> Array:
    H = centering(len(K))
    product: Array = H @ K @ H @ H @ L @ H
    return product


def oracle_coco(K: Array, L: Array) -> float:
    return float(np.sqrt(np.linalg.norm(oracle_product(K, L), 2))) / len(K)


def oracle_coco_frobenius(K: Array, L: Array) -> float:
    return float(np.sqrt(np.linalg.norm(oracle_product(K, L), "fro"))) / len(K)


def oracle_kcca(K: Array, L: Array) -> float:
    m = len(K)

    def shrink(G: Array) -> Array:
        centred = centering(m) @ G @ centering(m)
        R: Array = np.linalg.inv(centred + m * 0.02 / 2 * np.eye(m)) @ centred
        return R

    return float(np.linalg.norm(shrink(K) @ shrink(L).T, 2))


ORACLES: dict[str, Callable[[Array, Array], float]] = {
    "hsic": oracle_hsic,
    "nhsic": oracle_nhsic,
    "coco": oracle_coco,
    "coco_frobenius": oracle_coco_frobenius,
    "kcca": oracle_kcca,
}


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.randn(20, 6, generator=rng, dtype=torch.float64)


@pytest.fixture
def labels() -> Tensor:
    return torch.nn.functional.one_hot(torch.arange(20) % 4).double()


# Kernels ------------------------------------------------------------------------------------


def test_center_is_HKH(rng: torch.Generator) -> None:
    K = torch.rand(7, 7, generator=rng, dtype=torch.float64)
    H = torch.eye(7) - torch.ones(7, 7, dtype=torch.float64) / 7
    torch.testing.assert_close(center(K), H @ K @ H)


def test_center_treats_a_stack_matrix_by_matrix(rng: torch.Generator) -> None:
    K = torch.rand(3, 5, 5, generator=rng)
    torch.testing.assert_close(center(K), torch.stack([center(k) for k in K]))


def test_gaussian_kernel_at_a_known_distance() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # 25 apart, squared; sigma^2 = 25 * 2
    K = gaussian_kernel([x])[0]
    torch.testing.assert_close(K[0, 1].item(), float(np.exp(-25 / 100)))
    assert K.diagonal().tolist() == [1.0, 1.0]


def test_gaussian_kernel_is_computed_in_float64() -> None:
    assert gaussian_kernel([torch.zeros(2, 2)])[0].dtype == torch.float64


def test_linear_kernel_of_one_hot_labels_marks_equal_labels() -> None:
    y = torch.tensor([0, 1, 0])
    K = linear_kernel([torch.nn.functional.one_hot(y).float()])[0]
    assert torch.equal(K, (y[:, None] == y[None]).double())


def spread_out(kind: str) -> Array:
    draw = np.random.default_rng(0)
    if kind == "nearly equal rows":
        return 1 + 1e-3 * draw.standard_normal((12, 30))
    if kind == "one feature":
        return draw.standard_normal((12, 1))
    if kind == "duplicated rows":
        return draw.standard_normal((6, 30)).repeat(2, axis=0)
    if kind == "many features":
        return draw.standard_normal((12, 12_544))
    return 1e3 + draw.standard_normal((12, 30))


KINDS = ["nearly equal rows", "one feature", "duplicated rows", "many features", "far from 0"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squared_distances_are_true_to_a_millionth_of_the_largest(
    kind: str, dtype: torch.dtype
) -> None:
    x = torch.from_numpy(spread_out(kind)).to(dtype)
    want = distances(x.double().numpy())
    error = np.abs(squared_distances([x])[0].numpy() - want).max()
    assert error <= 1e-6 * want.max()


@pytest.mark.parametrize("kind", KINDS)
def test_squared_distances_are_zero_on_the_diagonal_and_never_negative(kind: str) -> None:
    D = squared_distances([torch.from_numpy(spread_out(kind)).float()])[0]
    assert D.diagonal().count_nonzero() == 0
    assert D.min() >= 0


# HSIC ---------------------------------------------------------------------------------------


def test_hsic_of_linear_kernels_is_squared_cross_covariance(x: Tensor, labels: Tensor) -> None:
    cross = (x - x.mean(0)).T @ (labels - labels.mean(0))
    got = hsic(linear_kernel([x])[0], linear_kernel([labels])[0])
    torch.testing.assert_close(got, cross.square().sum() / 19**2)


# Three points of probability 1/2, 1/4, 1/4 are four equally likely rows, the first one twice.
POINTS_X = np.array([[0.0, 1.0], [2.0, -1.0], [5.0, 3.0]])
POINTS_Y = np.array([[1.0], [0.5], [-2.0]])
CHANCE = np.array([0.5, 0.25, 0.25])
ROWS = [0, 0, 1, 2]


def test_hsic_is_the_cross_covariance_norm_of_a_three_point_distribution() -> None:
    """Eq. (3), with linear kernels; the estimator divides by (n - 1)^2 instead of n^2."""
    mean_x, mean_y = CHANCE @ POINTS_X, CHANCE @ POINTS_Y
    cross = np.einsum("p,pi,pj->ij", CHANCE, POINTS_X - mean_x, POINTS_Y - mean_y)
    K, L = (linear_kernel([torch.from_numpy(points[ROWS])])[0] for points in (POINTS_X, POINTS_Y))
    assert hsic(K, L).item() * 9 / 16 == pytest.approx((cross**2).sum())


def test_hsic_is_the_expectation_over_a_three_point_distribution() -> None:
    """Eq. (4): E[kl] + E[k]E[l] - 2 E[E[k]E[l]], by loops over outcomes."""
    k, l_ = gaussian(POINTS_X), gaussian(POINTS_Y)
    both = sum(CHANCE[i] * CHANCE[j] * k[i, j] * l_[i, j] for i in range(3) for j in range(3))
    apart = (CHANCE @ k @ CHANCE) * (CHANCE @ l_ @ CHANCE)
    mixed = sum(CHANCE[i] * (k[i] @ CHANCE) * (l_[i] @ CHANCE) for i in range(3))
    K, L = (
        gaussian_kernel([torch.from_numpy(points[ROWS])])[0] for points in (POINTS_X, POINTS_Y)
    )
    assert hsic(K, L).item() * 9 / 16 == pytest.approx(both + apart - 2 * mixed)


# Normalised HSIC ----------------------------------------------------------------------------


def test_nhsic_is_the_released_definition(x: Tensor, labels: Tensor) -> None:
    """One-sided centring and an explicit inverse give the same trace."""
    want = oracle_nhsic(gaussian(x.numpy()), (labels @ labels.T).numpy())
    assert nhsic(gaussian_kernel([x])[0], linear_kernel([labels])[0]).item() == pytest.approx(want)


def test_nhsic_is_its_eigenvalue_form(x: Tensor, labels: Tensor) -> None:
    ridge = 1e-5 * 20
    (a, u), (b, v) = (
        torch.linalg.eigh(center(K)) for K in (gaussian_kernel([x])[0], linear_kernel([labels])[0])
    )
    want = (a / (a + ridge)) @ (u.T @ v).square() @ (b / (b + ridge))
    got = nhsic(gaussian_kernel([x])[0], linear_kernel([labels])[0])
    torch.testing.assert_close(got, want)


def test_nhsic_of_labels_with_themselves_is_almost_their_rank(labels: Tensor) -> None:
    """Four classes of five: three centred eigenvalues of 5 each, shrunk by 5 / (5 + 20e-5)."""
    L = linear_kernel([labels])[0]
    assert nhsic(L, L).item() == pytest.approx(3 * (5 / (5 + 2e-4)) ** 2)


def test_nhsic_is_at_most_the_smaller_rank(x: Tensor, labels: Tensor) -> None:
    value = nhsic(gaussian_kernel([x], scale=0.1)[0], linear_kernel([labels])[0]).item()
    assert 2.9 < value <= 3


def test_a_larger_epsilon_shrinks_nhsic(x: Tensor, labels: Tensor) -> None:
    K, L = gaussian_kernel([x])[0], linear_kernel([labels])[0]
    assert nhsic(K, L, epsilon=1e-2) < nhsic(K, L)


# COCO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [coco, coco_frobenius])
def test_coco_of_rank_one_kernels(
    measure: Callable[[Tensor, Tensor], Tensor], rng: torch.Generator
) -> None:
    a, b = torch.randn(2, 9, generator=rng, dtype=torch.float64)
    got = measure(a[:, None] * a, b[:, None] * b)
    a, b = a - a.mean(), b - b.mean()
    torch.testing.assert_close(got, (a.norm() * b.norm() * (a @ b).abs()).sqrt() / 9)


def test_coco_takes_the_largest_singular_value(x: Tensor) -> None:
    K = gaussian_kernel([x])[0]
    torch.testing.assert_close(coco(K, K), torch.linalg.eigvalsh(center(K)).max() / 20)


def test_coco_frobenius_takes_all_singular_values(x: Tensor) -> None:
    K = gaussian_kernel([x])[0]
    fourth = torch.linalg.eigvalsh(center(K)).pow(4).sum()
    torch.testing.assert_close(coco_frobenius(K, K), fourth.pow(0.25) / 20)


# Every measure ------------------------------------------------------------------------------


@every_measure
@pytest.mark.parametrize("level", [0.0, 0.3, 100.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_input_has_no_dependence_and_no_gradient(
    name: str, level: float, dtype: torch.dtype, labels: Tensor
) -> None:
    x = torch.full((20, 6), level, dtype=dtype, requires_grad=True)
    value = MEASURES[name](gaussian_kernel([x])[0], linear_kernel([labels])[0])
    (slope,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-6, rtol=0)


@every_measure
def test_constant_labels_give_no_dependence_and_no_gradient(name: str, x: Tensor) -> None:
    x.requires_grad_()
    y = torch.nn.functional.one_hot(torch.zeros(20, dtype=torch.long), 4)
    value = MEASURES[name](gaussian_kernel([x])[0], linear_kernel([y.float()])[0])
    (slope,) = torch.autograd.grad(value, x)
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


@every_measure
def test_the_order_of_the_rows_does_not_matter(
    name: str, x: Tensor, labels: Tensor, rng: torch.Generator
) -> None:
    order = torch.randperm(20, generator=rng)
    d = MEASURES[name]
    a = d(gaussian_kernel([x])[0], linear_kernel([labels])[0])
    b = d(gaussian_kernel([x[order]])[0], linear_kernel([labels[order]])[0])
    torch.testing.assert_close(a, b)


@every_measure
def test_shuffled_labels_lower_the_dependence(
    name: str, labels: Tensor, rng: torch.Generator
) -> None:
    noise = torch.randn(20, 6, generator=rng, dtype=torch.float64)
    x = labels @ torch.randn(4, 6, generator=rng, dtype=torch.float64) + 0.1 * noise
    shuffled = labels[torch.randperm(20, generator=rng)]
    d = MEASURES[name]
    K = gaussian_kernel([x])[0]
    assert d(K, linear_kernel([shuffled])[0]) < d(K, linear_kernel([labels])[0])


@every_measure
def test_the_measure_is_symmetric(name: str, x: Tensor, labels: Tensor) -> None:
    K, L = gaussian_kernel([x])[0], linear_kernel([labels])[0]
    torch.testing.assert_close(MEASURES[name](K, L), MEASURES[name](L, K))


@every_measure
def test_a_stack_of_kernels_gives_what_a_loop_gives(name: str, x: Tensor, labels: Tensor) -> None:
    K = torch.stack([gaussian_kernel([x], scale)[0] for scale in (0.5, 1.0, 5.0)])
    L = linear_kernel([labels])[0]
    d = MEASURES[name]
    torch.testing.assert_close(d(K, L), torch.stack([d(k, L) for k in K]))
    torch.testing.assert_close(d(L, K), torch.stack([d(L, k) for k in K]))


@every_measure
def test_the_gradient_is_that_of_finite_differences(name: str, rng: torch.Generator) -> None:
    x = torch.randn(5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    L = linear_kernel([torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1]])])[0]

    def value(x: Tensor) -> Tensor:
        return MEASURES[name](gaussian_kernel([x], scale=0.5)[0], L)

    assert torch.autograd.gradcheck(value, (x,), atol=1e-8, rtol=1e-5)


@every_measure
def test_a_single_sample_is_refused(name: str) -> None:
    K = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        MEASURES[name](K, K)


@every_measure
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    n=st.integers(2, 16),
    d=st.integers(1, 24),
    classes=st.integers(1, 5),
    size=st.sampled_from([0.01, 1.0, 10.0]),
    jitter=st.sampled_from([None, 0.0, 1e-4, 1e-2, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
@example(n=14, d=2, classes=5, size=10.0, jitter=1e-2, dtype=torch.float32, seed=2)
def test_every_measure_equals_the_float64_oracle(
    name: str, n: int, d: int, classes: int, size: float, jitter: float | None,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((n, d))
    if jitter is not None:  # rows that repeat a few, nearly
        rows = rows[draw.integers(0, max(1, n // 3), n)] + jitter * rows
    x = torch.from_numpy(size * rows).to(dtype)
    y = np.eye(5)[draw.integers(0, classes, n)]
    got = MEASURES[name](
        gaussian_kernel([x])[0], linear_kernel([torch.from_numpy(y).to(dtype)])[0]
    )
    want = ORACLES[name](gaussian(x.double().numpy()), y @ y.T)
    assert got.item() == pytest.approx(want, rel=1e-5, abs=1e-8)


@every_measure
@pytest.mark.parametrize("size", [10.0, 1e3, 1e4])
def test_large_float32_activations_in_clusters_do_not_break_a_measure(
    name: str, size: float, rng: torch.Generator
) -> None:
    """A network that memorises its classes looks so: few far points, each many times."""
    label = torch.arange(64) % 4
    noise = torch.randn(64, 100, generator=rng) / 2
    x = size * torch.randn(4, 100, generator=rng)[label] + noise
    y = torch.nn.functional.one_hot(label).float()
    got = MEASURES[name](gaussian_kernel([x])[0], linear_kernel([y])[0])
    want = ORACLES[name](gaussian(x.double().numpy()), (y @ y.T).double().numpy())
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_kcca_of_linear_kernels_is_the_canonical_correlation(rng: torch.Generator) -> None:
    x = torch.randn(60, 3, generator=rng, dtype=torch.float64)
    y = x[:, :2] @ torch.randn(2, 2, generator=rng, dtype=torch.float64)
    y = y + torch.randn(60, 2, generator=rng, dtype=torch.float64)
    (q_x, _), (q_y, _) = (torch.linalg.qr(a - a.mean(0)) for a in (x, y))
    want = torch.linalg.matrix_norm(q_x.T @ q_y, ord=2)
    got = kcca(linear_kernel([x])[0], linear_kernel([y])[0], 1e-9)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)


def test_kcca_is_the_largest_ratio_of_its_definition(rng: torch.Generator) -> None:
    K, L = (gaussian_kernel([torch.randn(6, 2, generator=rng)])[0] for _ in range(2))
    c = 0.02 * 6 / 2 * torch.eye(6)
    K_c, L_c = center(K), center(L)
    a, b = (torch.randn(6, 500, generator=rng, dtype=torch.float64) for _ in range(2))
    ratio = ((a * (K_c @ L_c @ b)).sum(0)) / (
        ((K_c + c) @ a).norm(dim=0) * ((L_c + c) @ b).norm(dim=0)
    )
    bound = kcca(K, L)
    assert ratio.abs().max() <= bound
    u, _, v = torch.linalg.svd(
        torch.linalg.solve(K_c + c, K_c) @ torch.linalg.solve(L_c + c, L_c).T
    )
    best_a, best_b = torch.linalg.solve(K_c + c, u[:, 0]), torch.linalg.solve(L_c + c, v[0])
    top = best_a @ K_c @ L_c @ best_b / (((K_c + c) @ best_a).norm() * ((L_c + c) @ best_b).norm())
    torch.testing.assert_close(top.abs(), bound)


def test_the_median_kernel_is_exp_minus_one_at_the_median_distance() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4, 9
    K = median_kernel([x])[0]
    torch.testing.assert_close(K[1, 2], torch.tensor(-1.0, dtype=torch.float64).exp())
    torch.testing.assert_close(K[0, 2], torch.tensor(-9 / 4, dtype=torch.float64).exp())
    assert torch.equal(median_kernel([torch.ones(4, 2)])[0], torch.ones(4, 4, dtype=torch.float64))


def test_the_imq_kernel_at_a_known_distance() -> None:
    K = imq_kernel([torch.tensor([[0.0, 0.0], [3.0, 4.0]])])[0]
    torch.testing.assert_close(K[0, 1], torch.tensor(26.0, dtype=torch.float64).rsqrt())
    assert K[0, 0] == 1


def test_a_ridge_reaches_the_measures_that_have_one(rng: torch.Generator) -> None:
    K, L = (gaussian_kernel([torch.randn(6, 2, generator=rng)])[0] for _ in range(2))
    assert torch.equal(measure("nhsic", 0.1)(K, L), nhsic(K, L, 0.1))
    assert torch.equal(measure("kcca", 0.1)(K, L), kcca(K, L, 0.1))
    assert torch.equal(measure("hsic", 0.1)(K, L), hsic(K, L))


@pytest.mark.parametrize("name", MEASURES)
def test_a_diverged_latent_is_not_taken_for_independence(name: str, rng: torch.Generator) -> None:
    x = torch.randn(6, 3, generator=rng)
    K, L = (gaussian_kernel([v])[0] for v in (x, torch.full((6, 3), torch.nan)))
    if name in ("coco", "kcca"):  # torch has no singular values of what is not finite
        with pytest.raises(RuntimeError, match="linalg"):
            MEASURES[name](K, L)
    else:
        assert MEASURES[name](K, L).isnan()
