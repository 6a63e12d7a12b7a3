"""Accuracies, in percent: of the target, and of the attack by the evaluator."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.evidence import Evidence, UndefinedError, own, target_logits
from mibench.evaluation.metric import INF, PERCENT, metric
from mibench.ties import in_top, votes


def topk_hits(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], top: int
) -> Float[Tensor, " n"]:
    """Returns 100 for each row whose label is among its ``top`` largest logits, else 0.

    Where the label's logit equals others, it is the chance, in percent, in a random order of them.

    Raises:
        ValueError: If there are fewer than ``top`` classes.
    """
    if top > logits.shape[1]:
        raise ValueError(f"top-{top} accuracy of {logits.shape[1]} classes")
    return 100 * in_top(logits, labels, top)


def topk_accuracy(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], top: int) -> float:
    """Returns the share, in percent, of rows whose label is among their ``top`` largest logits.

    Raises:
        ValueError: If there are fewer than ``top`` classes.
    """
    return topk_hits(logits, labels, top).mean().item()


@metric("Accuracy", "target", "higher", "percent", PERCENT, version=2)
def accuracy(e: Evidence) -> float:
    """Utility: the target's accuracy on the private test images, in percent."""
    return topk_accuracy(e.test_logits, e.test_labels, 1)


@metric("Attack Acc", "image", "lower", "percent", PERCENT, version=2)
def attack_acc(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc: 100 for each reconstruction that the evaluator gives the attacked class."""
    return topk_hits(e.logits, e.labels, 1)


@metric("Attack Acc5", "image", "lower", "percent", PERCENT, version=2)
def attack_acc5(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc5: 100 for each whose attacked class is among the evaluator's best five."""
    if e.logits.shape[1] < 5:
        raise UndefinedError(f"Acc5 needs five classes, the evaluator knows {e.logits.shape[1]}")
    return topk_hits(e.logits, e.labels, 5)


@metric("Attack Acc per class", "identity", "lower", "percent", PERCENT, version=2)
def attack_acc_identity(e: Evidence) -> Float[Tensor, " c"]:
    """Attack Acc of each attacked class, in percent."""
    hits = attack_acc(e)
    return torch.stack([hits[e.labels == c].mean() for c in e.classes])


@metric("Best's Attack Acc", "identity", "lower", "percent", PERCENT, version=2)
def attack_acc_best(e: Evidence) -> Float[Tensor, " c"]:
    """Attack Acc of the one reconstruction of each class that the target scores highest."""
    scores, hits = own(target_logits(e), e.labels), attack_acc(e)
    best = [scores.masked_fill(e.labels != c, -INF).argmax() for c in e.classes]
    return hits[torch.stack(best)]


@metric("Any's Attack Acc", "identity", "lower", "percent", PERCENT, version=2)
def attack_acc_any(e: Evidence) -> Float[Tensor, " c"]:
    """100 for each attacked class of which the evaluator recognises any reconstruction.

    Among classes of equal score it is the best image's chance: one order of the classes holds for
    all images, so more images of the same answer are no more chances.
    """
    hits = attack_acc(e)
    return torch.stack([hits[e.labels == c].amax() for c in e.classes])


@metric("Top name", "attack", unit="percent", range=PERCENT)
def most_frequent(e: Evidence) -> float:
    """Share of all reconstructions that the evaluator gives its favourite class, in percent.

    Classes of equal score share an image. Of samples of a prior it says how far a blind guess
    can get with one lucky class.
    """
    return 100 * votes(e.logits).mean(0).amax().item()
