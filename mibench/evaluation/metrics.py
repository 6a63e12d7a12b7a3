"""The metrics: a function of the evidence, its unit, its range and which way is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.accuracy import topk_accuracy, topk_hits
from mibench.evaluation.evidence import Evidence, UndefinedError, gathered
from mibench.evaluation.fid import frechet_distance, frechet_distance_of_few
from mibench.evaluation.kid import kernel_distance
from mibench.evaluation.manifold import coverage as covered
from mibench.evaluation.manifold import density as crowded
from mibench.evaluation.manifold import nearest
from mibench.evaluation.manifold import precision as inside
from mibench.evaluation.manifold import recall as reached
from mibench.evaluation.panel import agreement, fleiss_kappa
from mibench.ties import in_top, votes

INF = float("inf")
PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class Metric:
    """A number of a table.

    Attributes:
        name: Column in CSV.
        title: Column in print.
        compute: Evidence → n values, one per image or attacked class, or one of the whole.
            Raises :class:`UndefinedError` where the evidence gives it no value.
        per: What it is measured on: each "image", each "identity", the whole "attack", or
            the "target" alone, whose value no repeat of the attack can change.
        better: Which way is better for the defender: less leakage, more utility. "" for a
            yardstick, which says how to read other metrics: it is shown without an arrow and
            never tested for significance.
        unit: "percent", "features" for a length in the evaluator's features, "features²" for
            its square, or "" for a number without one.
        range: Least and greatest value.
        version: Raised by hand when the function changes its result.
    """

    name: str
    title: str
    compute: Callable[[Evidence], Float[Tensor, " n"] | float]
    per: Literal["image", "identity", "attack", "target"]
    better: Literal["lower", "higher", ""]
    unit: Literal["percent", "features", "features²", ""] = ""
    range: tuple[float, float] = (-INF, INF)
    version: int = 1


# Accuracies -------------------------------------------------------------------------------


def accuracy(e: Evidence) -> float:
    """Utility: the target's accuracy on the private test images, in percent."""
    return topk_accuracy(e.test_logits, e.test_labels, 1)


def attack_acc(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc: 100 for each reconstruction that the evaluator gives the attacked class."""
    return topk_hits(e.logits, e.labels, 1)


def attack_acc5(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc5: 100 for each whose attacked class is among the evaluator's best five."""
    if e.logits.shape[1] < 5:
        raise UndefinedError(f"Acc5 needs five classes, the evaluator knows {e.logits.shape[1]}")
    return topk_hits(e.logits, e.labels, 5)


def attack_acc_identity(e: Evidence) -> Float[Tensor, " c"]:
    """Attack Acc of each attacked class, in percent."""
    hits = attack_acc(e)
    return torch.stack([hits[e.labels == c].mean() for c in sorted(set(e.labels.tolist()))])


def attack_acc_best(e: Evidence) -> Float[Tensor, " c"]:
    """Attack Acc of the one reconstruction of each class that the target scores highest."""
    scores, hits = _own(_target(e), e.labels), attack_acc(e)
    classes = sorted(set(e.labels.tolist()))
    best = [scores.masked_fill(e.labels != c, -INF).argmax() for c in classes]
    return hits[torch.stack(best)]


def attack_acc_any(e: Evidence) -> Float[Tensor, " c"]:
    """100 for each attacked class of which the evaluator recognises any reconstruction.

    Among classes of equal score it is the best image's chance: one order of the classes holds for
    all images, so more images of the same answer are no more chances.
    """
    hits = attack_acc(e)
    return torch.stack([hits[e.labels == c].amax() for c in sorted(set(e.labels.tolist()))])


def confidence(e: Evidence) -> Float[Tensor, " n"]:
    """The probability that the target gives the attacked class, in percent.

    High beside a low Attack Acc: the attack fooled the target and found nothing.
    """
    return 100 * _own(_target(e).double().softmax(1), e.labels)


# Distances --------------------------------------------------------------------------------


def fid(e: Evidence) -> float:
    """FID between reconstructions and real private images, in the evaluator's features."""
    return frechet_distance(*compared(e, "fid"))


def fid_stretched(e: Evidence) -> float:
    """The same FID of images stretched one by one to the full range, as released."""
    return frechet_distance(*compared(e, "fid_stretched"))


def fid_successful(e: Evidence) -> float:
    """FID of those reconstructions only that the evaluator gives the attacked class."""
    return frechet_distance(*compared(e, "fid_successful"))


def fid_successful_stretched(e: Evidence) -> float:
    """The same FID of the successful only, of stretched images."""
    return frechet_distance(*compared(e, "fid_successful_stretched"))


def fid_inception(e: Evidence) -> float:
    """FID in features of Inception-v3, by pytorch-fid's network and weights."""
    return frechet_distance(*compared(e, "fid_inception"))


def fid_inception_successful(e: Evidence) -> float:
    """The same FID in Inception's features, of the successful reconstructions only."""
    return frechet_distance(*compared(e, "fid_inception_successful"))


FIDS = (
    "fid", "fid_stretched", "fid_successful", "fid_successful_stretched", "fid_inception",
    "fid_inception_successful",
)  # fmt: skip
"""Names of the FIDs between reconstructions and private images."""


def compared(e: Evidence, name: str) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Returns the two sets of features that an FID compares.

    Args:
        e: The evidence.
        name: One of :data:`FIDS`.

    Raises:
        UndefinedError: If they were not gathered.
    """
    if "inception" in name:
        found, real = (gathered(x, NO_INCEPTION) for x in (e.inception, e.real_inception))
    elif "stretched" in name:
        sentence = "features of stretched images were not gathered"
        found, real = (gathered(x, sentence) for x in (e.stretched, e.real_stretched))
    else:
        found, real = e.features, e.real
    return (found[attack_acc(e) == 100] if "successful" in name else found), real


INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
NO_INCEPTION = (
    f"FID in Inception's features needs the weights that pytorch-fid uses: put {INCEPTION}, of "
    "https://github.com/mseitzer/pytorch-fid/releases, into the data folder's weights"
)


def fid_floor(e: Evidence) -> float:
    """FID between two halves of the real private images, those at even and at odd places.

    A yardstick for fid, in the same features: what images of one distribution have. Halves have
    fewer images, hence more bias, so very good reconstructions can come below it.
    """
    return frechet_distance(e.real[::2], e.real[1::2])


def kid(e: Evidence) -> float:
    """KID between reconstructions and real private images, in the evaluator's features."""
    return kernel_distance(e.features, e.real)


def fid_identity(e: Evidence) -> Float[Tensor, " c"]:
    """FID within each attacked class, in evaluator features scaled to length one: 0 to 4.

    As Peng et al. (KDD 2022) evaluate VMI. Few images span few of the features' dimensions,
    so two samples of one distribution are far from 0: compare equal numbers only.

    Raises:
        UndefinedError: If a class has fewer than two reconstructions or real images.
    """
    found, real = _by_class(e, e.features, e.labels), _by_class(e, e.real, e.real_labels)
    for c, a in found.items():
        if min(len(a), len(real[c])) < 2:
            raise UndefinedError(
                f"the FID of class {c} needs two or more reconstructions and real images, got "
                f"{len(a)} and {len(real[c])}"
            )
    distances = [frechet_distance_of_few(a, real[c]) for c, a in found.items()]
    return torch.tensor(distances, dtype=torch.float64)


def fid_identity_floor(e: Evidence) -> Float[Tensor, " c"]:
    """FID between two halves of each class's real images, those at even and at odd places.

    A yardstick for fid_identity, in the same features: 0 to 4. Halves have fewer images, hence
    more bias, so very good reconstructions can come below it.

    Raises:
        UndefinedError: If a class has fewer than four real images.
    """
    real = _by_class(e, e.real, e.real_labels)
    for c, b in real.items():
        if len(b) < 4:
            raise UndefinedError(
                f"halves of class {c} need four or more real images, got {len(b)}"
            )
    distances = [frechet_distance_of_few(b[::2], b[1::2]) for b in real.values()]
    return torch.tensor(distances, dtype=torch.float64)


def knn_distance(e: Evidence) -> Float[Tensor, " n"]:
    """Distance to the nearest real image of the attacked class, in the evaluator's features."""
    return nearest(e.features, e.labels, e.real, e.real_labels)[0]


def knn_distance_squared(e: Evidence) -> Float[Tensor, " n"]:
    """The square of that distance, which most of the field prints as KNN Dist."""
    return knn_distance(e).square()


def feature_distance(e: Evidence) -> Float[Tensor, " n"]:
    """Distance to the mean of the attacked class's real images, in the evaluator's features."""
    classes = sorted(set(e.labels.tolist()))
    real = e.real.double()
    for c in classes:
        if not (e.real_labels == c).any():
            raise UndefinedError(f"class {c} has no real image to have a mean")
    means = torch.stack([real[e.real_labels == c].mean(0) for c in classes])
    place = torch.searchsorted(torch.tensor(classes), e.labels)
    return (e.features.double() - means[place]).square().sum(1).sqrt()


def ssim(e: Evidence) -> Float[Tensor, " n"]:
    """Structural similarity to the nearest real image of the attacked class, in pixels.

    Nearest in the evaluator's features, as for knn_distance.
    """
    return gathered(e.ssim, "a class has no real image to be similar to")


# Manifolds --------------------------------------------------------------------------------


def precision(e: Evidence) -> float:
    """Improved precision: reconstructions within the real images' manifold, k = 3."""
    return float(inside(e.features, e.real).mean())


def recall(e: Evidence) -> float:
    """Improved recall: real images within the reconstructions' manifold, k = 3."""
    return float(reached(e.features, e.real).mean())


def density(e: Evidence) -> float:
    """Density: real images' balls, k = 5, that a reconstruction lies in on average, over k."""
    return float(crowded(e.features, e.real).mean())


def coverage(e: Evidence) -> float:
    """Coverage: real images with a reconstruction in their ball, k = 5."""
    return float(covered(e.features, e.real).mean())


# Several evaluators, and controls -----------------------------------------------------------


def attack_acc_mean(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc, averaged over the setting's evaluators."""
    return torch.stack([topk_hits(logits, e.labels, 1) for logits in _panel(e)]).mean(0)


def attack_acc_vote(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc by the evaluators' mean probabilities, as one ensemble."""
    return topk_hits(_panel(e).double().softmax(2).mean(0), e.labels, 1)


def attack_acc_all(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc by unanimity: 100 where every evaluator names the attacked class.

    Among classes of equal score it is the least chance of an evaluator's.
    """
    return 100 * torch.stack([in_top(logits, e.labels) for logits in _panel(e)]).amin(0)


def evaluator_agreement(e: Evidence) -> Float[Tensor, " n"]:
    """Share of pairs of evaluators that give a reconstruction the same class, in percent.

    Whether it is the attacked one or not. High on nothing is no merit: see the controls' rows.
    """
    return 100 * agreement(votes(_panel(e)))


def evaluator_kappa(e: Evidence) -> float:
    """Fleiss' kappa: the evaluators' agreement beyond that of chance."""
    return fleiss_kappa(votes(_panel(e)))


def false_positives(e: Evidence) -> float:
    """Attack Acc of the cell's control: how often the evaluator says yes to nothing."""
    labels = gathered(e.control_labels, NO_CONTROL)
    return topk_accuracy(gathered(e.control_logits, NO_CONTROL), labels, 1)


NO_CONTROL = "the cell names no control, so the rate of false positives is not known"


def attack_acc_corrected(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc beyond the control's: (hit − f) / (1 − f), f the rate of false positives.

    As if each reconstruction that shows nothing were accepted at the control's rate f, and each
    that shows something always: the mean is then the share of the latter. Negative where the
    attack does worse than its control. f is taken as known: the spread is of the attack's
    images alone.

    Raises:
        UndefinedError: If the cell names no control, or the evaluator accepts all of it.
    """
    rate = false_positives(e) / 100
    if rate == 1:
        raise UndefinedError("the evaluator accepts the whole control: nothing can be beyond it")
    return (attack_acc(e) - 100 * rate) / (1 - rate)


def _panel(e: Evidence) -> Float[Tensor, "v n k"]:
    """Returns the logits of all evaluators, the table's first."""
    return e.logits[None] if e.others is None else torch.cat([e.logits[None], e.others])


def _target(e: Evidence) -> Float[Tensor, "n c"]:
    return gathered(e.target_logits, "the target's logits of the reconstructions were not kept")


def _own(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Returns each row's score of its label."""
    return scores.gather(1, labels[:, None])[:, 0]


def _by_class(
    e: Evidence, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> dict[int, Float[Tensor, "_ d"]]:
    """Returns attacked class → its features, scaled to length one."""
    unit = F.normalize(features.double(), dim=1)
    return {c: unit[labels == c] for c in sorted(set(e.labels.tolist()))}


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "accuracy", "Accuracy", accuracy, "target", "higher", "percent", PERCENT, version=2
        ),
        Metric(
            "attack_acc", "Attack Acc", attack_acc, "image", "lower", "percent", PERCENT,
            version=2,
        ),
        Metric(
            "attack_acc5", "Attack Acc5", attack_acc5, "image", "lower", "percent", PERCENT,
            version=2,
        ),
        Metric(
            "attack_acc_identity", "Attack Acc per class", attack_acc_identity, "identity",
            "lower", "percent", PERCENT, version=2,
        ),
        Metric(
            "attack_acc_best", "Best's Attack Acc", attack_acc_best, "identity", "lower",
            "percent", PERCENT, version=2,
        ),
        Metric(
            "attack_acc_any", "Any's Attack Acc", attack_acc_any, "identity", "lower", "percent",
            PERCENT, version=2,
        ),
        Metric(
            "attack_acc_mean", "Mean Attack Acc", attack_acc_mean, "image", "lower", "percent",
            PERCENT, version=2,
        ),
        Metric(
            "attack_acc_vote", "Ensemble's Attack Acc", attack_acc_vote, "image", "lower",
            "percent", PERCENT, version=2,
        ),
        Metric(
            "attack_acc_all", "Unanimous Attack Acc", attack_acc_all, "image", "lower", "percent",
            PERCENT, version=2,
        ),
        Metric(
            "attack_acc_corrected", "Corrected Attack Acc", attack_acc_corrected, "image",
            "lower", "percent", (-INF, 100.0), version=2,
        ),
        Metric(
            "false_positives", "False positives", false_positives, "attack", "", "percent",
            PERCENT, version=2,
        ),
        Metric(
            "evaluator_agreement", "Agreement", evaluator_agreement, "image", "", "percent",
            PERCENT, version=2,
        ),
        Metric(
            "evaluator_kappa", "Kappa", evaluator_kappa, "attack", "", "", (-1.0, 1.0), version=2
        ),
        Metric("confidence", "Confidence", confidence, "image", "lower", "percent", PERCENT),
        Metric("fid", "FID", fid, "attack", "higher", "features²", (0.0, INF)),
        Metric(
            "fid_stretched", "FID stretched", fid_stretched, "attack", "higher", "features²",
            (0.0, INF),
        ),
        Metric(
            "fid_successful", "FID successful", fid_successful, "attack", "higher", "features²",
            (0.0, INF), version=2,
        ),
        Metric(
            "fid_successful_stretched", "FID successful stretched", fid_successful_stretched,
            "attack", "higher", "features²", (0.0, INF), version=2,
        ),
        Metric(
            "fid_inception", "Inception FID", fid_inception, "attack", "higher", "", (0.0, INF)
        ),
        Metric(
            "fid_inception_successful", "Inception FID successful", fid_inception_successful,
            "attack", "higher", "", (0.0, INF), version=2,
        ),
        Metric("fid_floor", "FID real", fid_floor, "target", "", "features²", (0.0, INF)),
        Metric("fid_identity", "FID per identity", fid_identity, "identity", "higher", "", (0, 4)),
        Metric(
            "fid_identity_floor", "FID floor", fid_identity_floor, "identity", "", "", (0, 4)
        ),
        Metric("kid", "KID", kid, "attack", "higher"),
        Metric(
            "knn_distance", "KNN Dist", knn_distance, "image", "higher", "features", (0.0, INF)
        ),
        Metric(
            "knn_distance_squared", "KNN Dist²", knn_distance_squared, "image", "higher",
            "features²", (0.0, INF),
        ),
        Metric(
            "feature_distance", "Feature Dist", feature_distance, "image", "higher", "features",
            (0.0, INF),
        ),
        Metric("ssim", "SSIM", ssim, "image", "lower", "", (-1.0, 1.0)),
        Metric("precision", "Precision", precision, "attack", "lower", "percent", PERCENT),
        Metric("recall", "Recall", recall, "attack", "lower", "percent", PERCENT),
        Metric("density", "Density", density, "attack", "lower", "", (0.0, INF)),
        Metric("coverage", "Coverage", coverage, "attack", "lower", "percent", PERCENT),
    )
}  # fmt: skip


def stretch(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Returns each image with its darkest value moved to 0 and its brightest to 1.

    The released code writes images so before it computes the FID. A constant image becomes 0.
    """
    low = x.amin((1, 2, 3), keepdim=True)
    span = x.amax((1, 2, 3), keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1.0)
