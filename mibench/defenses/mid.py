"""Mutual information regularization, Wang et al., AAAI 2021, https://arxiv.org/abs/2009.05241."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.defenses.low_rank import linear_last
from mibench.roles import Batch, Defense
from mibench.spec import require
from mibench.types import Classifier, Logits, Scalar


@dataclass(frozen=True)
class MID(Defense):
    """Squeezes I(X; Ŷ) through a stochastic bottleneck in place of neck and last layer.

    The noise is drawn at test time too, as released: the target's answers are random.

    Attributes:
        lambda_: Weight of the variational bound on the mutual information, at least 0.
        ratio: Width of the bottleneck as a share of that of Z_M, in (0, 1].
    """

    name: ClassVar[str] = "mid"

    lambda_: float
    ratio: float = 0.5

    def __post_init__(self) -> None:
        require(self, lambda_=(0, float("inf")), ratio=(1e-6, 1))

    def harden(self, network: Classifier) -> Classifier:
        """Returns the network with a bottleneck of width ratio·d on Z_M, in place of all behind.

        Raises:
            ValueError: If its last layer is not linear.
        """
        width = linear_last(network, self, hidden=True).in_features
        network.neck = nn.Identity()
        network.noise_dim = max(1, int(self.ratio * width))
        network.last = Bottleneck(width, network.noise_dim, network.num_classes)
        return network

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the task loss and λ KL(q(z|x) ‖ N(0, I)), averaged over the batch."""
        x, y = batch.x, batch.y
        last = network.last
        assert isinstance(last, Bottleneck), "MID trains what it hardened"
        mu, std = last.encode(network.latents(x)[-1])
        logits = last.decode(mu, std, None)
        return {"task": F.cross_entropy(logits, y), "I(X;Z)": self.lambda_ * gaussian_kl(mu, std)}

    def twin(self) -> Defense:
        """Returns the same bottleneck without a bound on what passes."""
        return replace(self, lambda_=0.0)


class Bottleneck(nn.Module):
    """A last layer that draws z ~ N(μ(h), σ(h)²) and classifies the draw."""

    def __init__(self, features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.statistics = nn.Linear(features, 2 * width)
        self.classify = nn.Linear(width, num_classes)

    def encode(self, h: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Returns (μ, σ) with σ = softplus(· − 5)."""
        mu, rho = self.statistics(h).chunk(2, dim=1)
        return mu, F.softplus(rho - 5)

    def decode(self, mu: Tensor, std: Tensor, noise: Tensor | None) -> Logits:
        """Returns the logits of one draw; without ``noise`` the global generator gives it."""
        if noise is None:
            noise = torch.randn(std.shape).to(std.device)  # on the CPU: streams differ
        logits: Logits = self.classify(mu + std * noise)
        return logits

    def forward(self, h: Float[Tensor, "n d"], noise: Tensor | None = None) -> Logits:
        """Maps Z_M to the logits of one draw."""
        return self.decode(*self.encode(h), noise)


def gaussian_kl(mu: Float[Tensor, "n k"], std: Float[Tensor, "n k"]) -> Scalar:
    r"""Mean over the batch of KL(N(μ, σ²) ‖ N(0, I)), in nats.

    .. math:: \tfrac12 \sum_k (\mu_k^2 + \sigma_k^2 - 1 - 2 \log \sigma_k)

    The logarithm's argument is held above 1e-12, where softplus underflows.
    """
    log = std.clamp(min=1e-12).log()
    return 0.5 * (mu.square() + std.square() - 1 - 2 * log).sum(1).mean()
