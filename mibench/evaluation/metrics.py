"""The metrics of Section 5.1: a function, its unit and which way is better for the owner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.accuracy import topk_accuracy, topk_hits
from mibench.evaluation.evidence import Evidence
from mibench.evaluation.fid import frechet_distance, frechet_distance_of_few


@dataclass(frozen=True)
class Metric:
    """A number of a table.

    Attributes:
        name: Column in CSV.
        title: Column in print.
        compute: Evidence → n values, one per image or attacked class, or one of the whole.
        per: What it is measured on: each "image", each "identity", the whole "attack", or
            the "target" alone, whose value no repeat of the attack can change.
        better: Which way is better for the defender: less leakage, more utility.
        unit: "percent", or "" for a distance.
        version: Raised by hand when the function changes its result.
    """

    name: str
    title: str
    compute: Callable[[Evidence], Float[Tensor, " n"] | float]
    per: Literal["image", "identity", "attack", "target"]
    better: Literal["lower", "higher"]
    unit: str = ""
    version: int = 1


def accuracy(e: Evidence) -> float:
    """Utility: the target's accuracy on the private test images, in percent."""
    return topk_accuracy(e.test_logits, e.test_labels, 1)


def attack_acc(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc: 100 for each reconstruction that the evaluator gives the attacked class."""
    return topk_hits(e.logits, e.labels, 1)


def attack_acc5(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc5: 100 for each whose attacked class is among the evaluator's best five."""
    return topk_hits(e.logits, e.labels, 5)


def fid(e: Evidence) -> float:
    """FID between reconstructions and real private images, in the evaluator's features."""
    return frechet_distance(e.features, e.real)


def fid_identity(e: Evidence) -> Float[Tensor, " c"]:
    """FID within each attacked class, in evaluator features scaled to length one: 0 to 4.

    As Peng et al. (KDD 2022) evaluate VMI. Few images span few of the features' dimensions,
    so two samples of one distribution are far from 0: compare equal numbers only.

    Raises:
        ValueError: If a class has fewer than two reconstructions or real images.
    """
    found, real = _by_class(e, e.features, e.labels), _by_class(e, e.real, e.real_labels)
    for c, a in found.items():
        if min(len(a), len(real[c])) < 2:
            raise ValueError(
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
        ValueError: If a class has fewer than four real images.
    """
    real = _by_class(e, e.real, e.real_labels)
    for c, b in real.items():
        if len(b) < 4:
            raise ValueError(f"halves of class {c} need four or more real images, got {len(b)}")
    distances = [frechet_distance_of_few(b[::2], b[1::2]) for b in real.values()]
    return torch.tensor(distances, dtype=torch.float64)


def _by_class(
    e: Evidence, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> dict[int, Float[Tensor, "_ d"]]:
    """Returns attacked class → its features, scaled to length one."""
    unit = F.normalize(features.double(), dim=1)
    return {c: unit[labels == c] for c in sorted(set(e.labels.tolist()))}


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", "Accuracy", accuracy, per="target", better="higher", unit="percent"),
        Metric(
            "attack_acc", "Attack Acc", attack_acc, per="image", better="lower", unit="percent"
        ),
        Metric(
            "attack_acc5", "Attack Acc5", attack_acc5, per="image", better="lower", unit="percent"
        ),
        Metric("fid", "FID", fid, per="attack", better="higher"),
        Metric("fid_identity", "FID per identity", fid_identity, per="identity", better="higher"),
        Metric(
            "fid_identity_floor", "FID floor", fid_identity_floor, per="identity", better="higher"
        ),
    )
}


def stretch(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Returns each image with its darkest value moved to 0 and its brightest to 1.

    The released code writes images so before it computes the FID. A constant image becomes 0.
    """
    low = x.amin((1, 2, 3), keepdim=True)
    span = x.amax((1, 2, 3), keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1.0)
