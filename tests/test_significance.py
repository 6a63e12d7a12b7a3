"""Intervals and tests, against SciPy, by hand, and by simulation at the shapes of tables."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mibench.evaluation.significance import (
    Interval,
    holm,
    identity_interval,
    interval,
    paired,
    power,
    seeds_needed,
    smallest_difference,
)

A = [98.0, 95.5, 97.0, 99.5]
B = [96.0, 95.0, 93.5, 98.0]

# Intervals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "quantile"), [(3, 4.302653), (5, 2.776445)])
def test_the_interval_over_seeds_uses_students_table(n: int, quantile: float) -> None:
    values = [float(i) for i in range(n)]
    found = interval(values)
    assert found.half == pytest.approx(quantile * np.std(values, ddof=1) / n**0.5, rel=1e-6)
    assert found.mean == pytest.approx((n - 1) / 2)
    assert found.n == n
    assert found.method == f"Student's t over {n} seeds"


def test_one_seed_and_seeds_that_agree_carry_no_interval_and_say_so() -> None:
    one = interval([7.0])
    assert (one.mean, one.low, one.high, one.half) == (7, None, None, None)
    assert one.method == "none: one seed carries no interval"
    alike = interval([0.1 + 0.2, 0.3, 0.3])  # they differ by a rounding
    assert (alike.low, alike.high) == (None, None)
    assert alike.method == "none: all 3 seeds agree"
    assert interval([0.0, 0.0]).half is None


def test_an_interval_is_cut_off_at_what_a_percentage_can_be() -> None:
    wide = interval([99.0, 100.0, 97.0])
    assert wide.high is not None
    assert wide.high > 100
    cut = wide.clipped(0, 100)
    assert (cut.low, cut.high, cut.mean) == (wide.low, 100, wide.mean)
    assert interval([1.0]).clipped(0, 100) == interval([1.0])


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        interval([])
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            interval([1.0, bad])
        with pytest.raises(ValueError, match="not finite"):
            paired([1.0, 2.0], [bad, 1.0])


def test_the_interval_over_identities_knows_no_images_and_repeats_itself() -> None:
    rng = np.random.default_rng(3)
    means = rng.random(200)
    first, again = identity_interval([means.tolist()]), identity_interval([means.tolist()])
    assert first == again
    assert first.method == "bootstrap over 200 identities"
    normal = interval(means.tolist(), over="identities")
    assert first.low == pytest.approx(normal.low, abs=0.01)
    assert first.high == pytest.approx(normal.high, abs=0.01)


def test_few_identities_widen_the_interval_as_students_does() -> None:
    """Plain percentiles of twenty would be a tenth narrower."""
    values = np.linspace(0, 100, 20).tolist()
    assert identity_interval([values]).half == pytest.approx(interval(values).half, rel=0.05)


def test_an_identity_is_drawn_with_its_values_at_all_seeds() -> None:
    """Seeds that undo each other's identities leave the mean of each the same."""
    half = list(np.linspace(0, 1, 25))
    assert identity_interval([half, half[::-1]]).method == "none: all 25 identities agree"
    both = identity_interval([half, half])
    assert both == identity_interval([half])


def test_a_bootstrap_of_few_identities_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 20 or more, got 19"):
        identity_interval([[float(i) for i in range(19)]])
    assert identity_interval([[float(i) for i in range(20)]]).half
    with pytest.raises(ValueError, match="different numbers"):
        identity_interval([[0.0, 1.0] * 10, [0.0] * 21])


# Tests --------------------------------------------------------------------------------------


def test_the_paired_test_is_scipys() -> None:
    found, want = paired(A, B), stats.ttest_rel(A, B)
    assert found.p == pytest.approx(want.pvalue, rel=1e-9)
    assert found.diff == pytest.approx(1.875)
    ends = want.confidence_interval(0.95)
    assert [found.interval.low, found.interval.high] == pytest.approx([ends.low, ends.high])
    swapped = paired(B, A)
    assert swapped.p == found.p
    assert swapped.diff == -found.diff


def test_a_pair_alone_or_differences_that_agree_are_not_tested() -> None:
    assert paired([3.0], [1.0]).p is None
    assert paired([3.0], [1.0]).diff == 2
    shifted = paired([0.1, 0.2, 0.3], [1.1, 1.2, 1.3])  # their differences differ by a rounding
    assert shifted.p is None
    assert shifted.interval.method == "none: all 3 differences agree"
    assert paired([100.0] * 3, [100.0] * 3).p is None
    with pytest.raises(ValueError, match="as many values on both sides: 1, 2"):
        paired([1.0], [1.0, 2.0])


def test_holms_correction_is_that_of_r() -> None:
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_what_was_not_tested_does_not_count() -> None:
    assert holm([0.02, None, 0.03, None]) == [pytest.approx(0.04), None, pytest.approx(0.04), None]


@pytest.mark.parametrize(("effect", "n", "want"), [(0.5, 34, 0.8078), (1.0, 10, 0.8031)])
def test_the_power_is_that_of_published_tables(effect: float, n: int, want: float) -> None:
    assert power(effect, n) == pytest.approx(want, abs=1e-4)
    assert power(-effect, n) == pytest.approx(want, abs=1e-4)


def test_power_far_out_is_a_number() -> None:
    assert power(1e6, 2, 0.001) == pytest.approx(1)
    assert power(0, 5) == pytest.approx(0.05)


def test_the_seeds_a_difference_needs() -> None:
    """An effect of a half takes 34 pairs for a power of 0.8, four of which are here."""
    spread = np.array([-1.5, -0.5, 0.5, 1.5])
    diffs = (spread / spread.std(ddof=1) + 0.5).tolist()
    assert seeds_needed(diffs) == 34 - 4
    assert seeds_needed([-d for d in diffs]) == 34 - 4
    more = seeds_needed(diffs, level=0.05 / 9)
    assert more is not None
    assert more > 34 - 4
    assert power(0.5, 4 + more, 0.05 / 9) >= 0.8 > power(0.5, 3 + more, 0.05 / 9)
    assert seeds_needed(diffs, most=29) is None
    assert seeds_needed(diffs, most=30) == 30
    assert seeds_needed(spread.tolist()) is None  # a mean of nothing
    assert seeds_needed([2.0, 2.0]) is None
    assert seeds_needed([9.0, 10.0, 11.0]) == 1
    with pytest.raises(ValueError, match="takes two or more differences"):
        seeds_needed([1.0])


# Simulation ---------------------------------------------------------------------------------
#
# Reconstructions hit with a chance whose logit is the sum of an effect of the seed (how well
# target, prior and attack came out), one of the identity and one of both together; each
# identity has 20 images (5 of 300). Two defenses at one seed share a part of the seed's effect,
# since they share the prior and the attack's starts.

TRIALS = 400
SEEDS = 5
SEED_SD, IDENTITY_SD, BOTH_SD = 0.5, 1.0, 0.5
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)


def chance(logit: np.ndarray) -> np.ndarray:
    found: np.ndarray = 1 / (1 + np.exp(-logit))
    return found


def expected(logit: float, *deviations: float) -> float:
    """The mean chance, in percent, of a logit with normal effects of these deviations."""
    chances = chance(logit + math.hypot(*deviations) * NODES)
    return float(100 * (WEIGHTS * chances).sum() / WEIGHTS.sum())


def hits(
    rng: np.random.Generator, seed: np.ndarray, identity: np.ndarray, images: int
) -> np.ndarray:
    """Attack Acc per seed and identity, in percent."""
    both = rng.normal(0, BOTH_SD, (len(seed), len(identity)))
    chances = chance(seed[:, None] + identity + both)
    found: np.ndarray = 100 * rng.binomial(images, chances) / images
    return found


def pair(rng: np.random.Generator, shift: float = 0.0) -> tuple[list[float], list[float]]:
    """Attack Acc per seed of two defenses, the second with other chances by ``shift``."""
    identity = rng.normal(0, IDENTITY_SD, 5)
    shared = rng.normal(0, SEED_SD * 0.5**0.5, SEEDS)
    own = rng.normal(0, SEED_SD * 0.5**0.5, (2, SEEDS))
    a = hits(rng, shared + own[0], identity, 20)
    b = hits(rng, shared + own[1] + shift, identity, 20)
    return a.mean(1).tolist(), b.mean(1).tolist()


def share(found: Callable[[np.random.Generator], bool]) -> float:
    rng = np.random.default_rng(2022)
    return sum(found(rng) for _ in range(TRIALS)) / TRIALS


def covers(span: Interval, truth: float) -> bool:
    return span.low is not None and span.high is not None and span.low <= truth <= span.high


def test_two_defenses_of_one_distribution_are_seldom_called_different() -> None:
    def different(rng: np.random.Generator) -> bool:
        p = paired(*pair(rng)).p
        return p is not None and p <= 0.05

    assert 0.03 <= share(different) <= 0.07


@pytest.mark.slow
def test_a_table_without_differences_is_seldom_called_different_anywhere() -> None:
    """Three defenses under each of three attacks: nine tests, one of them false in 37 %."""

    def corrected(rng: np.random.Generator) -> bool:
        found = holm([paired(*pair(rng)).p for _ in range(9)])
        return any(p is not None and p <= 0.05 for p in found)

    assert share(corrected) <= 0.07


def test_a_difference_of_twenty_five_points_is_told_apart() -> None:
    """A logit lower by 1.5 is about 26 points of Attack Acc here."""

    def told(rng: np.random.Generator) -> bool:
        p = paired(*pair(rng, -1.5)).p
        return p is not None and p <= 0.05

    gap = expected(0, SEED_SD, IDENTITY_SD, BOTH_SD) - expected(
        -1.5, SEED_SD, IDENTITY_SD, BOTH_SD
    )
    assert 24 < gap < 28
    assert share(told) >= 0.9


def test_the_power_is_that_of_a_simulation() -> None:
    def told(rng: np.random.Generator) -> bool:
        p = paired(rng.normal(1.2, 1, SEEDS).tolist(), [0.0] * SEEDS).p
        return p is not None and p <= 0.05

    assert share(told) == pytest.approx(power(1.2, SEEDS), abs=0.05)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 2.0])
def test_the_interval_over_seeds_covers_other_seeds_of_the_same_classes(logit: float) -> None:
    def covered(rng: np.random.Generator) -> bool:
        identity = rng.normal(0, IDENTITY_SD, 5) + logit
        seen = hits(rng, rng.normal(0, SEED_SD, SEEDS), identity, 20)
        truth = float(np.mean([expected(i, SEED_SD, BOTH_SD) for i in identity]))
        return covers(interval(seen.mean(1).tolist()), truth)

    assert 0.92 <= share(covered) <= 0.98


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_it() -> None:
    def covered(rng: np.random.Generator) -> bool:
        identity = rng.normal(0, IDENTITY_SD, 5)
        shared = rng.normal(0, SEED_SD * 0.5**0.5, SEEDS)
        a, b = (
            hits(rng, shared + rng.normal(0, SEED_SD * 0.5**0.5, SEEDS) + shift, identity, 20)
            for shift in (0.0, -1.0)
        )
        means = [np.mean([expected(i + s, SEED_SD, BOTH_SD) for i in identity]) for s in (0, -1)]
        span = paired(a.mean(1).tolist(), b.mean(1).tolist()).interval
        return covers(span, float(means[0] - means[1]))

    assert 0.92 <= share(covered) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("logit", [-2.0, 0.0, 2.0])
def test_the_interval_over_identities_covers_other_identities_of_the_same_targets(
    logit: float,
) -> None:
    def covered(rng: np.random.Generator) -> bool:
        seed = rng.normal(0, SEED_SD, SEEDS) + logit
        seen = hits(rng, seed, rng.normal(0, IDENTITY_SD, 300), 5)
        truth = float(np.mean([expected(s, IDENTITY_SD, BOTH_SD) for s in seed]))
        return covers(identity_interval(seen.tolist()), truth)

    assert 0.92 <= share(covered) <= 0.98


@pytest.mark.slow
def test_neither_interval_is_about_the_other_ones_truth() -> None:
    """Over identities, that of the trained targets says little of other trainings."""

    def covered(rng: np.random.Generator) -> bool:
        seen = hits(rng, rng.normal(0, SEED_SD, SEEDS), rng.normal(0, IDENTITY_SD, 300), 5)
        return covers(identity_interval(seen.tolist()), expected(0, SEED_SD, IDENTITY_SD, BOTH_SD))

    assert share(covered) < 0.7


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    diffs = [3.0, 7.0, -2.0, 4.0, 1.0]
    size = smallest_difference(diffs)
    assert size is not None
    deviation = float(np.std(diffs, ddof=1))
    assert power(size / deviation, 5) == pytest.approx(0.8, abs=1e-4)
    draws = size + deviation * np.random.default_rng(0).standard_normal((20_000, 5))
    t = draws.mean(1) / (draws.std(1, ddof=1) / 5**0.5)
    assert np.mean(np.abs(t) > 2.7764) == pytest.approx(0.8, abs=0.01)  # t's quantile, 4 degrees
    assert smallest_difference([d + 9 for d in diffs]) == pytest.approx(size)
    stricter = smallest_difference(diffs, 0.01)
    assert stricter is not None
    assert stricter > size
    assert smallest_difference([2.0, 2.0]) is None
    with pytest.raises(ValueError, match="two or more"):
        smallest_difference([1.0])
