"""Identity losses: how wrong the target is about a reconstruction."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.roles import IdentityLoss
from mibench.spec import require
from mibench.types import Labels, Logits

INF = float("inf")


@dataclass(frozen=True)
class CrossEntropy(IdentityLoss):
    """−log f_y(x), the identity loss of GMI, KED-MI and VMI."""

    name: ClassVar[str] = "cross-entropy"

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image, in nats."""
        loss: Tensor = F.cross_entropy(logits, labels, reduction="none")
        return loss


@dataclass(frozen=True)
class MaxMargin(IdentityLoss):
    """max_{k≠y} logit_k − logit_y, Yuan et al., AAAI 2023, https://arxiv.org/abs/2302.09814."""

    name: ClassVar[str] = "max-margin"

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image; negative once the class leads."""
        own = F.one_hot(labels, logits.shape[1]).bool()
        return (
            logits.masked_fill(own, -float("inf")).amax(1)
            - logits.gather(1, labels[:, None])[:, 0]
        )


@dataclass(frozen=True)
class LogitMatching(IdentityLoss):
    """−logit_y + weight · mean_d (Z_M − μ)², Nguyen et al. (LOMMA), CVPR 2023.

    A logit can grow without end; the second term keeps the last latent near its mean μ over
    public images. https://arxiv.org/abs/2304.01669

    Attributes:
        weight: Of the second term, a mean over the latent's dimensions; 1 in every released
            configuration.
    """

    name: ClassVar[str] = "logit-matching"
    version: ClassVar[int] = 2
    public: ClassVar[bool] = True

    weight: float = 1.0

    def __post_init__(self) -> None:
        require(self, weight=(0, INF))

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image; without limit below."""
        loss: Tensor = -logits.gather(1, labels[:, None])[:, 0]
        return loss

    def penalty(self, offset: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Returns the second term."""
        return self.weight * offset.square().mean(1)
