"""Metrics and statistics, against closed forms, a peer and tables."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mibench.benchmarks.tables import TABLES
from mibench.data import Blobs
from mibench.evaluation import (
    METRICS,
    Compared,
    Evidence,
    Lens,
    Metric,
    summarise,
)
from mibench.evaluation.accuracy import topk_accuracy, topk_hits
from mibench.evaluation.fid import (
    fid_floor,
    fid_identity,
    fid_identity_floor,
    frechet_distance,
    frechet_distance_of_few,
    gaussian_fit,
)
from mibench.evaluation.lenses import EVALUATOR, STRETCHED, stretch
from mibench.evaluation.statistics import Spread
from mibench.running.stages import record_stage
from mibench.seeding import seeded
from mibench.store import Work
from mibench.types import predict

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


ROUTES = pytest.mark.parametrize("route", [frechet_distance, frechet_distance_of_few])
Route = Callable[[Tensor, Tensor], float]


@ROUTES
def test_a_single_image_is_refused(route: Route) -> None:
    with pytest.raises(ValueError, match="two or more rows of one width"):
        route(torch.zeros(1, 3), torch.zeros(5, 3))


@ROUTES
def test_features_that_are_not_finite_are_no_distance_of_zero(
    route: Route, rng: torch.Generator
) -> None:
    x = torch.randn(20, 3, generator=rng)
    broken = x.clone()
    broken[0, 0] = float("nan")
    for pair in ((broken, x), (x, broken)):
        with pytest.raises(FloatingPointError, match="a feature is not finite"):
            route(*pair)


def by_square_root(a: Tensor, b: Tensor) -> float:
    """The definition, with SciPy's root of the product of the covariances."""
    linalg = pytest.importorskip("scipy.linalg")
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    root = linalg.sqrtm(cov_x @ cov_y).real
    return float(shift + np.trace(cov_x + cov_y - 2 * root))


@pytest.mark.parametrize(("n", "m"), [(5, 60), (60, 5), (5, 7), (12, 13), (2, 2), (60, 40)])
def test_the_distance_by_way_of_the_images_is_the_same(
    n: int, m: int, rng: torch.Generator
) -> None:
    a, b = torch.randn(n, 12, generator=rng), 2 * torch.randn(m, 12, generator=rng) + 0.3
    assert frechet_distance_of_few(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-5)
    assert frechet_distance_of_few(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_the_distance_by_way_of_the_images_is_that_of_the_matrix_root(
    rng: torch.Generator,
) -> None:
    a, b = torch.randn(60, 12, generator=rng), 2 * torch.randn(40, 12, generator=rng) + 0.3
    assert frechet_distance_of_few(a, b) == pytest.approx(by_square_root(a, b), rel=1e-9)


def test_few_images_are_at_no_distance_from_themselves_and_their_order(
    rng: torch.Generator,
) -> None:
    x = torch.randn(6, 300, generator=rng)
    assert frechet_distance_of_few(x, x.flip(0)) == pytest.approx(0, abs=1e-9)


def test_few_images_in_orthogonal_directions_are_as_far_as_both_spread() -> None:
    a, b = torch.zeros(3, 500), torch.zeros(4, 500)
    a[:, 7] = torch.tensor([-1.0, 0.0, 1.0])  # variance 1
    b[:, 400] = torch.tensor([-3.0, 3.0, -3.0, 3.0])  # variance 12
    assert frechet_distance_of_few(a, b + 1) == pytest.approx(500 + 1 + 12)


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


def seen(reconstructed: Tensor, real: Tensor) -> dict[Lens, Compared]:
    return {EVALUATOR: Compared(reconstructed, real)}


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
        features=seen(
            torch.arange(2.0 * n).view(n, 2),
            torch.arange(8.0 * classes).view(4 * classes, 2).square(),
        ),
        real_labels=torch.arange(classes).repeat_interleave(4),
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


def test_spread_by_identity_averages_passes_and_takes_classes_apart() -> None:
    score = summarise(ACC, [evidence(HITS, [0, 0, 1])], "identity")
    each = [200 / 3, 100 / 3, 200 / 3]  # of the classes; the blocks make no difference
    assert score.mean == pytest.approx(np.mean(each))
    assert score.std == pytest.approx(np.std(each, ddof=1))
    assert score.n == 9
    acc5 = summarise(METRICS["attack_acc5"], [evidence(HITS, [0, 0, 1])], "identity")
    assert (acc5.mean, acc5.std) == (100, 0)


def test_one_identity_has_no_spread_over_identities() -> None:
    assert summarise(ACC, [evidence([[1], [0]], [0])], "identity").std is None


@pytest.mark.parametrize("spread", ["block", "pass", "identity"])
def test_a_value_per_identity_spreads_over_identities(spread: Spread) -> None:
    values = iter([torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0, 3.0, 3.0])])
    metric = Metric("m", "M", lambda e: next(values), per="identity", better="higher")
    score = summarise(metric, [evidence(HITS, [0, 0, 1])] * 2, spread)
    assert score.mean == pytest.approx(3)
    assert score.std == pytest.approx(7**0.5 / 2)
    assert score.n == 6


@pytest.mark.parametrize("spread", ["block", "pass"])
def test_repeats_of_the_attack_are_averaged(spread: Spread) -> None:
    trials = [evidence(HITS, [0, 0, 0]), evidence([[1, 1, 1]] * 3, [0, 0, 0])]
    score = summarise(ACC, trials, spread)
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


# FID per identity ---------------------------------------------------------------------------

CLASSES = 3


@pytest.fixture
def faces(rng: torch.Generator) -> Evidence:
    """Forty reconstructions and about as many real images of each of three classes."""
    centres = torch.randn(CLASSES, 6, generator=rng)
    labels = torch.arange(CLASSES).repeat(40)
    real_labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([41, 30, 50]))
    return replace(
        evidence([[1] * CLASSES] * 40, [0] * CLASSES),
        features=seen(
            centres[labels] + torch.randn(len(labels), 6, generator=rng),
            2 * centres[real_labels] + torch.randn(len(real_labels), 6, generator=rng),
        ),
        real_labels=real_labels,
    )


def units(x: Tensor) -> Tensor:
    rows: Tensor = x.double() / x.double().square().sum(1, keepdim=True).sqrt()
    return rows


def test_the_fid_of_an_identity_compares_its_images_on_the_unit_sphere(faces: Evidence) -> None:
    reconstructed, real = faces.through(EVALUATOR)
    want = [
        by_square_root(
            units(reconstructed[faces.labels == c]), units(real[faces.real_labels == c])
        )
        for c in range(CLASSES)
    ]
    assert fid_identity(faces).tolist() == pytest.approx(want, rel=1e-9)


def test_the_floor_compares_every_other_real_image(faces: Evidence) -> None:
    reconstructed, real = faces.through(EVALUATOR)
    rows = [units(real[faces.real_labels == c]) for c in range(CLASSES)]
    want = [by_square_root(x[0::2], x[1::2]) for x in rows]
    assert fid_identity_floor(faces).tolist() == pytest.approx(want, rel=1e-9)
    other = replace(faces, features=seen(reconstructed.flip(0), real))
    assert torch.equal(fid_identity_floor(other), fid_identity_floor(faces))


def test_both_halves_of_the_real_images_have_as_many_of_each_class() -> None:
    e = evidence([[1, 1]], [0, 0])
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 2, 2])
    real = torch.tensor([5.0, 0, 7, 1, 9, 100, 20, 30])[:, None]  # without 9 and 100
    some = replace(e, features=seen(torch.zeros(2, 1), real), real_labels=labels)
    first, second = torch.tensor([0.0, 5, 20])[:, None], torch.tensor([1.0, 7, 30])[:, None]
    assert fid_floor(some) == pytest.approx(frechet_distance(first, second))
    labels[-1] = 3
    with pytest.raises(ValueError, match="halves of class 2 need two or more real images, got 1"):
        fid_floor(replace(some, real_labels=labels))


def test_the_fid_per_identity_knows_no_length_and_no_order(
    faces: Evidence, rng: torch.Generator
) -> None:
    reconstructed, real = faces.through(EVALUATOR)
    order = torch.randperm(len(real), generator=rng)
    scale = 0.1 + torch.rand(len(order), 1, generator=rng)
    features = seen(reconstructed, (real * scale)[order])
    mixed = replace(faces, features=features, real_labels=faces.real_labels[order])
    torch.testing.assert_close(fid_identity(mixed), fid_identity(faces), rtol=1e-5, atol=0)


def test_opposite_points_are_at_the_greatest_distance(faces: Evidence) -> None:
    """Classes keep their order: only the second has its images at the other pole."""
    pole = torch.eye(6)[0]
    sign = 1 - 2 * (faces.real_labels == 1).float()
    poles = seen(pole.repeat(len(faces.labels), 1), sign[:, None] * pole)
    e = replace(faces, features=poles)
    assert fid_identity(e).tolist() == pytest.approx([0, 4, 0])


@pytest.mark.parametrize(("kept", "sentence"), [
    (0, "class 1 needs two or more reconstructions and real images, got 40 and 0"),
    (1, "class 1 needs two or more reconstructions and real images, got 40 and 1"),
])  # fmt: skip
def test_an_identity_with_too_few_real_images_is_no_distance_of_zero(
    faces: Evidence, kept: int, sentence: str
) -> None:
    keep = (faces.real_labels != 1) | ((faces.real_labels == 1).cumsum(0) <= kept)
    reconstructed, real = faces.through(EVALUATOR)
    few = replace(
        faces, features=seen(reconstructed, real[keep]), real_labels=faces.real_labels[keep]
    )
    with pytest.raises(ValueError, match=sentence):
        fid_identity(few)
    with pytest.raises(ValueError, match=f"class 1 need four or more real images, got {kept}"):
        fid_identity_floor(few)


def test_the_floor_needs_four_real_images_and_an_identity_two_reconstructions() -> None:
    e = evidence([[1, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"class 0 needs two or more .* got 1 and 4"):
        fid_identity(e)
    assert fid_identity_floor(e).shape == (2,)
    reconstructed, real = e.through(EVALUATOR)
    few = replace(e, features=seen(reconstructed, real[:-1]), real_labels=e.real_labels[:-1])
    with pytest.raises(ValueError, match="class 1 need four or more real images, got 3"):
        fid_identity_floor(few)


# What the real images are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "real"), [("train", 3), ("train", 100), ("all", 6), ("all", 100)]
)
def test_the_evidence_has_the_first_real_images_of_each_attacked_class_with_their_labels(
    part: str, real: int, rng: torch.Generator
) -> None:
    """Four train images and four test images of each class; "all" takes train before test."""
    cell = TABLES["smoke"].modified(
        [
            "trials.classes=3", "trials.samples=2", "trials.block=2", f"protocol.real={real}",
            f"protocol.real_part={part}",
        ]
    ).rows["GMI / No Def."]  # fmt: skip
    cell = replace(cell, setting=replace(cell.setting, task=Blobs(num_classes=4, per_class=4)))
    last = record_stage(cell, ["fid_identity"], "drawn")
    stage = last.evidence[0]
    images = stage.images.compute(lambda _: {}, Work())
    splits = stage.images.splits(lambda _: images)
    classifiers = {}
    for made in (stage.evaluator, stage.inversion.target.trained):
        classes = getattr(splits, made.part).num_classes
        with seeded("tests"):
            network = made.network.build(cell.setting.task.shape, classes)
        classifiers[made.key] = {"state": network.state_dict(), "num_classes": classes}
    drawn = torch.rand(2, 3, *cell.setting.task.shape, generator=rng)
    known = {stage.images.key: images, stage.inversion.key: {"images": drawn}, **classifiers}
    payload = stage.compute(lambda needed: known[needed.key], Work())
    e = stage.evidence(lambda _: payload)

    owned = [splits.private.train, splits.private.test][: 2 if part == "all" else 1]
    files = [torch.cat([x.images[x.labels == c] for x in owned])[:real] for c in range(3)]
    counts = [len(x) for x in files]
    assert counts == [min(real, 4 * len(owned))] * 3
    assert e.real_labels.tolist() == [c for c in range(3) for _ in range(counts[c])]
    evaluator = stage.evaluator.classifier(
        lambda _: classifiers[stage.evaluator.key], Work().device
    )
    shown = torch.cat(files)
    torch.testing.assert_close(e.through(EVALUATOR).real, predict(evaluator, shown, rng)[1])
    stretched = predict(evaluator, stretch(shown), rng)[1]
    torch.testing.assert_close(e.through(STRETCHED).real, stretched)
    assert METRICS["fid_identity"].compute(e).shape == (3,)  # type: ignore[union-attr]
