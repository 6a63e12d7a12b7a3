r"""MIRROR, white box, An et al., NDSS 2022, https://model-inversion.github.io/mirror/.

The style of a StyleGAN is moved within what its mapping usually gives, so that images stay likely:

.. math:: \min_w L_{id}(f(G(w)), y), \qquad |p - \bar p| \le c \, \sigma_p, \quad
    p = \mathrm{LeakyReLU}_5(w)

with mean and deviation over sampled styles (the P-space clip). After each step p is held there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import cos, pi
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.ppa import check_pool, chosen_styles, drawn, of_styles
from mibench.attacks.priors.styled import StyledPrior
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.selection import remembering
from mibench.attacks.views import Augment, affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import require
from mibench.store import Work
from mibench.types import Classifier, Offer, Prior, Reconstructions

INF = float("inf")
NEGATIVE_SLOPE = 0.2
"""Of the mapping's last activation, which p undoes."""


@dataclass(frozen=True)
class Mirror(WhiteBox):
    """Moves styles within their usual range, and keeps each at its lowest loss.

    Attributes:
        prior: The StyleGAN; it never sees the target, so every target shares it.
        pool: Latents among which the classes of a block choose where to start.
        psi: Truncation of the pool's styles, towards the mean style.
        cutoff: The number of styles that are truncated, from the coarsest on; 0 for all (8 as
            released).
        deviations: c, how far p may be from its mean, in standard deviations.
        steps: Steps of Adam.
        lr: Its highest learning rate.
        ramp_up: Share of the steps in which it rises, from 0 at the first.
        ramp_down: Share of the steps in which it falls, as half a cosine.
        augment: How the target looks at an image at each step, where there are no ``views``.
        identity: The identity loss.
        views: What it is averaged over in place of ``augment``.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "mirror"
    small: ClassVar[Mapping[str, Any]] = {"pool": 6, "steps": 8}
    wants: ClassVar[tuple[Offer, ...]] = ("styles",)

    prior: PriorSpec = field(default_factory=StyleGAN2)
    pool: int = 100_000
    psi: float = 0.7
    cutoff: int = 0
    deviations: float = 1.0
    steps: int = 20_000
    lr: float = 0.25
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    augment: tuple[View, ...] = (Augment(flip=0.5, each=False),)
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, pool=(2, INF), psi=(0, 1), cutoff=(0, INF), deviations=(0, INF), steps=(1, INF),
            lr=(1e-12, INF), ramp_up=(1e-12, 1), ramp_down=(1e-12, 1), max_queries=(0, INF),
        )  # fmt: skip

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns the steps; with a limit it depends on the classes, which share the pool."""
        check_pool(self, samples)
        steps = affordable(self, self.steps, samples)
        return None if self.max_queries else steps

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Chooses among the pool, then moves ``goal.samples`` styles of every class at once."""
        assert isinstance(prior, StyledPrior)
        styled, target = prior, quick(target)
        first, images = self.pool * len(goal.blocks), goal.samples * len(goal.labels)
        steps = self.paid_steps(target, self.steps, images, reserved=first)
        w, pool = chosen_styles(self, target, styled, goal, goal.samples, ())
        box = Box.of(pool.view(len(goal.blocks), self.pool, -1), self.deviations).of_each(goal)
        optimizer = torch.optim.Adam([w.requires_grad_()], self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step / steps, self.ramp_up, self.ramp_down)
        )

        def after() -> None:
            w.copy_(box.clip(w))
            schedule.step()

        def loss(w: Tensor, rows: Rows) -> Tensor:
            return self.wrong(target, drawn(styled, w, clamp=False), rows)

        noted, beside = remembering(loss, w)
        descend(
            w, optimizer, noted, steps, goal, work, after=after, looks=self.queries_per_image,
            beside={"schedule": schedule, **beside},
            show=lambda: of_styles(styled, goal, beside["best"].view_as(w)).images,
        )  # fmt: skip
        return of_styles(styled, goal, beside["best"].view_as(w))


@dataclass(frozen=True)
class Box:
    """How far p may go, for each block of styles or each class."""

    low: Float[Tensor, "b d"]
    high: Float[Tensor, "b d"]

    @classmethod
    def of(cls, w: Float[Tensor, "b n d"], deviations: float) -> "Box":
        """Returns the box around the mean over n styles of each block."""
        p = F.leaky_relu(w, 1 / NEGATIVE_SLOPE)
        mean, std = p.mean(1), p.std(1, correction=0)
        return cls(mean - deviations * std, mean + deviations * std)

    def of_each(self, goal: Goal) -> "Box":
        """Returns the box of each class, which is its block's."""
        sizes = torch.tensor(goal.sizes, device=self.low.device)
        return Box(*(side.repeat_interleave(sizes, 0) for side in (self.low, self.high)))

    def clip(self, w: Float[Tensor, "s b d"]) -> Float[Tensor, "s b d"]:
        """Returns styles whose p is held within the box."""
        p = F.leaky_relu(w, 1 / NEGATIVE_SLOPE)
        return F.leaky_relu(torch.minimum(torch.maximum(p, self.low), self.high), NEGATIVE_SLOPE)


def rate(done: float, ramp_up: float, ramp_down: float) -> float:
    """Returns the share of the learning rate after a share of the steps."""
    falling = min(1.0, (1 - done) / ramp_down)
    return (0.5 - 0.5 * cos(falling * pi)) * min(1.0, done / ramp_up)
