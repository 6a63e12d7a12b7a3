"""Knowledge-enriched distributional model inversion, Chen et al., ICCV 2021.

https://arxiv.org/abs/2010.04092
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.batches import Part, parts, slope
from mibench.attacks.gan import InversionGAN
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.views import affordable, asked, identity_loss, payable
from mibench.networks.fold import quick
from mibench.spec import choose, require
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
class KEDMI(Attack):
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

    def invert(
        self,
        target: Classifier,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Fits every class, then draws; a block's realism is judged among its own images."""
        target, prior = quick(target), quick(prior)
        sizes = [len(block) for block in blocks]
        labels = torch.cat(list(blocks)).to(work.device)
        weight = torch.cat([torch.full((n,), 1 / n) for n in sizes]).to(work.device)
        theta = torch.zeros(2, len(labels), prior.z_dim)  # μ and log σ²
        theta[1] = self.log_var
        theta = theta.to(work.device).requires_grad_()
        optimizer = torch.optim.Adam([theta], self.lr)
        first = 0
        if (saved := work.load()) is not None:
            theta.data.copy_(saved["theta"])
            optimizer.load_state_dict(saved["optimizer"])
            for rng, stream in zip(rngs, saved["rngs"], strict=True):
                rng.set_state(stream)
            first = saved["step"]

        groups = list(zip(sizes, rngs, strict=True))
        steps = self.planned_steps(len(blocks))
        steps = payable(target, steps, first, len(labels) * asked(self.views))

        def state() -> Payload:
            latents = {"theta": theta, "rngs": list(rngs)}
            return {**latents, "optimizer": optimizer.state_dict(), "step": step + 1}

        def objective(z: Tensor, part: Part) -> Tensor:
            x = prior.generate(z)
            score = prior.realism_by_group(x, sizes[part.groups])
            loss = PRIOR_LOSSES[self.prior_loss](score)
            wrong = identity_loss(self, target, x, labels[part.rows], groups[part.groups])
            loss = loss + self.lambda_id * wrong
            # A loss is a mean over a block; the blocks' losses are summed.
            return (loss * weight[part.rows]).sum()

        with torch.no_grad():
            split = parts(sizes, prior.generate(theta[0, :1]).numel(), work.device)
        for step in range(first, steps):
            z = self._draw(theta, 1, sizes, rngs)[0]
            (theta.grad,) = torch.autograd.grad(z, theta, slope(z, split, objective))
            optimizer.step()
            work.steps += 1
            work.save(state)
            done = step + 1
            if done % 50 == 0 or done == steps:
                check_finite(theta, f"a latent distribution after step {done}")
                work.progress(done, steps)
        with torch.no_grad():
            z = self._draw(theta, samples, sizes, rngs)
            images = prior.generate(z.flatten(0, 1)).clamp(0, 1)
        return Reconstructions(images.view(*z.shape[:2], *images.shape[1:]), z)

    def _draw(
        self, theta: Tensor, samples: int, sizes: list[int], rngs: Sequence[torch.Generator]
    ) -> Float[Tensor, "s n z"]:
        """Returns ``samples`` draws μ + σ ε of every class, within the limit."""
        width = theta.shape[2]
        noise = [
            torch.randn(samples, n, width, generator=r) for n, r in zip(sizes, rngs, strict=True)
        ]
        z = theta[0] + (0.5 * theta[1]).exp() * torch.cat(noise, 1).to(theta.device)
        return z.clamp(-self.clip, self.clip) if self.clip else z


def improved_prior_loss(score: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−log D with D = e^s / (e^s + 1) and s the log-sum-exp of the class logits."""
    return F.softplus(score) - score


def plain_prior_loss(score: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """−s: the more real, the better, without limit."""
    return -score


PRIOR_LOSSES = {"improved": improved_prior_loss, "plain": plain_prior_loss}
