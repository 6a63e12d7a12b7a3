"""Generative model inversion, Zhang et al., CVPR 2020, https://arxiv.org/abs/1911.07135."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.priors.gan import WGANGP
from mibench.attacks.views import affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import require
from mibench.store import Work
from mibench.types import Classifier, Offer, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class GMI(WhiteBox):
    """Gradient descent in the latent space of a GAN trained on public images.

    Every sample of a class is a restart of its own. Nesterov's momentum as in the released
    code, which is that of ``torch.optim.SGD``.

    Attributes:
        prior: The GAN; it never sees the target, so every target shares it.
        steps: Descent steps.
        lr: Learning rate.
        momentum: Nesterov momentum.
        lambda_id: Weight of the identity loss against the prior loss.
        clip: Latents stay in [-clip, clip].
        identity: The identity loss.
        views: What it is averaged over; none: the image as it is.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "gmi"
    version: ClassVar[int] = 2
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}
    wants: ClassVar[tuple[Offer, ...]] = ("critic",)

    prior: PriorSpec = field(default_factory=WGANGP)
    steps: int = 1500
    lr: float = 0.02
    momentum: float = 0.9
    lambda_id: float = 100.0
    clip: float = 1.0
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, steps=(1, INF), lr=(1e-12, INF), momentum=(1e-12, 1), lambda_id=(0, INF),
            clip=(1e-12, INF), max_queries=(0, INF),
        )  # fmt: skip

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; all blocks and restarts take each together."""
        return affordable(self, self.steps, samples)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Descends from ``goal.samples`` independent starts of every class, all at once."""
        target, prior = quick(target), quick(prior)
        z = goal.draws(prior).requires_grad_()
        optimizer = torch.optim.SGD([z], self.lr, self.momentum, nesterov=True)

        def loss(z: Tensor, rows: Rows) -> Tensor:
            x = prior.generate(z, rows.labels)
            realism = goal.realism(prior, x, rows)
            return prior_loss(realism) + self.lambda_id * self.wrong(target, x, rows)

        steps = self.planned_steps(len(goal.blocks), goal.samples)
        steps = self.paid_steps(target, steps, goal.samples * len(goal.labels))
        descend(
            z, optimizer, loss, steps, goal, work, looks=self.queries_per_image,
            after=lambda: z.clamp_(-self.clip, self.clip), show=lambda: goal.images(prior, z),
        )  # fmt: skip
        return goal.reconstructions(prior, z)


def prior_loss(realism: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """L_prior = −D(G(z)): the reconstruction should look real to the critic."""
    return -realism
