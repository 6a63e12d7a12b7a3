"""Reconstructions to look at: what the evaluator says of each, and what it resembles most."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mibench.evaluation import distance
from mibench.evaluation.lenses import EVALUATOR
from mibench.precision import FLOAT32, at
from mibench.running.stages import EvidenceStage
from mibench.store import Store


@dataclass(frozen=True)
class Gallery:
    """Some reconstructions of one run, class by class.

    Attributes:
        images: (n, c, h, w) in [0, 1].
        labels: The attacked class of each, (n,).
        samples: Which reconstruction of its class each is, (n,).
        logits: The evaluator's, (n, k).
        nearest: Of the private images of the attacked class that FID compares with, the nearest
            to each in the evaluator's features, (n, c, h, w); None where none may be shown.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor
    logits: Tensor
    nearest: Tensor | None


def layout(classes: int, samples: int, most: int) -> tuple[int, int]:
    """Returns how many classes and how many samples of each are shown, ``most`` images in all."""
    shown = min(classes, most)
    return shown, max(1, min(samples, most // shown))


def gallery(stage: EvidenceStage, store: Store, most: int, *, private: bool) -> Gallery:
    """Returns the first samples of the first classes.

    Args:
        stage: A finished stage.
        store: Where it is.
        most: Images at most.
        private: Whether private images may be shown.
    """
    run = stage.inversion
    evidence = stage.evidence(store.load)
    classes, samples = layout(run.classes, run.samples, most)
    places = torch.arange(samples)[None] * run.classes + torch.arange(classes)[:, None]
    index = places.flatten()
    labels = evidence.labels[index]
    nearest = None
    if private:
        real = stage.compared(stage.images.splits(store.load).private)
        features, own = evidence.through(EVALUATOR)
        place = distance.nearest(features[index], labels, own, evidence.real_labels)[1]
        nearest = real.take(place).images
    with at(store.meta(stage).get("precision", FLOAT32)):
        images = stage.judged(store.load)[index]
    return Gallery(images, labels, evidence.passes[index], evidence.logits[index], nearest)
