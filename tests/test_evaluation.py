"""Metrics and statistics, against closed forms, a peer and tables."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mibench.evaluation import METRICS, Evidence, Metric, summarise, t_interval
from mibench.evaluation.accuracy import topk_accuracy, topk_hits
from mibench.evaluation.fid import frechet_distance, gaussian_fit
from mibench.evaluation.metrics import stretch

# Accuracy -----------------------------------------------------------------------------------

LOGITS = torch.tensor([[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
LABELS = torch.tensor([0, 2, 0])


@pytest.mark.parametrize(("top", "hits"), [(1, [100, 0, 0]), (2, [100, 100, 0]), (3, [100] * 3)])
def test_topk_hits_by_hand(top: int, hits: list[float]) -> None:
    assert topk_hits(LOGITS, LABELS, top).tolist() == hits


def test_topk_accuracy_is_a_percentage() -> None:
    assert topk_accuracy(LOGITS, LABELS, 2) == pytest.approx(200 / 3)


def test_more_than_all_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="top-5 accuracy of 3 classes"):
        topk_accuracy(LOGITS, LABELS, 5)


# Fréchet distance ---------------------------------------------------------------------------


def with_covariance(
    mu: Tensor, basis: Tensor, variances: Tensor, n: int, rng: torch.Generator
) -> Tensor:
    """Returns n rows whose sample mean and unbiased sample covariance are exactly these."""
    x = torch.randn(n, len(mu), generator=rng, dtype=torch.float64)
    white = torch.linalg.qr(x - x.mean(0)).Q * (n - 1) ** 0.5
    rows: Tensor = mu + (white * variances.sqrt()) @ basis.T
    return rows


@pytest.fixture
def basis(rng: torch.Generator) -> Tensor:
    q: Tensor = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64)).Q
    return q


def test_the_fit_has_the_mean_and_the_unbiased_covariance(
    basis: Tensor, rng: torch.Generator
) -> None:
    mu = torch.arange(4.0).double()
    variances = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    mean, cov = gaussian_fit(with_covariance(mu, basis, variances, 30, rng))
    torch.testing.assert_close(mean, mu)
    torch.testing.assert_close(cov, basis @ torch.diag(variances) @ basis.T)


def test_the_distance_of_commuting_covariances(basis: Tensor, rng: torch.Generator) -> None:
    mu_a, mu_b = torch.zeros(4).double(), torch.tensor([1.0, -2.0, 0.0, 0.5]).double()
    a, b = (
        torch.tensor([1.0, 4.0, 9.0, 0.25]).double(),
        torch.tensor([4.0, 1.0, 9.0, 1.0]).double(),
    )
    want = 5.25 + (a.sqrt() - b.sqrt()).square().sum().item()
    rows_a = with_covariance(mu_a, basis, a, 30, rng)
    rows_b = with_covariance(mu_b, basis, b, 50, rng)
    assert frechet_distance(rows_a, rows_b) == pytest.approx(want)


def test_the_distance_of_a_shifted_copy_is_the_squared_shift(rng: torch.Generator) -> None:
    x = torch.randn(40, 3, generator=rng)
    shift = torch.tensor([1.0, -2.0, 2.0])
    assert frechet_distance(x, x + shift) == pytest.approx(9, rel=1e-5)


@pytest.mark.parametrize(("n", "m"), [(40, 60), (5, 60), (60, 5), (5, 6)])
def test_the_distance_is_symmetric(n: int, m: int, rng: torch.Generator) -> None:
    a, b = torch.randn(n, 12, generator=rng), 2 * torch.randn(m, 12, generator=rng)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


@pytest.mark.parametrize("n", [5, 12, 13, 60])
def test_the_distance_to_itself_is_zero_even_when_singular(n: int, rng: torch.Generator) -> None:
    x = torch.randn(n, 12, generator=rng)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)


def test_constant_features_are_as_far_as_the_others_spread(rng: torch.Generator) -> None:
    x = torch.randn(30, 4, generator=rng, dtype=torch.float64)
    spread = x.var(0).sum().item()
    assert frechet_distance(x, x.mean(0).expand(7, 4)) == pytest.approx(spread)


def by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """The definition, with the trace of the root from the eigenvalues of the plain product."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).astype(complex)).real.sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(shift + np.trace(cov_x) + np.trace(cov_y) - 2 * root)


@pytest.mark.parametrize(("n", "m"), [(5, 60), (60, 5), (5, 7), (12, 13)])
def test_the_distance_with_fewer_images_than_features(
    n: int, m: int, rng: torch.Generator
) -> None:
    a, b = torch.randn(n, 12, generator=rng), torch.randn(m, 12, generator=rng) + 0.3
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-5)


def test_the_distance_is_that_of_pytorch_fid(rng: torch.Generator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("pytorch_fid.fid_score")
        mix = torch.randn(16, 16, generator=rng)
        a = torch.randn(80, 16, generator=rng) @ mix
        b = torch.randn(50, 16, generator=rng) * 2 + 1
        fits = [
            part
            for rows in (a.double().numpy(), b.double().numpy())
            for part in (rows.mean(0), np.cov(rows, rowvar=False))
        ]
        try:
            want = peer.calculate_frechet_distance(*fits)
        except TypeError:
            pytest.skip("this SciPy has no sqrtm(disp=False), which pytorch-fid calls")
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-9)


def test_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more rows of one width"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_features_that_are_not_finite_are_no_distance_of_zero(rng: torch.Generator) -> None:
    x = torch.randn(20, 3, generator=rng)
    broken = x.clone()
    broken[0, 0] = float("nan")
    with pytest.raises((ValueError, RuntimeError, FloatingPointError)):
        frechet_distance(broken, x)


# Stretching ---------------------------------------------------------------------------------


def test_stretch_moves_each_image_to_the_full_range_by_itself(rng: torch.Generator) -> None:
    x = torch.rand(3, 2, 4, 4, generator=rng) * torch.tensor([1.0, 0.5, 0.1])[:, None, None, None]
    y = stretch(x)
    assert y.amin((1, 2, 3)).tolist() == [0.0] * 3
    assert y.amax((1, 2, 3)).tolist() == [1.0] * 3
    want = (x[1] - x[1].min()) / (x[1].max() - x[1].min())
    torch.testing.assert_close(y[1], want)


def test_stretch_makes_a_constant_image_black() -> None:
    assert stretch(torch.full((1, 1, 2, 2), 0.7)).count_nonzero() == 0


# Summaries ----------------------------------------------------------------------------------


def evidence(hits: Sequence[Sequence[int]], blocks: Sequence[int]) -> Evidence:
    """Returns evidence in which ``hits[pass][class]`` says what the evaluator recognised."""
    passes, classes = len(hits), len(blocks)
    labels = torch.arange(classes).repeat(passes)
    right = torch.tensor(hits).flatten().bool()
    guess = torch.where(right, labels, (labels + 1) % classes)
    n = len(labels)
    return Evidence(
        labels=labels,
        block=torch.tensor(blocks).repeat(passes),
        passes=torch.arange(passes).repeat_interleave(classes),
        logits=torch.nn.functional.one_hot(guess, max(classes, 5)).float(),
        features=torch.arange(2.0 * n).view(n, 2),
        real=torch.zeros(3, 2),
        test_logits=LOGITS,
        test_labels=LABELS,
    )


# Block 0 (classes 0, 1): passes give 100, 50, 0 %. Block 1 (class 2): 0, 100, 100 %.
HITS = [[1, 1, 0], [1, 0, 1], [0, 0, 1]]
ACC = METRICS["attack_acc"]


def test_spread_by_block_averages_mean_and_deviation_over_the_blocks() -> None:
    """As released: per block the mean and the sample deviation over passes, then means."""
    score = summarise(ACC, [evidence(HITS, [0, 0, 1])], "block")
    second = (100 * 100 / 3) ** 0.5  # of 0, 100, 100
    assert score.mean == pytest.approx((50 + 200 / 3) / 2)
    assert score.std == pytest.approx((50 + second) / 2)
    assert score.n == 9


def test_spread_by_pass_takes_all_classes_together() -> None:
    score = summarise(ACC, [evidence(HITS, [0, 0, 1])], "pass")
    assert score.mean == pytest.approx(500 / 9)  # passes give 200/3, 200/3, 100/3
    assert score.std == pytest.approx(100 / 3 / 3**0.5)


@pytest.mark.parametrize("spread", ["block", "pass"])
def test_repeats_of_the_attack_are_averaged(spread: str) -> None:
    trials = [evidence(HITS, [0, 0, 0]), evidence([[1, 1, 1]] * 3, [0, 0, 0])]
    score = summarise(ACC, trials, "block" if spread == "block" else "pass")
    assert score.mean == pytest.approx((500 / 9 + 100) / 2)
    assert score.std == pytest.approx(100 / 3 / 3**0.5 / 2)
    assert score.n == 18


def test_one_pass_has_no_spread() -> None:
    assert summarise(ACC, [evidence([[1, 0, 1]], [0, 0, 0])], "pass").std is None


def test_a_value_of_the_whole_spreads_over_repeats() -> None:
    values = iter([1.0, 4.0])
    metric = Metric("m", "M", lambda e: next(values), per="attack", better="lower")
    score = summarise(metric, [evidence(HITS, [0, 0, 1])] * 2, "pass")
    assert (score.mean, score.n) == (2.5, 2)
    assert score.std == pytest.approx(3 / 2**0.5)


def test_a_value_of_the_target_does_not_spread_over_repeats_of_the_attack() -> None:
    metric = Metric("m", "M", lambda e: 5.0, per="target", better="higher")
    score = summarise(metric, [evidence(HITS, [0, 0, 1])] * 3, "pass")
    assert (score.mean, score.std, score.n) == (5.0, None, 1)


def test_a_value_of_the_whole_has_no_spread_over_one_attack() -> None:
    assert summarise(METRICS["fid"], [evidence(HITS, [0, 0, 1])], "block").std is None


def test_every_metric_reads_its_own_part_of_the_evidence() -> None:
    e = evidence(HITS, [0, 0, 1])
    means = {name: summarise(m, [e], "pass").mean for name, m in METRICS.items()}
    assert means["accuracy"] == pytest.approx(100 / 3)
    assert means["attack_acc"] == pytest.approx(500 / 9)
    assert means["attack_acc5"] == 100
    assert means["fid"] == pytest.approx(frechet_distance(e.features, e.real))


# Intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "quantile"), [(3, 4.302653), (5, 2.776445)])
def test_the_interval_uses_students_table(n: int, quantile: float) -> None:
    values = [float(i) for i in range(n)]
    deviation = np.std(values, ddof=1)
    assert t_interval(values) == pytest.approx(quantile * deviation / n**0.5, rel=1e-6)


def test_an_interval_needs_two_values() -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        t_interval([1.0])
