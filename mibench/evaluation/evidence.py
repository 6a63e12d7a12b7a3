"""What the classifiers saw; metrics are functions of this and nothing else."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Evidence:
    """The evaluation classifier's view of one inversion, and the target's of its test set.

    Reconstructions come pass by pass: image i belongs to pass i // classes.

    Attributes:
        labels: Attacked class of each reconstruction.
        block: Block of each reconstruction.
        passes: Pass of each reconstruction.
        logits: Evaluation logits of the reconstructions.
        features: Evaluation features (penultimate layer) of the reconstructions.
        real: Evaluation features of the real private images they are compared with.
        real_labels: Their classes.
        test_logits: The target's logits of the private test images.
        test_labels: Their labels.
    """

    labels: Int[Tensor, " n"]
    block: Int[Tensor, " n"]
    passes: Int[Tensor, " n"]
    logits: Float[Tensor, "n k"]
    features: Float[Tensor, "n d"]
    real: Float[Tensor, "m d"]
    real_labels: Int[Tensor, " m"]
    test_logits: Float[Tensor, "t c"]
    test_labels: Int[Tensor, " t"]
