r"""Intermediate-feature GMI, Qiu et al., ECCV 2024, https://arxiv.org/abs/2407.13863.

First the style of a StyleGAN is moved, then, block by block, also the maps that enter the block:

.. math:: \min_{w, h_i} \; d(f(G_{i+1..}(h_i, w)), y), \qquad
    \|w - w_0\|_1 \le r_i, \quad \|h_i - h_i^0\|_1 \le r_i

where zero marks the start of the stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import descend
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import Poincare
from mibench.attacks.ppa import CLOSE, TWO_SIDES, check_pool, chosen_styles
from mibench.attacks.priors.styled import Begun, StyledPrior
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.views import affordable
from mibench.networks.fold import quick
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.spec import choose, require, require_betas
from mibench.store import Work
from mibench.types import Classifier, Images, Offer, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class IFGMI(WhiteBox):
    """Moves the style and then, block by block, the maps of a StyleGAN as well.

    All that a class starts from counts: nothing is chosen at the end. The images of each stage are
    kept as moments.

    Attributes:
        prior: The StyleGAN; it never sees the target, so every target shares it.
        pool: Latents among which the classes of a block choose where to start.
        psi: Truncation of the pool's styles, towards the mean style.
        cutoff: The number of styles that are truncated, from the coarsest on; 0 for all (8 as
            released).
        steps: Steps of Adam in each stage; the first moves the style alone.
        style_radii: How far a style may move in each stage, in the sum of absolute differences.
        map_radii: The same of maps; the first is not used.
        skip: What lower blocks add to the image is "kept" from the second stage on, or "dropped"
            as released, where the picture then jumps.
        judged: Images after the "last" step of a stage, or those "before-last", which the last
            step has not moved, as released.
        lr: Adam's learning rate.
        betas: Its decay rates.
        augment: How the target looks at an image at each step, where there are no ``views``.
        identity: The identity loss.
        views: What it is averaged over in place of ``augment``.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "if-gmi"
    small: ClassVar[Mapping[str, Any]] = {"pool": 3, "steps": (4, 3)}
    wants: ClassVar[tuple[Offer, ...]] = ("styles",)

    prior: PriorSpec = field(default_factory=StyleGAN2)
    pool: int = 5000
    psi: float = 0.5
    cutoff: int = 0
    steps: tuple[int, ...] = (70, 25, 25, 25)
    style_radii: tuple[float, ...] = (1000, 2000, 3000, 4000, 5000, 6000, 8000, 8000)
    map_radii: tuple[float, ...] = (1000, 2000, 3000, 4000, 5000, 6000, 8000, 8000)
    skip: Literal["kept", "dropped"] = "kept"
    judged: Literal["last", "before-last"] = "last"
    lr: float = 0.005
    betas: tuple[float, float] = (0.1, 0.1)
    augment: tuple[View, ...] = CLOSE
    identity: IdentityLoss = field(default_factory=Poincare)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, pool=(1, INF), psi=(0, 1), cutoff=(0, INF), steps=(1, INF), style_radii=(0, INF),
            map_radii=(0, INF), lr=(1e-12, INF), max_queries=(0, INF),
        )  # fmt: skip
        require_betas(self, self.betas)
        choose(self, skip=("kept", "dropped"), judged=("last", "before-last"))
        for name in ("style_radii", "map_radii"):
            if not 0 < len(self.steps) <= len(getattr(self, name)):
                raise ValueError(
                    f"IFGMI.steps names {len(self.steps)} stages: name at least one, and a radius "
                    f"for each in IFGMI.{name}"
                )

    @property
    def snapshots(self) -> int:
        """How many moments it keeps."""
        return len(self.steps)

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns the steps; with a limit it depends on the classes, which share the pool."""
        check_pool(self, samples)
        steps = affordable(self, sum(self.steps), samples)
        return None if self.max_queries else blocks * steps

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Takes one block of classes after the other, whose maps need much room."""
        assert isinstance(prior, StyledPrior)
        if len(self.steps) > prior.blocks:
            raise ValueError(
                f"IFGMI.steps names {len(self.steps)} stages, but the generator has "
                f"{prior.blocks} blocks: name no more"
            )
        target = quick(target)
        images = goal.samples * len(goal.labels)
        first = self.pool * len(TWO_SIDES) * len(goal.blocks)
        total = self.paid_steps(target, sum(self.steps), images, reserved=first)
        made = [
            self._stages(target, prior, replace(goal, blocks=[b], streams=[s]), total, work)
            for b, s in zip(goal.blocks, goal.streams, strict=True)
        ]
        moments = torch.cat([x for x, _ in made], 2)
        latents = torch.cat([w for _, w in made], 1)
        return Reconstructions(moments[-1], latents, moments[:-1] if len(moments) > 1 else None)

    def _stages(
        self, target: Classifier, prior: StyledPrior, goal: Goal, total: int, work: Work
    ) -> tuple[Float[Tensor, "m s n c h w"], Float[Tensor, "s n d"]]:
        """Returns the images of each stage and the last styles."""
        w = chosen_styles(self, target, prior, goal, goal.samples, TWO_SIDES)[0]
        begun, moments = None, []
        for i, wanted in enumerate(self.steps):
            stage = Stage(prior, begun, goal)
            moving = stage.start(w)
            steps = min(wanted, total - sum(self.steps[:i]))
            judged = self._descend(target, stage, moving, i, max(0, steps), work)
            with torch.no_grad():
                moments.append(stage.images(judged.flatten(0, 1), clamp=True))
                w, handed = stage.end(moving, i + 1)
            begun = handed if self.skip == "kept" else handed._replace(image=None)
        shape = (len(moments), goal.samples, len(goal.labels), *goal.shape)
        return torch.stack(moments).view(shape), w

    def _descend(
        self, target: Classifier, stage: "Stage", moving: Tensor, i: int, steps: int, work: Work
    ) -> Tensor:
        """Moves what a stage moves; returns where its images are judged."""
        start = moving.detach().clone()
        optimizer = torch.optim.Adam([moving], self.lr, self.betas)
        now, before = start.clone(), start.clone()
        radii = (self.style_radii[i], self.map_radii[i])

        def after() -> None:
            for place, radius in zip(stage.moved, radii, strict=False):
                offset = (moving[..., place] - start[..., place]).flatten(0, 1)
                moved = start[..., place] + onto_ball(offset, radius).view_as(start[..., place])
                moving[..., place] = moved
            before.copy_(now)
            now.copy_(moving)

        def loss(z: Tensor, rows: Rows) -> Tensor:
            return self.wrong(target, stage.images(z, clamp=False), rows)

        descend(
            moving, optimizer, loss, steps, stage.goal, work, after=after,
            looks=self.queries_per_image, beside={"now": now, "before": before},
        )  # fmt: skip
        return before if self.judged == "before-last" else moving.detach()


class Stage:
    """One block of a StyleGAN and what enters it, side by side in one tensor.

    Args:
        prior: The StyleGAN.
        begun: What enters the block: maps, and the image so far; None for the first.
        goal: Classes.
    """

    def __init__(self, prior: StyledPrior, begun: Begun | None, goal: Goal) -> None:
        self.prior, self.begun, self.goal = prior, begun, goal
        self.shapes: list[tuple[int, ...]] = [(prior.w_dim,)]
        if begun is not None:
            enter = [begun.maps] if begun.image is None else [begun.maps, begun.image]
            self.shapes += [tuple(x.shape[1:]) for x in enter]
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + prod(shape))
        self.places = [slice(*pair) for pair in pairwise(ends)]

    @property
    def moved(self) -> list[slice]:
        """Where the style and the maps are, in the last dimension; the image is not moved."""
        return self.places[:2]

    def start(self, w: Float[Tensor, "s n d"]) -> Float[Tensor, "s n _"]:
        """Returns what the stage moves, and the image so far behind it."""
        parts = [w.flatten(0, 1)]
        if self.begun is not None:
            parts += [x.flatten(1) for x in self.begun[1:] if x is not None]
        return torch.cat(parts, 1).view(*w.shape[:2], -1).clone().requires_grad_()

    def images(self, z: Float[Tensor, "n _"], *, clamp: bool) -> Images:
        """Returns the images of what is moved."""
        w, begun = self._apart(z)
        return self.prior.synthesise(w, clamp=clamp, begun=begun)

    def end(self, moving: Tensor, blocks: int) -> tuple[Float[Tensor, "s n d"], Begun]:
        """Returns the styles, and what so many blocks draw at the end of the stage."""
        ws, begun = self._apart(moving.detach().flatten(0, 1))
        w = moving.detach()[..., self.places[0]]
        return w, self.prior.until(ws, blocks, begun)

    def _apart(self, z: Float[Tensor, "n _"]) -> tuple[Float[Tensor, "n s d"], Begun | None]:
        """Returns the styles of all layers, and what enters the block."""
        parts = [
            z[:, place].view(len(z), *shape)
            for place, shape in zip(self.places, self.shapes, strict=True)
        ]
        ws = parts[0][:, None].expand(-1, self.prior.num_ws, -1)
        if self.begun is None:
            return ws, None
        image = parts[2].detach() if len(parts) > 2 else None
        return ws, Begun(self.begun.blocks, parts[1], image)


def onto_ball(x: Float[Tensor, "n d"], radius: float) -> Float[Tensor, "n d"]:
    """Returns the nearest point of each row within a sum of absolute values.

    Duchi et al., ICML 2008, https://doi.org/10.1145/1390156.1390191.
    """
    size = x.abs()
    outside = size.sum(1) > radius
    falling = size.sort(1, descending=True).values
    excess = (falling.cumsum(1) - radius) / torch.arange(1, x.shape[1] + 1, device=x.device)
    last = (falling > excess).sum(1, keepdim=True).clamp(min=1) - 1
    shrunk = x.sign() * (size - excess.gather(1, last)).clamp(min=0)
    return torch.where(outside[:, None], shrunk, x)
