r"""Variational model inversion, Wang et al., NeurIPS 2021, https://arxiv.org/abs/2201.10787.

For every class a distribution over a StyleGAN's latents is fitted, not a point:

.. math:: \min_q E_q[-\log f_y(G(w))] + \lambda \, \mathrm{mean}_l \, \mathrm{KL}(q_l \| N(0, I))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import rounds
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.priors.stylegan import StyleGAN2, StyleGANPrior
from mibench.attacks.views import affordable
from mibench.roles import IdentityLoss, PriorSpec, View
from mibench.seeding import generator
from mibench.spec import choose, require
from mibench.store import Payload, State, Work
from mibench.types import Classifier, Offer, Prior, Reconstructions

if TYPE_CHECKING:  # it brings nflows, which takes a while to import
    from mibench.networks.generators.flow import FlowBank

INF = float("inf")


@dataclass(frozen=True)
class VMI(WhiteBox):
    """Fits a normalising flow over a StyleGAN's styles for every class, then draws from it.

    Classes are fitted at once, and none influences another: the loss is a sum over them.

    Attributes:
        prior: The StyleGAN; it never sees the target, so every target shares it.
        space: "z": each style layer l has a latent z_l ~ q_l, w_l = mapping(z_l), and q_l is
            held near N(0, I), as released. "w": the flow is over the styles themselves, in
            units of their standard deviation over the mapping's outputs, ours.
        flow: "layered": a flow per style layer, all fed with the same noise, as released.
            "joint": one flow over all layers together, ours. "common": one flow, whose
            latent all layers share.
        layers: The style layers that are the class's own, from the coarsest on; 0 for all.
            The others get the style of a random latent at every step.
        couplings: Additive couplings of a flow, on each of its levels.
        levels: Scales of a flow; between two, half of the dimensions are split off.
        hidden: Width of the coupling's network.
        steps: Optimisation steps.
        batch: Draws per class and step.
        optimizer: "sgd" with momentum 0.9 as released, or "adam".
        lr: Learning rate.
        lambda_kl: λ, the weight of the KL divergence, in nats per style layer.
        max_norm: A class's gradient is shortened to this norm; 0 for no limit.
        snapshots: So many times, evenly over the steps, samples are drawn and kept, for
            protocols that select among them; drawing them moves the stream of noise on.
        identity: The identity loss.
        views: What it is averaged over; none: the image as it is.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "vmi"
    small: ClassVar[Mapping[str, Any]] = {
        "steps": 5, "couplings": 2, "hidden": 8, "batch": 4,
    }  # fmt: skip
    wants: ClassVar[tuple[Offer, ...]] = ("styles",)

    prior: PriorSpec = field(default_factory=StyleGAN2)
    space: Literal["z", "w"] = "z"
    flow: Literal["layered", "joint", "common"] = "layered"
    layers: int = 0
    couplings: int = 10
    levels: int = 1
    hidden: int = 100
    steps: int = 320
    batch: int = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 1e-4
    lambda_kl: float = 1e-3
    max_norm: float = 0.0
    snapshots: int = 0
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, layers=(0, INF), couplings=(1, INF), levels=(1, 16), hidden=(1, INF),
            steps=(1, INF), batch=(1, INF), lr=(1e-12, INF), lambda_kl=(0, INF),
            max_norm=(0, INF), snapshots=(0, INF), max_queries=(0, INF),
        )  # fmt: skip
        choose(
            self, space=("z", "w"), flow=("layered", "joint", "common"), optimizer=("sgd", "adam")
        )

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; the classes of a block take each together."""
        return blocks * affordable(self, self.steps, self.batch)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Fits the flows of a block, draws from them, and goes on to the next."""
        assert isinstance(prior, StyleGANPrior)
        styles = Styles(self, prior, work.device)
        planned, classes_left = self.planned_steps(1), len(goal.labels)
        fitted = []
        for block, stream in goal:
            classes_left -= len(block)
            now, later = self.batch * len(block), self.batch * classes_left
            steps = self.paid_steps(target, planned, now, later)
            fitted.append(self._fit(Fit(self, styles, target, block, stream), steps, goal, work))
        images = torch.cat([left["images"] for left in fitted], 2)
        latents = torch.cat([left["latents"] for left in fitted], 1)
        return Reconstructions(images[-1], latents, images[:-1])

    def _fit(self, fit: "Fit", steps: int, goal: Goal, work: Work) -> Payload:
        """Fits a block's flows; returns images of the moments that count, and the last latents."""
        state: State = {"flows": fit.flows, "optimizer": fit.optimizer, "kept": []}

        def advance(step: int) -> Tensor:
            loss = fit.step()
            if self._keeps(step + 1, steps):
                state["kept"].append(fit.draw(goal.samples)[0].half())
            return loss

        def result() -> Payload:
            x, w = fit.draw(goal.samples)
            moments = [*(k.float() for k in state["kept"]), x]
            return {"images": torch.stack(moments), "latents": w}

        return rounds(
            state, advance, steps, goal, work, result=result, what="the loss of a class", every=10
        )

    def _keeps(self, done: int, steps: int) -> bool:
        """Whether samples are kept after ``done`` of the steps; the last ones are anyway."""
        moments = {round(steps * (i + 1) / self.snapshots) for i in range(self.snapshots)}
        return done in moments - {steps}


class Fit:
    """The flows of one block's classes and what fits them."""

    def __init__(
        self,
        attack: VMI,
        styles: "Styles",
        target: Classifier,
        block: Tensor,
        rng: torch.Generator,
    ) -> None:
        self.attack, self.styles, self.target, self.block, self.rng = (
            attack, styles, target, block, rng,
        )  # fmt: skip
        self.flows = styles.flows(len(block), rng)
        weights = list(self.flows.parameters())
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(weights, attack.lr, momentum=0.9)
            if attack.optimizer == "sgd"
            else torch.optim.Adam(weights, attack.lr)
        )

    def step(self) -> Float[Tensor, " i"]:
        """Takes a step of every class and returns their losses."""
        w, kl = self.styles.draw(self.flows, self.attack.batch, self.rng)
        x = self.styles.prior.synthesise(w.flatten(0, 1))
        labels = self.block.repeat_interleave(self.attack.batch)
        rows = Rows(labels, torch.ones(len(x), device=x.device), (len(x),), (self.rng,))
        wrong = self.attack.wrong(self.target, x, rows).view(kl.shape)
        loss = (wrong + self.attack.lambda_kl * kl).mean(1)
        weights = list(self.flows.parameters())
        gradients = torch.autograd.grad(loss.sum(), weights)
        for p, g in zip(
            weights, shortened(gradients, self.attack.max_norm, len(self.block)), strict=True
        ):
            p.grad = g
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def draw(self, samples: int) -> tuple[Tensor, Tensor]:
        """Returns images (samples, classes, c, h, w) in [0, 1] and their styles, on the CPU."""
        w, _ = self.styles.draw(self.flows, samples, self.rng)
        x = torch.stack([self.styles.prior.synthesise(v).cpu() for v in w], 1)
        return x, w.cpu().transpose(0, 1)


def shortened(gradients: Sequence[Tensor], longest: float, classes: int) -> list[Tensor]:
    """Returns gradients whose norm, class by class, is at most ``longest``.

    Dimension 0 has the flows of the first class, then those of the second, and so on.
    """
    if not longest:
        return list(gradients)
    squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    norms = squares.view(classes, -1).sum(1).sqrt()
    factor = (longest / norms.clamp(min=1e-12)).clamp(max=1)
    factor = factor.repeat_interleave(len(squares) // classes)
    return [g * factor.view(-1, *[1] * (g.ndim - 1)) for g in gradients]


class Styles:
    """From noise to styles: the flows' space, as a :class:`VMI` says."""

    MAPPED = 10_000
    """Latents that the mean and deviation of the styles are taken over."""

    def __init__(self, attack: VMI, prior: StyleGANPrior, device: torch.device) -> None:
        self.attack, self.prior, self.device = attack, prior, device
        total = prior.generator.num_ws
        if attack.layers > total:
            raise ValueError(f"VMI.layers is {attack.layers}, but the generator has {total}")
        self.own = attack.layers or total
        self.rest = total - self.own
        if attack.space == "w":
            z = prior.sample(self.MAPPED, generator("styles")).to(device)
            with torch.no_grad():
                w = prior.styles(z)[:, 0]
            self.mean, self.std = w.mean(0), w.std(0)

    def flows(self, classes: int, rng: torch.Generator) -> "FlowBank":
        """Returns a fresh flow for each class."""
        from mibench.networks.generators.flow import FlowBank

        layers = 1 if self.attack.flow == "common" else self.own
        width = self.prior.generator.z_dim if self.attack.space == "z" else len(self.mean)
        bank = FlowBank(
            [rng] * classes, layers, width, self.attack.couplings, self.attack.hidden,
            joint=self.attack.flow == "joint", levels=self.attack.levels,
        )  # fmt: skip
        return bank.to(self.device)

    def draw(
        self, flows: "FlowBank", samples: int, rng: torch.Generator
    ) -> tuple[Float[Tensor, "i s l w"], Float[Tensor, "i s"]]:
        """Returns ``samples`` styles of every class, and log q − log p per layer, in nats.

        The mean over samples of the latter estimates the KL divergence from N(0, I).
        """
        z, log_q = flows(flows.sample_noise(samples, [rng] * flows.identities).to(self.device))
        kl = flows.divergence(z, log_q).to(z.dtype)
        w = self.styles(z)
        if self.attack.flow == "common":
            w = w.expand(-1, -1, self.own, -1)
        if self.rest:
            others = self.prior.sample(samples * len(z), rng).to(self.device)
            other = self.prior.styles(others)[:, self.own :].detach()
            w = torch.cat([w, other.view(len(z), samples, self.rest, -1)], 2)
        return w, kl

    def styles(self, z: Float[Tensor, "i s l d"]) -> Float[Tensor, "i s l w"]:
        """Returns the styles of the flows' outputs."""
        if self.attack.space == "w":
            return self.mean + self.std * z
        w = self.prior.styles(z.flatten(0, 2))[:, 0]
        return w.view(*z.shape[:3], -1)


BUDGETS: dict[str, dict[str, int]] = {
    "kdd22": {"steps": 320, "batch": 32, "snapshots": 32},
    "neurips21": {"steps": 20 * 157, "batch": 64},
}
"""Name → fields: what Peng et al. spent on a class, and what VMI's authors did before they
scored it."""
