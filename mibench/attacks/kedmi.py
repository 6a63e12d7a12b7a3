"""Knowledge-enriched distributional model inversion, Chen et al., ICCV 2021.

https://arxiv.org/abs/2010.04092
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.priors.gan import InversionGAN
from mibench.attacks.views import affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import choose, require
from mibench.store import Work
from mibench.types import Classifier, Offer, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class KEDMI(WhiteBox):
    """Fits N(μ_y, σ_y²) in latent space for every class, then draws from it.

    Samples of a class are draws from one fitted distribution, not attacks of their own;
    ``Trials.repeats`` repeats the attack.

    Attributes:
        prior: The inversion-specific GAN, one per target.
        steps: Steps of Adam on μ and log σ².
        lr: Its learning rate.
        lambda_id: Weight of the identity loss against the prior loss.
        log_var: Initial log σ²: 0 in the code released with BiDO, 1 in KED-MI's own.
        prior_loss: "improved" is −log D of the log-sum-exp; "plain" is −D.
        clip: Latents are held in [-clip, clip] before use; 0 for no limit. The released
            code computes such a limit but does not use it.
        identity: The identity loss.
        views: What it is averaged over; none: the image as it is.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "ked-mi"
    version: ClassVar[int] = 2
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}
    wants: ClassVar[tuple[Offer, ...]] = ("critic",)

    prior: PriorSpec = field(default_factory=InversionGAN)
    steps: int = 2400
    lr: float = 0.02
    lambda_id: float = 100.0
    log_var: float = 0.0
    prior_loss: Literal["improved", "plain"] = "improved"
    clip: float = 0.0
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, steps=(1, INF), lr=(1e-12, INF), lambda_id=(0, INF), log_var=(-50, 50),
            clip=(0, INF), max_queries=(0, INF),
        )  # fmt: skip
        choose(self, prior_loss=PRIOR_LOSSES)

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; all blocks take each together, with one draw of every class."""
        return affordable(self, self.steps, 1)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Fits every class, then draws; a block's realism is judged among its own images."""
        target, prior = quick(target), quick(prior)
        theta = torch.zeros(2, len(goal.labels), prior.z_dim)  # μ and log σ²
        theta[1] = self.log_var
        theta = theta.to(goal.device).requires_grad_()
        optimizer = torch.optim.Adam([theta], self.lr)

        def draw(copies: int = 1) -> Tensor:
            z = theta[0] + (0.5 * theta[1]).exp() * goal.noise(copies, prior.z_dim)
            return z.clamp(-self.clip, self.clip) if self.clip else z

        def loss(z: Tensor, rows: Rows) -> Tensor:
            x = prior.generate(z, rows.labels)
            realism = PRIOR_LOSSES[self.prior_loss](goal.realism(prior, x, rows))
            return realism + self.lambda_id * self.wrong(target, x, rows)

        steps = self.paid_steps(target, self.planned_steps(len(goal.blocks)), len(goal.labels))
        looks = self.queries_per_image
        descend(
            theta, optimizer, loss, steps, goal, work, latents=draw, copies=1, looks=looks,
            show=lambda: goal.images(prior, draw(goal.samples)),
        )  # fmt: skip
        with torch.no_grad():
            return goal.reconstructions(prior, draw(goal.samples))


def improved_prior_loss(score: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log D with D = e^s / (e^s + 1) and s the log-sum-exp of the class logits."""
    return F.softplus(score) - score


def plain_prior_loss(score: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−s: the more real, the better, without limit."""
    return -score


PRIOR_LOSSES = {"improved": improved_prior_loss, "plain": plain_prior_loss}
