r"""Purifier of prediction scores, Yang et al. 2020, https://arxiv.org/abs/2005.03915.

.. math:: \min_G \; \|G(f) - f\|^2 + \lambda \, L(G(f), \arg\max f)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.defenses.release.base import Answer, Release
from mibench.roles import Defense, NoDefense
from mibench.seeding import seeded
from mibench.spec import require
from mibench.store import Work
from mibench.types import Images, ImageSet, Scalar

INF = float("inf")
DIGITS = 6
"""Decimals of released scores: the last bits of a product depend on the other images of a call."""


@dataclass(frozen=True)
class Purifier(Release):
    """Lets out what an autoencoder of scores makes of them, held in [0, 1].

    It learns on the scores of held-out images, all at once at each step, and so forgets what is
    peculiar to one image.

    Attributes:
        lambda_: Weight of the cross-entropy of G(f), taken as logits (λ), at least 0.
        steps: Of Adam.
        lr: Its learning rate.
        inner: How the target is trained.
    """

    name: ClassVar[str] = "purifier"
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}

    lambda_: float = 0.2
    steps: int = 1000
    lr: float = 1e-2
    inner: Defense = field(default_factory=NoDefense)

    def __post_init__(self) -> None:
        require(self, lambda_=(0, INF), steps=(1, INF), lr=(1e-12, INF))

    def fit(
        self, answer: Answer, held_out: ImageSet, rng: torch.Generator, work: Work
    ) -> dict[str, Tensor]:
        """Returns the weights of the autoencoder."""
        scores = answer(held_out)
        network = autoencoder(scores.shape[1])
        adam = torch.optim.Adam(network.parameters(), self.lr)
        for _ in range(self.steps):
            adam.zero_grad(set_to_none=True)
            self.loss(network(scores), scores).backward()  # type: ignore[no-untyped-call]
            adam.step()
        return network.state_dict()

    def loss(self, purified: Float[Tensor, "n k"], scores: Float[Tensor, "n k"]) -> Scalar:
        """Returns the mean over images of the squared distance and the weighted cross-entropy."""
        distance = (purified - scores).square().sum(1).mean()
        return distance + self.lambda_ * F.cross_entropy(purified, scores.argmax(1))

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the purified scores, rounded; rows need not sum to 1."""
        with torch.device("meta"), seeded("shapes only"):
            network = autoencoder(probs.shape[1])
        wide = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
        network.load_state_dict(wide, assign=True)
        network.eval()
        with torch.no_grad():
            purified: Tensor = network(probs.double()).round(decimals=DIGITS)
        return purified.clamp(0, 1).to(probs.dtype)


def autoencoder(classes: int) -> nn.Sequential:
    """Returns a perceptron whose hidden layers have 0.7, 0.4 and 0.7 as many units as classes."""
    wide, narrow = max(1, 7 * classes // 10), max(1, 4 * classes // 10)
    layers: list[nn.Module] = []
    width = classes
    for units in (wide, narrow, wide):
        layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, classes))
