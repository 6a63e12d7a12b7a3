"""Fréchet inception distance, Heusel et al., NeurIPS 2017, https://arxiv.org/abs/1706.08500."""

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.evidence import UndefinedError
from mibench.store import check_finite

Features = Float[Tensor, "n d"]


def frechet_distance(features_a: Features, features_b: Float[Tensor, "m d"]) -> float:
    r"""Squared 2-Wasserstein distance of Gaussians fitted to two sets of features.

    .. math:: \|\mu_a-\mu_b\|^2 + \mathrm{Tr}(\Sigma_a+\Sigma_b-2(\Sigma_a\Sigma_b)^{1/2})

    In float64, with unbiased covariances (divided by n − 1). The trace of the root is that
    of the symmetric L ᵀΣ_b L with Σ_a = LLᵀ: L by Cholesky, or by eigenvalues where Σ_a is
    singular (no more samples than features), so no jitter is needed.

    Args:
        features_a: One image a row.
        features_b: The other set, of the same width.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        UndefinedError: If either set has fewer than two rows.
        ValueError: If the widths differ.
        FloatingPointError: If a feature is not finite.
    """
    _check(features_a, features_b)
    (mu_a, sigma_a), (mu_b, sigma_b) = map(gaussian_fit, (features_a, features_b))
    root, failed = torch.linalg.cholesky_ex(sigma_a)
    if failed:
        w, v = torch.linalg.eigh(sigma_a)
        root = v * w.clamp(min=0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ sigma_b @ root).clamp(min=0).sqrt().sum()
    distance = (mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * cross
    return max(0.0, float(distance))


def frechet_distance_of_few(features_a: Features, features_b: Float[Tensor, "m d"]) -> float:
    r"""The same distance by way of the images, quicker where they are fewer than features.

    With A and B the centred rows over √(n − 1), so that Σ_a = AᵀA, the eigenvalues of Σ_aΣ_b
    are the squared singular values of the n x m matrix ABᵀ (and zeros):

    .. math:: \mathrm{Tr}(\Sigma_a\Sigma_b)^{1/2} = \|AB^\top\|_*

    Args:
        features_a: One image a row.
        features_b: The other set, of the same width.

    Returns:
        The distance, at least 0, in squared units of the features.

    Raises:
        UndefinedError: If either set has fewer than two rows.
        ValueError: If the widths differ.
        FloatingPointError: If a feature is not finite.
    """
    _check(features_a, features_b)
    a, b = features_a.double(), features_b.double()
    mu_a, mu_b = a.mean(0), b.mean(0)
    a, b = (a - mu_a) / (len(a) - 1) ** 0.5, (b - mu_b) / (len(b) - 1) ** 0.5
    spreads = a.square().sum() + b.square().sum()
    distance = (mu_a - mu_b).square().sum() + spreads - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(distance))


def _check(features_a: Features, features_b: Float[Tensor, "m w"]) -> None:
    shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
    sentence = f"a Fréchet distance needs two or more rows of one width, got {shapes}"
    if features_a.shape[1] != features_b.shape[1]:
        raise ValueError(sentence)
    if min(len(features_a), len(features_b)) < 2:
        raise UndefinedError(sentence)
    for features in (features_a, features_b):
        check_finite(features, "a feature")  # max(0, NaN) would be a distance of 0


def gaussian_fit(features: Features) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Returns mean and unbiased covariance of the rows, in float64."""
    x = features.double()
    mu = x.mean(0)
    return mu, (x - mu).T @ (x - mu) / (len(x) - 1)
