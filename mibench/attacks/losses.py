"""Identity losses: how wrong the target is about a reconstruction."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.types import Labels, Logits


@dataclass(frozen=True)
class CrossEntropy:
    """−log f_y(x), the identity loss of GMI, KED-MI and VMI."""

    name: ClassVar[str] = "cross-entropy"
    version: ClassVar[int] = 1

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image, in nats."""
        loss: Tensor = F.cross_entropy(logits, labels, reduction="none")
        return loss


@dataclass(frozen=True)
class MaxMargin:
    """max_{k≠y} logit_k − logit_y, Yuan et al., AAAI 2023, https://arxiv.org/abs/2302.09814."""

    name: ClassVar[str] = "max-margin"
    version: ClassVar[int] = 1

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image; negative once the class leads."""
        own = F.one_hot(labels, logits.shape[1]).bool()
        return logits.masked_fill(own, -float("inf")).amax(1) - logits[own]


IdentityLoss = CrossEntropy | MaxMargin
