"""The metrics of Section 5.1: a function, its unit and which way is better for the owner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.accuracy import topk_accuracy, topk_hits
from mibench.evaluation.evidence import Evidence
from mibench.evaluation.fid import frechet_distance


@dataclass(frozen=True)
class Metric:
    """A number of a table.

    Attributes:
        name: Column in CSV.
        title: Column in print.
        compute: Evidence → one value per image (shape (n,)), or one value of the whole.
        per: What it is measured on: each "image", the whole "attack", or the "target" alone,
            whose value no repeat of the attack can change.
        better: Which way is better for the defender: less leakage, more utility.
        unit: "percent", or "" for a distance.
        version: Raised by hand when the function changes its result.
    """

    name: str
    title: str
    compute: Callable[[Evidence], Float[Tensor, " n"] | float]
    per: Literal["image", "attack", "target"]
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
    )
}


def stretch(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Returns each image with its darkest value moved to 0 and its brightest to 1.

    The released code writes images so before it computes the FID. A constant image becomes 0.
    """
    low = x.amin((1, 2, 3), keepdim=True)
    span = x.amax((1, 2, 3), keepdim=True) - low
    return (x - low) / torch.where(span > 0, span, 1.0)
