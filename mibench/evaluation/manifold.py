"""Where two sets of features lie with respect to each other, by nearest neighbours.

Precision and recall: Kynkäänniemi et al., NeurIPS 2019, https://arxiv.org/abs/1904.06991.
Density and coverage: Naeem et al., ICML 2020, https://arxiv.org/abs/2002.09797. All balls are
closed, so that a copy of an image counts as inside the ball of radius 0 around it.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.evidence import UndefinedError


def distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Returns Euclidean distances, in float64; exactly 0 between equal rows."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(a.double(), b.double(), compute_mode=exact)


def radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Returns the distance of each row to its k-th nearest other row.

    Raises:
        UndefinedError: If there are no more than ``k`` rows.
    """
    if len(x) <= k:
        raise UndefinedError(f"{k} nearest neighbours need more than {k} images, got {len(x)}")
    return distances(x, x).kthvalue(k + 1, dim=1).values  # the nearest is the row itself


def precision(
    found: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k: int = 3
) -> Float[Tensor, " n"]:
    """Returns 100 for each reconstruction within some real image's k-th neighbour, else 0."""
    return 100 * (distances(found, real) <= radii(real, k)).any(1).double()


def recall(
    found: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k: int = 3
) -> Float[Tensor, " m"]:
    """Returns 100 for each real image within some reconstruction's k-th neighbour, else 0."""
    return precision(real, found, k)


def density(
    found: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k: int = 5
) -> Float[Tensor, " n"]:
    """Returns in how many real images' balls each reconstruction lies, over k.

    Its mean, over reconstructions, is the published 1/(kM) Σ_j Σ_i 1[Y_j ∈ B(X_i, NND_k(X_i))].
    """
    return (distances(found, real) <= radii(real, k)).double().sum(1) / k


def coverage(
    found: Float[Tensor, "n d"], real: Float[Tensor, "m d"], k: int = 5
) -> Float[Tensor, " m"]:
    """Returns 100 for each real image that has a reconstruction within its k-th neighbour."""
    if not len(found):
        raise UndefinedError("coverage needs a reconstruction, got none")
    return 100 * (distances(real, found).amin(1) <= radii(real, k)).double()


def nearest(
    found: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    real: Float[Tensor, "m d"],
    real_labels: Int[Tensor, " m"],
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Returns each row's distance to the nearest real row of its class, and that one's place.

    Raises:
        UndefinedError: If a class has no real row.
    """
    if missing := set(labels.tolist()) - set(real_labels.tolist()):
        raise UndefinedError(f"class {min(missing)} has no real image to be near to")
    apart = distances(found, real)
    apart = apart.masked_fill(labels[:, None] != real_labels, float("inf"))
    least = apart.min(1)
    return least.values, least.indices
