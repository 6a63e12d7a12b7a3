"""Accuracies, in percent."""

from jaxtyping import Float, Int
from torch import Tensor

from mibench.ties import in_top


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
