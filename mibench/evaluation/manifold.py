"""Where two sets of features lie with respect to each other, by nearest neighbours.

Precision and recall: Kynkäänniemi et al., NeurIPS 2019, https://arxiv.org/abs/1904.06991.
Density and coverage: Naeem et al., ICML 2020, https://arxiv.org/abs/2002.09797. A row's ball
reaches to its k-th nearest other row of its set. All balls are closed, so that a copy of an
image counts as inside the ball of radius 0 around it.
"""

from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.distance import distances
from mibench.evaluation.evidence import Evidence, UndefinedError
from mibench.evaluation.lenses import EVALUATOR
from mibench.evaluation.metric import PERCENT, POSITIVE, metric


def radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Returns the radius of each row's ball.

    Raises:
        UndefinedError: If there are no more than ``k`` rows.
    """
    if len(x) <= k:
        raise UndefinedError(f"{k} nearest neighbours need more than {k} images, got {len(x)}")
    return distances(x, x).kthvalue(k + 1, dim=1).values  # the nearest is the row itself


def inside(
    x: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], k: int = 3
) -> Float[Tensor, " n"]:
    """Returns 100 for each row of ``x`` inside a ball around any of the centres, else 0."""
    return 100 * (distances(x, centres) <= radii(centres, k)).any(1).double()


def crowding(
    x: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], k: int = 5
) -> Float[Tensor, " n"]:
    """Returns in how many of the balls around the centres each row of ``x`` lies, over k.

    Its mean over x is the published 1/(kM) Σ_j Σ_i 1[Y_j ∈ B(X_i, NND_k(X_i))].
    """
    return (distances(x, centres) <= radii(centres, k)).double().sum(1) / k


def covered(
    centres: Float[Tensor, "m d"], x: Float[Tensor, "n d"], k: int = 5
) -> Float[Tensor, " m"]:
    """Returns 100 for each centre whose ball has a row of ``x`` inside, else 0.

    Raises:
        UndefinedError: If ``x`` has no row.
    """
    if not len(x):
        raise UndefinedError("coverage needs a reconstruction, got none")
    return 100 * (distances(centres, x).amin(1) <= radii(centres, k)).double()


@metric("Precision", "attack", "lower", "percent", PERCENT, needs=(EVALUATOR,))
def precision(e: Evidence) -> float:
    """Improved precision: reconstructions within the real images' manifold, k = 3."""
    reconstructed, real = e.through(EVALUATOR)
    return float(inside(reconstructed, real).mean())


@metric("Recall", "attack", "lower", "percent", PERCENT, needs=(EVALUATOR,))
def recall(e: Evidence) -> float:
    """Improved recall: real images within the reconstructions' manifold, k = 3."""
    reconstructed, real = e.through(EVALUATOR)
    return float(inside(real, reconstructed).mean())


@metric("Density", "attack", "lower", range=POSITIVE, needs=(EVALUATOR,))
def density(e: Evidence) -> float:
    """Density: real images' balls, k = 5, that a reconstruction lies in on average, over k."""
    reconstructed, real = e.through(EVALUATOR)
    return float(crowding(reconstructed, real).mean())


@metric("Coverage", "attack", "lower", "percent", PERCENT, needs=(EVALUATOR,))
def coverage(e: Evidence) -> float:
    """Coverage: real images with a reconstruction in their ball, k = 5."""
    reconstructed, real = e.through(EVALUATOR)
    return float(covered(real, reconstructed).mean())
