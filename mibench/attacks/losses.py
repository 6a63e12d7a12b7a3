"""Identity losses: how wrong the target is about a reconstruction."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.roles import IdentityLoss
from mibench.spec import require
from mibench.types import Labels, Logits

INF = float("inf")
SMALL = 1e-15
"""What divides is at least this."""


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


@dataclass(frozen=True)
class Confidence(IdentityLoss):
    """1 − f_y(x), the cost of MI-Face, Fredrikson et al., CCS 2015.

    It has hardly any gradient where the target is sure of another class.
    https://doi.org/10.1145/2810103.2813677
    """

    name: ClassVar[str] = "confidence"

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the loss of each image, in [0, 1]."""
        return 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True)
class Poincare(IdentityLoss):
    r"""The distance of the logits to the class in the Poincaré ball, Struppek et al., ICML 2022.

    .. math:: d = \operatorname{arcosh}\Big(1 + \frac{2 \|u - v\|_2^2}
        {(1 - \|u\|_2^2)(1 - \|v\|_2^2)}\Big), \quad u = l / \|l\|_1, \quad v = (1 - \xi) e_y

    It does not change where all logits are multiplied by the same, and is least a little before
    the class has all of the logits' sum. https://arxiv.org/abs/2201.12179

    Attributes:
        xi: ξ.
    """

    name: ClassVar[str] = "poincare"

    xi: float = 1e-4

    def __post_init__(self) -> None:
        require(self, xi=(1e-12, 0.5))

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the distance of each image, computed in double precision."""
        wide = logits.double()
        u = wide / wide.abs().sum(1, keepdim=True).clamp(min=SMALL)
        v = (1 - self.xi) * F.one_hot(labels, wide.shape[1])
        room = (1 - u.square().sum(1)).clamp(min=SMALL) * (1 - v.square().sum(1))
        distance = torch.acosh(1 + 2 * (u - v).square().sum(1) / room)
        return distance.to(logits.dtype)
