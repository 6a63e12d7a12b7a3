r"""Pseudo-label guided model inversion, Yuan et al., AAAI 2023, https://arxiv.org/abs/2302.09814.

The class is handed to a conditional generator, so that only the latent has to be found:

.. math:: \min_z \; \sum_i \Big(\max_{k \ne y} l_k(t_i(G(z, y))) - l_y(t_i(G(z, y)))\Big)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import MaxMargin
from mibench.attacks.priors.plg import LOOK, PLGGAN
from mibench.attacks.views import affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import require
from mibench.store import Work
from mibench.types import Classifier, Prior, Reconstructions

INF = float("inf")
LOOKS = (replace(LOOK, jittered=1.0, looks=2),)
"""What a step looks at."""


@dataclass(frozen=True)
class PLGMI(WhiteBox):
    """Gradient descent in the latent space of a class-conditional GAN that the target taught.

    Every sample of a class is a restart of its own, and all count.

    Attributes:
        prior: The conditional GAN, one per target.
        steps: Steps of Adam.
        lr: Its learning rate.
        augment: How the target looks at an image at each step, where there are no ``views``.
        identity: The identity loss; a step takes the sum over looks.
        views: What it is taken of in place of ``augment``.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "plg-mi"
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}

    prior: PriorSpec = field(default_factory=PLGGAN)
    steps: int = 600
    lr: float = 0.1
    augment: tuple[View, ...] = LOOKS
    identity: IdentityLoss = field(default_factory=MaxMargin)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(self, steps=(1, INF), lr=(1e-12, INF), max_queries=(0, INF))

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; all blocks and restarts take each together."""
        return affordable(self, self.steps, samples)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Descends from ``goal.samples`` independent starts of every class, all at once."""
        target, prior = quick(target), quick(prior)
        z = goal.draws(prior).requires_grad_()
        optimizer = torch.optim.Adam([z], self.lr)
        looks = self.queries_per_image

        def loss(z: Tensor, rows: Rows) -> Tensor:
            return looks * self.wrong(target, prior.generate(z, rows.labels), rows)

        steps = self.planned_steps(len(goal.blocks), goal.samples)
        steps = self.paid_steps(target, steps, goal.samples * len(goal.labels))
        descend(
            z, optimizer, loss, steps, goal, work, looks=looks,
            show=lambda: goal.images(prior, z),
        )  # fmt: skip
        return goal.reconstructions(prior, z)
