"""Generative model inversion, Zhang et al., CVPR 2020, https://arxiv.org/abs/1911.07135."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.batches import Part, parts, slope
from mibench.attacks.gan import WGANGP
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.views import affordable, asked, identity_loss, payable
from mibench.networks.fold import quick
from mibench.spec import require
from mibench.store import Payload, Work, check_finite
from mibench.types import (
    Attack,
    Classifier,
    IdentityLoss,
    Prior,
    PriorSpec,
    Reconstructions,
    View,
)

INF = float("inf")


@dataclass(frozen=True)
class GMI(Attack):
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

    def invert(
        self,
        target: Classifier,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Descends from ``samples`` independent starts of every class, all at once."""
        target, prior = quick(target), quick(prior)
        sizes = [len(block) for block in blocks]
        labels = torch.cat(list(blocks)).to(work.device)
        starts = [prior.sample(samples * len(b), r) for b, r in zip(blocks, rngs, strict=True)]
        z = torch.cat(
            [s.view(samples, len(b), -1) for s, b in zip(starts, blocks, strict=True)], 1
        )
        z = z.to(work.device).requires_grad_()
        optimizer = torch.optim.SGD([z], self.lr, self.momentum, nesterov=True)
        first = 0
        if (saved := work.load()) is not None:
            z.data.copy_(saved["z"])
            optimizer.load_state_dict(saved["optimizer"])
            for rng, stream in zip(rngs, saved["rngs"], strict=True):
                rng.set_state(stream)
            first = saved["step"]
        # A loss is a mean over a block, and the blocks' and restarts' losses are summed.
        weight = torch.cat([torch.full((n,), 1 / n) for n in sizes * samples]).to(work.device)
        wanted = labels.repeat(samples)

        groups = list(zip(sizes * samples, list(rngs) * samples, strict=True))
        steps = self.planned_steps(len(blocks), samples)
        steps = payable(target, steps, first, len(wanted) * asked(self.views))

        def state() -> Payload:
            moving = {"z": z, "rngs": list(rngs)}
            return {**moving, "optimizer": optimizer.state_dict(), "step": step + 1}

        def objective(z: Tensor, part: Part) -> Tensor:
            x = prior.generate(z)
            realism = prior.realism_by_group(x, (sizes * samples)[part.groups])
            wrong = identity_loss(self, target, x, wanted[part.rows], groups[part.groups])
            return ((prior_loss(realism) + self.lambda_id * wrong) * weight[part.rows]).sum()

        with torch.no_grad():
            values = prior.generate(z[0, :1]).numel()
            split = parts(sizes * samples, values, work.device)
        for step in range(first, steps):
            z.grad = slope(z.flatten(0, 1), split, objective).view_as(z)
            optimizer.step()
            with torch.no_grad():
                z.clamp_(-self.clip, self.clip)
            work.steps += 1
            work.save(state)
            done = step + 1
            if done % 50 == 0 or done == steps:
                check_finite(z, f"a latent after step {done}")
                work.progress(done, steps)
        with torch.no_grad():
            images = prior.generate(z.flatten(0, 1)).clamp(0, 1)
        return Reconstructions(images.view(*z.shape[:2], *images.shape[1:]), z.detach())


def prior_loss(realism: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """L_prior = −D(G(z)): the reconstruction should look real to the critic."""
    return -realism
