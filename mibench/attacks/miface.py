r"""MI-Face, Fredrikson et al., CCS 2015, https://doi.org/10.1145/2810103.2813677.

Gradient descent on the pixels themselves:

.. math:: x \leftarrow x - \eta \nabla_x (1 - f_y(x))

It knows of images no more than their size: the line that a prior has to rise above.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import Confidence
from mibench.attacks.priors.imitation import Imitation
from mibench.attacks.priors.pixels import Pixels
from mibench.attacks.selection import remembering
from mibench.attacks.views import affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import choose, require
from mibench.store import Work
from mibench.types import Classifier, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class MIFace(WhiteBox):
    """Moves the pixels of an image, and keeps each image at its lowest loss.

    Every sample of a class is a restart of its own; a class's gradient does not depend on how
    many others are attacked.

    Attributes:
        prior: What is moved: pixels, or another prior's latents.
        start: Where from: "drawn" from the prior, or "black" as published, where all samples of a
            class are the same.
        steps: Gradient steps.
        lr: η, their length times the gradient.
        identity: The identity loss.
        views: What it is averaged over; none: the image as it is.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "mi-face"
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}

    prior: PriorSpec = field(default_factory=Pixels)
    start: Literal["drawn", "black"] = "drawn"
    steps: int = 5000
    lr: float = 0.1
    identity: IdentityLoss = field(default_factory=Confidence)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        choose(self, start=("drawn", "black"))
        require(self, steps=(1, INF), lr=(1e-12, INF), max_queries=(0, INF))

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; all blocks and restarts take each together."""
        return affordable(self, self.steps, samples)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Descends from ``goal.samples`` starts of every class, all at once."""
        of = self.prior.of if isinstance(self.prior, Imitation) else self.prior
        target, pixels = quick(target), isinstance(of, Pixels)
        x = goal.draws(prior)
        x = (torch.zeros_like(x) if self.start == "black" else x).requires_grad_()
        optimizer = torch.optim.SGD([x], self.lr)

        def loss(x: Tensor, rows: Rows) -> Tensor:
            if pixels:  # the prior's clamp has no gradient at 0 and 1, where pixels would stay
                return self.wrong(target, x.view(-1, *goal.shape), rows)
            return self.wrong(target, prior.generate(x, rows.labels), rows)

        def for_each(x: Tensor, rows: Rows) -> Tensor:
            return noted(x, rows) / rows.weights  # a sum over a block, not its mean

        noted, beside = remembering(loss, x)
        steps = self.planned_steps(len(goal.blocks), goal.samples)
        steps = self.paid_steps(target, steps, goal.samples * len(goal.labels))
        descend(
            x, optimizer, for_each, steps, goal, work, looks=self.queries_per_image, beside=beside,
            after=(lambda: x.clamp_(0, 1)) if pixels else None,
            show=lambda: goal.images(prior, beside["best"].view_as(x)),
        )  # fmt: skip
        return goal.reconstructions(prior, beside["best"].view_as(x))
