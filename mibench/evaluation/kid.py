"""Kernel inception distance, Bińkowski et al., ICLR 2018, https://arxiv.org/abs/1801.01401."""

from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.evidence import Evidence, UndefinedError
from mibench.evaluation.lenses import EVALUATOR
from mibench.evaluation.metric import metric


def kernel_distance(features_a: Float[Tensor, "n d"], features_b: Float[Tensor, "m d"]) -> float:
    r"""Unbiased estimate of the squared maximum mean discrepancy, over all pairs.

    .. math:: \frac{\sum_{i\ne j}k(a_i,a_j)}{n(n-1)}+\frac{\sum_{i\ne j}k(b_i,b_j)}{m(m-1)}
        -\frac{2\sum_{i,j}k(a_i,b_j)}{nm},\qquad k(x,y)=(x^\top y/d+1)^3

    In float64. Unlike a Fréchet distance it has no bias of few images; about 0, hence also
    below it, between samples of one distribution.

    Args:
        features_a: One image a row.
        features_b: The other set, of the same width.

    Raises:
        UndefinedError: If either set has fewer than two rows.
    """
    n, m = len(features_a), len(features_b)
    if min(n, m) < 2:
        raise UndefinedError(f"a kernel distance needs two or more images a side, got {n} and {m}")
    a, b = features_a.double(), features_b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


@metric("KID", "attack", "higher", needs=(EVALUATOR,))
def kid(e: Evidence) -> float:
    """KID between reconstructions and real private images, in the evaluator's features."""
    return kernel_distance(*e.through(EVALUATOR))
