r"""LOKT, Nguyen et al., NeurIPS 2023, https://arxiv.org/abs/2310.19342: labels alone.

The target's labels are spent on a prior and on surrogates; the attack is white box, on these:

.. math:: \min_z \; \frac1S \sum_s \sum_i \Big(\max_{k \ne y} l^s_k(t_{si}(G(z, y)))
    - l^s_y(t_{si}(G(z, y)))\Big)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mibench.attacks.access import Query, Surrogate
from mibench.attacks.bases import BlackBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import MaxMargin
from mibench.attacks.plgmi import LOOKS
from mibench.attacks.priors.tacgan import TACGAN
from mibench.attacks.views import identity_loss, queries_per_image
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import require
from mibench.store import Work
from mibench.types import Access, Offer, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class LOKT(BlackBox):
    """Gradient descent on surrogates; the target is asked nothing more.

    Every sample of a class is a restart of its own, and all count.

    Attributes:
        prior: Has the surrogates.
        steps: Steps of Adam.
        lr: Its learning rate.
        augment: How each surrogate looks at an image, in a draw of its own.
        identity: The identity loss; a step takes the sum over looks.
        max_queries: As every attack has it; nothing is asked.
    """

    name: ClassVar[str] = "lokt"
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}
    access: ClassVar[Access] = "labels"
    wants: ClassVar[tuple[Offer, ...]] = ("surrogates",)

    prior: PriorSpec = field(default_factory=TACGAN)
    steps: int = 600
    lr: float = 0.1
    augment: tuple[View, ...] = LOOKS
    identity: IdentityLoss = field(default_factory=MaxMargin)
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(self, steps=(1, INF), lr=(1e-12, INF), max_queries=(0, INF))
        if self.identity.public or self.identity.students:
            raise ValueError(
                f"LOKT.identity must not be {self.identity.name}: it is about the target itself"
            )

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps."""
        return self.steps

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Descends from ``goal.samples`` independent starts of every class, all at once."""
        surrogates = [Surrogate(network, work) for network in prior.surrogates]
        z = goal.draws(prior).requires_grad_()
        looks = queries_per_image(self.augment)

        def loss(z: Tensor, rows: Rows) -> Tensor:
            x = prior.generate(z, rows.labels)
            each = [
                identity_loss(self.identity, self.augment, s, x, rows.labels, rows.groups)
                for s in surrogates
            ]
            return looks * torch.stack(each).mean(0)

        optimizer = torch.optim.Adam([z], self.lr)
        descend(z, optimizer, loss, self.steps, goal, work, looks=looks)
        return goal.reconstructions(prior, z)
