"""Fréchet inception distance, Heusel et al., NeurIPS 2017, https://arxiv.org/abs/1706.08500."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.accuracy import attack_acc
from mibench.evaluation.evidence import Compared, Evidence, UndefinedError
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.lenses import EVALUATOR, STRETCHED, Lens
from mibench.evaluation.metric import POSITIVE, C, metric
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


FIDS: dict[str, tuple[Lens, bool]] = {}
"""FID between reconstructions and private images → its lens, and whether only the successful
reconstructions count: those that the evaluator gives the attacked class."""


def compared(e: Evidence, name: str) -> Compared:
    """Returns the two sets of features that an FID compares.

    Args:
        e: The evidence.
        name: One of :data:`FIDS`.

    Raises:
        UndefinedError: If they were not gathered.
    """
    lens, only_successful = FIDS[name]
    seen = e.through(lens)
    if only_successful:
        return Compared(seen.reconstructed[attack_acc(e) == 100], seen.real)
    return seen


def _frechet(
    title: str,
    lens: Lens,
    unit: Literal["features²", ""] = "features²",
    *,
    successful: bool = False,
    version: int = 1,
) -> Callable[[C], C]:
    """Declares an FID between reconstructions and private images."""

    def declare(compute: C) -> C:
        FIDS[compute.__name__] = lens, successful
        return metric(title, "attack", "higher", unit, POSITIVE, (lens,), version)(compute)

    return declare


@_frechet("FID", EVALUATOR)
def fid(e: Evidence) -> float:
    """FID between reconstructions and real private images, in the evaluator's features."""
    return frechet_distance(*compared(e, "fid"))


@_frechet("FID stretched", STRETCHED)
def fid_stretched(e: Evidence) -> float:
    """The same FID of images stretched one by one to the full range, as released."""
    return frechet_distance(*compared(e, "fid_stretched"))


@_frechet("FID successful", EVALUATOR, successful=True, version=2)
def fid_successful(e: Evidence) -> float:
    """FID of those reconstructions only that the evaluator gives the attacked class."""
    return frechet_distance(*compared(e, "fid_successful"))


@_frechet("FID successful stretched", STRETCHED, successful=True, version=2)
def fid_successful_stretched(e: Evidence) -> float:
    """The same FID of the successful only, of stretched images."""
    return frechet_distance(*compared(e, "fid_successful_stretched"))


@_frechet("Inception FID", INCEPTION, "")
def fid_inception(e: Evidence) -> float:
    """FID in features of Inception-v3, by pytorch-fid's network and weights."""
    return frechet_distance(*compared(e, "fid_inception"))


@_frechet("Inception FID successful", INCEPTION, "", successful=True, version=2)
def fid_inception_successful(e: Evidence) -> float:
    """The same FID in Inception's features, of the successful reconstructions only."""
    return frechet_distance(*compared(e, "fid_inception_successful"))


@metric("FID real", "target", unit="features²", range=POSITIVE, version=2, needs=(EVALUATOR,))
def fid_floor(e: Evidence) -> float:
    """FID between two halves of the real private images: of each class every second one.

    A yardstick for fid, in the same features: what images of one distribution have. Both halves
    have as many images of each class, so the last of an odd number is left out. Halves have
    fewer images, hence more bias, so very good reconstructions can come below it.

    Raises:
        UndefinedError: If a class has one real image alone.
    """
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for c in sorted(set(e.real_labels.tolist())):
        places = (e.real_labels == c).nonzero()[:, 0]
        if len(places) < 2:
            raise UndefinedError(f"halves of class {c} need two or more real images, got 1")
        for half, own in zip(halves, (places[::2], places[1::2]), strict=True):
            half.append(own[: len(places) // 2])
    real = e.through(EVALUATOR).real
    return frechet_distance(*(real[torch.cat(half).sort().values] for half in halves))


@metric("FID per identity", "identity", "higher", range=(0, 4), needs=(EVALUATOR,))
def fid_identity(e: Evidence) -> Float[Tensor, " c"]:
    """FID within each attacked class, in evaluator features scaled to length one: 0 to 4.

    As Peng et al. (KDD 2022) evaluate VMI. Few images span few of the features' dimensions,
    so two samples of one distribution are far from 0: compare equal numbers only.

    Raises:
        UndefinedError: If a class has fewer than two reconstructions or real images.
    """
    seen = e.through(EVALUATOR)
    reconstructed = _by_class(e, seen.reconstructed, e.labels)
    real = _by_class(e, seen.real, e.real_labels)
    for c, a in reconstructed.items():
        if min(len(a), len(real[c])) < 2:
            raise UndefinedError(
                f"the FID of class {c} needs two or more reconstructions and real images, got "
                f"{len(a)} and {len(real[c])}"
            )
    distances = [frechet_distance_of_few(a, real[c]) for c, a in reconstructed.items()]
    return torch.tensor(distances, dtype=torch.float64)


@metric("FID floor", "identity", range=(0, 4), needs=(EVALUATOR,))
def fid_identity_floor(e: Evidence) -> Float[Tensor, " c"]:
    """FID between two halves of each class's real images, those at even and at odd places.

    A yardstick for fid_identity, in the same features: 0 to 4. Halves have fewer images, hence
    more bias, so very good reconstructions can come below it.

    Raises:
        UndefinedError: If a class has fewer than four real images.
    """
    real = _by_class(e, e.through(EVALUATOR).real, e.real_labels)
    for c, b in real.items():
        if len(b) < 4:
            raise UndefinedError(
                f"halves of class {c} need four or more real images, got {len(b)}"
            )
    distances = [frechet_distance_of_few(b[::2], b[1::2]) for b in real.values()]
    return torch.tensor(distances, dtype=torch.float64)


def _by_class(
    e: Evidence, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> dict[int, Float[Tensor, "_ d"]]:
    """Returns attacked class → its features, scaled to length one."""
    unit = F.normalize(features.double(), dim=1)
    return {c: unit[labels == c] for c in e.classes}
