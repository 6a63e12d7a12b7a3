"""What a difference between numbers is worth: intervals, tests, and how many seeds they need.

Which truth each interval is about, and how well it covers it, is in ``docs/statistics.md``.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.05
"""Level of the tests; intervals hold with 95 %."""
POWER = 0.8
"""Chance to find a difference with :func:`seeds_needed` seeds, or a
:func:`smallest_difference`."""
MOST_SEEDS = 100
"""Seeds that :func:`seeds_needed` asks for at most."""
FEWEST_VALUES = 3
"""Values that an interval needs, and an estimate of how many more are needed: half of Student's
interval of two values is 13 standard errors, which says less than the two values do."""
FEWEST_IDENTITIES = 20
"""Identities that :func:`identity_interval` needs: with few it covers too rarely."""
RESAMPLES = 2000
NORMAL_ENDS = 9.0
"""Standard deviations to which a normal distribution is integrated: beyond lie 2e-19."""
SAME = 1e-9
"""Values that differ by less than this, relative to the largest, count as the same."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
        mean: In the unit of the values.
        low: Lower end; None where there is no interval.
        high: Upper end; None where there is no interval.
        n: How many values it rests on.
        method: How the interval was made or, where there is none, why.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    method: str

    @property
    def half(self) -> float | None:
        """Half the width; None where there is no interval."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2

    def clipped(self, low: float, high: float) -> "Interval":
        """Returns the interval without what lies outside of what the values can be."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, low), high=min(self.high, high))


@dataclass(frozen=True)
class Test:
    """A paired comparison.

    Attributes:
        p: Two-sided p value before any correction; None where there is no test.
        diff: Mean of a - b over the pairs.
        interval: Of that mean; its method says why there is no test, where there is none.
    """

    __test__ = False  # pytest shall not collect it

    p: float | None
    diff: float
    interval: Interval


def interval(values: Sequence[float], level: float = LEVEL, over: str = "seeds") -> Interval:
    """Returns Student's t interval for the mean of independent values, one per seed.

    One value or two, or values that all agree, carry no interval.

    Args:
        values: At least one.
        level: 0.05 for an interval that holds with 95 %.
        over: What the values belong to, in the words of ``method``.

    Raises:
        ValueError: If there is no value, or one is not finite.
    """
    _check(values)
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Interval(mean, None, None, n, "none: one seed carries no interval")
    if _alike(values):
        return Interval(mean, None, None, n, f"none: all {n} {over} agree")
    if n < FEWEST_VALUES:
        few = f"none: {n} {over} are too few, it takes {FEWEST_VALUES}"
        return Interval(mean, None, None, n, few)
    from scipy.special import stdtrit  # what scipy.stats.t asks, too, which takes long to import

    quantile = float(stdtrit(n - 1, 1 - level / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, f"Student's t over {n} {over}")


def paired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Test:
    """Returns the paired t test of ``a`` against ``b``, the same seeds in the same order.

    With one pair, or differences that all agree, there is no test, since their variance is
    unknown. With two there is a test without an interval.

    Raises:
        ValueError: If there is no pair, the lengths differ or a value is not finite.
    """
    from scipy.special import stdtr

    if len(a) != len(b):
        raise ValueError(f"a paired test needs as many values on both sides: {len(a)}, {len(b)}")
    _check([*a, *b])
    n = len(a)
    diffs = [x - y for x, y in zip(a, b, strict=True)]
    scale = max(abs(v) for v in (*a, *b))
    if n > 1 and max(diffs) - min(diffs) <= SAME * scale:  # rounding is no variance
        mean = statistics.fmean(diffs)
        return Test(None, mean, Interval(mean, None, None, n, f"none: all {n} differences agree"))
    span = interval(diffs, level, "paired differences")
    if n == 1:
        return Test(None, span.mean, span)
    statistic = span.mean / (statistics.stdev(diffs) / math.sqrt(n))
    return Test(2 * float(stdtr(n - 1, -abs(statistic))), span.mean, span)


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided paired t tests of whether a mean difference lies within a margin.

    Attributes:
        margin: The mean difference shall lie between -margin and margin.
        p: The greater of the two one-sided p values; None where there is no test.
        interval: Of the mean difference, with 90 % for a level of 0.05: within the margin just
            where ``p`` is below the level. Its method says why there is none, where there is none.
    """

    margin: float
    p: float | None
    interval: Interval

    @property
    def verdict(self) -> str:
        """What the tests say: "equivalent", "not equivalent", "undecided" or "no test"."""
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return "no test"
        if -self.margin < low and high < self.margin:
            return "equivalent"
        beyond = low > self.margin or high < -self.margin
        return "not equivalent" if beyond else "undecided"


def equivalence(
    a: Sequence[float], b: Sequence[float], margin: float, level: float = LEVEL
) -> Equivalence:
    """Returns the equivalence test of ``a`` and ``b``, the same seeds in the same order.

    Two one-sided tests, Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987. There is none of fewer
    than three pairs, nor where all differences agree, since their variance is unknown.

    Args:
        a: One value per seed.
        b: One value per seed.
        margin: Greatest mean difference that does not matter, above 0.
        level: Of each of the two tests, and so of the claim that both sides are equivalent.

    Raises:
        ValueError: If the margin is not above 0, or as :func:`paired` does.
    """
    from scipy.special import stdtr

    if not 0 < margin < math.inf:
        raise ValueError(f"a margin is a number above 0, not {margin:g}")
    span = paired(a, b, 2 * level).interval
    if span.half is None:
        return Equivalence(margin, None, span)
    error = statistics.stdev(x - y for x, y in zip(a, b, strict=True)) / math.sqrt(span.n)
    nearer = margin - abs(span.mean)
    return Equivalence(margin, float(stdtr(span.n - 1, -nearer / error)), span)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Returns p values after Holm's step-down correction (Scand. J. Statist. 6, 1979).

    Compared with the level they keep the chance of one or more false positives among all of
    them below it, whatever the dependence. A None, a test that could not be made, stays None
    and does not count.
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[i] = highest
    return corrected


def power(effect: float, n: int, level: float = LEVEL) -> float:
    """Returns the power of the two-sided paired t test.

    Args:
        effect: Mean difference in standard deviations of the differences.
        n: Pairs, at least 2.
        level: Of the test.
    """
    import numpy as np
    from scipy.special import chdtr, stdtrit  # scipy.stats takes long to import

    # The noncentral t of scipy is off by percents at few degrees of freedom. T is the shifted
    # normal over its estimated scale, so |T| is large where chi² is small enough for the normal.
    df, shift = n - 1, abs(effect) * math.sqrt(n)
    critical = -float(stdtrit(df, level / 2))
    z, step = np.linspace(-NORMAL_ENDS, NORMAL_ENDS, 4001, retstep=True)
    weights = np.exp(-z * z / 2) * float(step) / math.sqrt(2 * math.pi)
    return float((weights * chdtr(df, df * ((z + shift) / critical) ** 2)).sum())


def smallest_difference(diffs: Sequence[float], level: float = LEVEL) -> float | None:
    """Returns the smallest true mean difference that as many pairs find with 80 % power.

    The observed deviation is taken for the true one.

    Args:
        diffs: Paired differences, at least two.
        level: Of the test.

    Returns:
        In the unit of ``diffs``; None if all differences agree.

    Raises:
        ValueError: If there are fewer than two differences or one is not finite.
    """
    _check(diffs)
    if len(diffs) < 2:
        raise ValueError("a deviation takes two or more differences")
    if _alike(diffs):
        return None
    low, high = 0.0, 1.0
    while power(high, len(diffs), level) < POWER:  # power grows with the effect
        high *= 2
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, len(diffs), level) >= POWER else (middle, high)
    return high * statistics.stdev(diffs)


def seeds_needed(
    diffs: Sequence[float], level: float = LEVEL, most: int = MOST_SEEDS
) -> int | None:
    """Returns how many more seeds would make a difference significant if it stays as it is.

    The observed mean and deviation are taken for the true ones: a rough guide.

    Args:
        diffs: Paired differences, at least two.
        level: Of the test, after correction: with m tests, 0.05 / m is enough for Holm's.
        most: The greatest answer that is searched for.

    Returns:
        At least 1; None if it takes more than ``most``, or if there is no estimate since the
        mean difference is 0 or all differences agree.

    Raises:
        ValueError: If there are fewer than two differences or one is not finite.
    """
    _check(diffs)
    if len(diffs) < 2:
        raise ValueError("it takes two or more differences to estimate how many seeds are needed")
    mean = statistics.fmean(diffs)
    if mean == 0 or _alike(diffs):
        return None
    effect = mean / statistics.stdev(diffs)
    low, high = len(diffs), len(diffs) + most
    if power(effect, high, level) < POWER:
        return None
    while high - low > 1:  # power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, level) >= POWER else (middle, high)
    return high - len(diffs)


def identity_interval(values: Sequence[Sequence[float]]) -> Interval:
    """Returns the 95 % bootstrap interval over identities of the mean, the seeds held fixed.

    An identity is drawn with its values at all seeds, so its images are never taken for
    independent ones. Percentiles of 2000 draws, moved outwards for the few identities that
    there are (expanded percentiles, Hesterberg, Am. Stat. 69, 2015); the same values give the
    same interval.

    Args:
        values: Per seed, the mean of each identity, in the same order.

    Raises:
        ValueError: If there is no seed, seeds differ in their identities, a value is not
            finite, or there are fewer than 20 identities.
    """
    import numpy as np
    from scipy.special import ndtr, stdtrit

    _check([v for seed in values for v in seed])
    if len({len(seed) for seed in values}) != 1:
        raise ValueError("the seeds attacked different numbers of identities")
    means = np.asarray(values, dtype=np.float64).mean(0)
    n = len(means)
    if n < FEWEST_IDENTITIES:
        raise ValueError(
            f"a bootstrap over identities needs {FEWEST_IDENTITIES} or more, got {n}: with few it "
            "covers the truth too rarely"
        )
    mean = float(means.mean())
    if _alike(means.tolist()):
        return Interval(mean, None, None, n, f"none: all {n} identities agree")
    rng = np.random.default_rng(0)
    drawn = means[rng.integers(n, size=(RESAMPLES, n))].mean(1)
    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, LEVEL / 2)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), n, f"bootstrap over {n} identities")


def _check(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("there are no values")
    if not all(map(math.isfinite, values)):
        raise ValueError("a value is not finite")


def _alike(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= SAME * max(map(abs, values))
