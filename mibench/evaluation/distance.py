"""Distances between reconstructions and real images, in features."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.evidence import Evidence, UndefinedError
from mibench.evaluation.lenses import EVALUATOR
from mibench.evaluation.metric import POSITIVE, metric


def distances(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Returns Euclidean distances, in float64; exactly 0 between equal rows."""
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cdist(a.double(), b.double(), compute_mode=exact)


def nearest(
    reconstructed: Float[Tensor, "n d"],
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
    of_class = labels[:, None] == real_labels
    least = distances(reconstructed, real).masked_fill(~of_class, float("inf")).min(1)
    return least.values, least.indices


@metric("KNN Dist", "image", "higher", "features", POSITIVE, needs=(EVALUATOR,))
def knn_distance(e: Evidence) -> Float[Tensor, " n"]:
    """Distance to the nearest real image of the attacked class, in the evaluator's features."""
    reconstructed, real = e.through(EVALUATOR)
    return nearest(reconstructed, e.labels, real, e.real_labels)[0]


@metric("KNN Dist²", "image", "higher", "features²", POSITIVE, needs=(EVALUATOR,))
def knn_distance_squared(e: Evidence) -> Float[Tensor, " n"]:
    """The square of that distance, which most of the field prints as KNN Dist."""
    return knn_distance(e).square()


@metric("Feature Dist", "image", "higher", "features", POSITIVE, needs=(EVALUATOR,))
def feature_distance(e: Evidence) -> Float[Tensor, " n"]:
    """Distance to the mean of the attacked class's real images, in the evaluator's features."""
    reconstructed, real = (side.double() for side in e.through(EVALUATOR))
    if missing := set(e.classes) - set(e.real_labels.tolist()):
        raise UndefinedError(f"class {min(missing)} has no real image to have a mean")
    means = torch.stack([real[e.real_labels == c].mean(0) for c in e.classes])
    place = torch.searchsorted(torch.tensor(e.classes, device=e.labels.device), e.labels)
    return (reconstructed - means[place]).square().sum(1).sqrt()
