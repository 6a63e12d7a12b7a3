r"""Plug & Play Attacks, Struppek et al., ICML 2022, https://arxiv.org/abs/2201.12179.

Styles of a StyleGAN that knows nothing of the target are chosen among many, moved, and chosen
again:

.. math:: \min_w \; E_t[d(f(t(G(w))), y)]

with :math:`d` the Poincaré distance and :math:`t` a random part of the image. The first choice is
by the target's confidence in a candidate and in its mirror image, the last by its mean confidence
over random looks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import Poincare
from mibench.attacks.priors.styled import StyledPrior
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.selection import starts, surest
from mibench.attacks.views import Augment, Flip, Plain, affordable, queries_per_image
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import require, require_betas
from mibench.store import Work
from mibench.types import Classifier, Images, Offer, Prior, Reconstructions

INF = float("inf")
CLOSE = (Augment(scale=(0.9, 1.0), flip=0.0, each=False),)
"""What a step looks at."""
FAR = (Augment(scale=(0.5, 0.9), ratio=(0.8, 1.2), looks=100),)
"""What the last choice looks at."""
TWO_SIDES = (Plain(), Flip())
"""What the first choice looks at."""


@dataclass(frozen=True)
class PPA(WhiteBox):
    """Moves the best of many styles, one w for all layers, and keeps the best of those moved.

    Attributes:
        prior: The StyleGAN; it never sees the target, so every target shares it.
        pool: Latents among which the classes of a block choose where to start.
        psi: Truncation of the pool's styles, towards the mean style.
        cutoff: The number of styles that are truncated, from the coarsest on; 0 for all. The
            first style is what moves, so with fewer than all (8 as released) another image is
            moved than the one that was chosen.
        candidates: Styles that are moved for each reconstruction that counts; 200 for 50 as
            released. With 1 there is no last choice.
        final: How the target looks at the candidates for the last choice.
        clip_final: Whether it looks at pixels held in [0, 1], as what counts is; not as released.
        steps: Steps of Adam; 70 for CelebA, 50 for FaceScrub.
        lr: Its learning rate.
        betas: Its decay rates.
        augment: How the target looks at an image at each step, where there are no ``views``.
        identity: The identity loss.
        views: What it is averaged over in place of ``augment``.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "ppa"
    small: ClassVar[Mapping[str, Any]] = {
        "pool": 8, "candidates": 2, "steps": 12,
        "final": (Augment(scale=(0.5, 0.9), looks=2),),
    }  # fmt: skip
    wants: ClassVar[tuple[Offer, ...]] = ("styles",)

    prior: PriorSpec = field(default_factory=StyleGAN2)
    pool: int = 5000
    psi: float = 0.5
    cutoff: int = 0
    candidates: int = 4
    final: tuple[View, ...] = FAR
    clip_final: bool = True
    steps: int = 70
    lr: float = 0.005
    betas: tuple[float, float] = (0.1, 0.1)
    augment: tuple[View, ...] = CLOSE
    identity: IdentityLoss = field(default_factory=Poincare)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, pool=(1, INF), psi=(0, 1), cutoff=(0, INF), candidates=(1, INF), steps=(1, INF),
            lr=(1e-12, INF), max_queries=(0, INF),
        )  # fmt: skip
        require_betas(self, self.betas)

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns the steps; with a limit it depends on the classes, which share the pool."""
        moved = self.candidates * samples
        check_pool(self, moved)
        steps = affordable(self, self.steps, moved, self._later(moved))
        return None if self.max_queries else steps

    def _later(self, moved: int) -> int:
        """Returns the answers about each class that the last choice takes."""
        return moved * queries_per_image(self.final) if self.candidates > 1 else 0

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Chooses among the pool, moves all candidates of all classes at once, chooses again."""
        assert isinstance(prior, StyledPrior)
        styled, target = prior, quick(target)
        moved = self.candidates * goal.samples
        later = self._later(moved) * len(goal.labels)
        first = self.pool * len(TWO_SIDES) * len(goal.blocks)
        planned, images = self.steps, moved * len(goal.labels)
        steps = self.paid_steps(target, planned, images, reserved=first + later)
        w = chosen_styles(self, target, styled, goal, moved, TWO_SIDES)[0].requires_grad_()
        optimizer = torch.optim.Adam([w], self.lr, self.betas)

        def loss(w: Tensor, rows: Rows) -> Tensor:
            return self.wrong(target, drawn(styled, w, clamp=False), rows)

        descend(
            w, optimizer, loss, steps, goal, work, looks=self.queries_per_image,
            # Those that the target was surest of at the start: the last choice asks it again.
            show=lambda: of_styles(styled, goal, w[: goal.samples]).images,
        )  # fmt: skip
        kept = w.detach()
        if self.candidates > 1:
            kept = surest(
                target, goal, kept, lambda w: drawn(styled, w, clamp=self.clip_final),
                goal.samples, self.final,
            )  # fmt: skip
        return of_styles(styled, goal, kept)


def check_pool(attack: WhiteBox, taken: int) -> None:
    """Refuses a pool that is smaller than what each class takes of it."""
    pool: int = attack.pool  # type: ignore[attr-defined]
    if pool < taken:
        raise ValueError(
            f"{type(attack).__name__}.pool is {pool}, but each class starts from {taken} of it"
        )


def chosen_styles(
    attack: Any,  # noqa: ANN401 - one with a pool, psi and cutoff
    target: Classifier,
    prior: StyledPrior,
    goal: Goal,
    count: int,
    views: tuple[View, ...],
) -> tuple[Tensor, Tensor]:
    """Returns the first style of those of a pool that the target is surest of, class by class.

    Returns:
        Of those chosen, (count, classes, w_dim), and of the whole pool, (n, w_dim).
    """

    def draw(n: int, stream: torch.Generator) -> Tensor:
        z = prior.sample(n, stream).to(goal.device)
        with torch.no_grad():
            return prior.styles(z, attack.psi, attack.cutoff)

    return starts(target, goal, draw, prior.synthesise, attack.pool, count, views)


def drawn(prior: StyledPrior, w: Tensor, *, clamp: bool = True) -> Images:
    """Returns the images of one style (n, w_dim) for all layers of each."""
    return prior.synthesise(w[:, None].expand(-1, prior.num_ws, -1), clamp=clamp)


@torch.no_grad()
def of_styles(prior: StyledPrior, goal: Goal, w: Tensor) -> Reconstructions:
    """Returns the images of one style for all layers, (samples, classes, w_dim)."""
    x = torch.cat([drawn(prior, part) for part in w])
    return Reconstructions(x.view(*w.shape[:2], *x.shape[1:]), w)
