"""Generative priors trained on public images: GMI's WGAN-GP and KED-MI's inversion GAN."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.attacks.views import queries_per_image, single, viewed
from mibench.networks.generators.dcgan import Critic, Generator, InversionDiscriminator
from mibench.roles import PriorSpec, View
from mibench.seeding import generator as fresh_generator
from mibench.spec import choose, require, require_betas
from mibench.store import Payload, Work, check_finite
from mibench.types import (
    Access,
    Classifier,
    Images,
    ImageSet,
    Labels,
    Logits,
    Prior,
    Scalar,
    Shape,
    answers,
)

INF = float("inf")


class GAN(Prior):
    """A generator and the discriminator it was trained against."""

    def __init__(
        self, z_dim: int, generator: nn.Module, discriminator: nn.Module, *, pooled: bool
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.pooled = pooled
        self.generator = generator
        self.discriminator = discriminator

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns G(z)."""
        x: Images = self.generator(z)
        return x

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the critic's score, or the log-sum-exp of the class logits."""
        return self.realism_by_group(x, [len(x)])

    def realism_by_group(
        self, x: Images, sizes: Sequence[int], y: Labels | None = None
    ) -> Float[Tensor, " n"]:
        """Returns the scores, of all groups in one pass."""
        if not self.pooled:
            score: Tensor = self.discriminator(x)
            return score
        real: Tensor = self.discriminator(x, sizes)[1].logsumexp(1)
        return real


@dataclass(frozen=True)
class GANSpec(PriorSpec):
    """What both GANs share.

    Attributes:
        z_dim: Size of the latent space.
        generator_width: Channels of the generator's largest hidden map.
        discriminator_width: Channels of the discriminator's first map.
        epochs: Passes over the public images; a step is one batch for the discriminator.
        batch_size: Images per step.
        lr: Adam's learning rate, for both networks.
        betas: Adam's decay rates.
        critic_steps: Steps of the discriminator for each of the generator.
    """

    small: ClassVar[Mapping[str, Any]] = {
        "z_dim": 8, "generator_width": 4, "discriminator_width": 4, "epochs": 2,
    }  # fmt: skip

    z_dim: int = 100
    generator_width: int = 64
    discriminator_width: int = 64
    epochs: int = 100
    batch_size: int = 64
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    critic_steps: int = 5

    def __post_init__(self) -> None:
        require(
            self, z_dim=(1, INF), generator_width=(1, INF), discriminator_width=(1, INF),
            epochs=(1, INF), batch_size=(2, INF), lr=(1e-12, INF), critic_steps=(1, INF),
        )  # fmt: skip
        require_betas(self, self.betas)

    def planned_steps(self, images: int) -> int | None:
        """Returns the discriminator's steps."""
        return self.epochs * (images // min(self.batch_size, images))

    def planned_answers(self, images: int, classes: int, noisy: bool) -> int:
        """Returns how many answers of the target ``train`` asks for.

        Args:
            images: Public ones.
            classes: The target's.
            noisy: Whether the target answers with noise.
        """
        return 0

    def _optimizers(self, prior: GAN) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Returns the optimisers of the generator and of the discriminator.

        Torch's fused Adam goes through memory once instead of ten times: a sixth of KED-MI's
        step otherwise. It pairs weights and gradients by address; ``descend_on`` sees to that.
        """
        g, d = prior.generator.parameters(), prior.discriminator.parameters()
        adam = partial(torch.optim.Adam, lr=self.lr, betas=self.betas, fused=True)
        return adam(g), adam(d)

    def _alternate(
        self,
        prior: GAN,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
        public: ImageSet,
        views: int,
        step: Callable[[list[Tensor], bool], dict[str, Tensor]],
        rng: torch.Generator,
        work: Work,
        *,
        generator_first: bool = False,
    ) -> None:
        """Runs ``step`` over all epochs, resuming at the last one saved.

        Args:
            prior: What is trained.
            optimizers: What ``step`` moves.
            public: The images that ``step`` indexes.
            views: Independent shuffles of ``public``; each step gets a batch of each.
            step: Takes a batch of positions per view and whether to update the generator
                too; returns its loss terms.
            rng: Draws the shuffles.
            work: Keeps the state.
            generator_first: Whether the generator is updated at the first of its rounds of
                ``critic_steps`` and not at the last.
        """
        turn = 0 if generator_first else self.critic_steps - 1
        size = min(self.batch_size, len(public))
        per_epoch = len(public) // size
        first = 0
        if (saved := work.load()) is not None:
            prior.load_state_dict(saved["prior"])
            for optimizer, moments in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(moments)
            rng.set_state(saved["rng"])
            first = saved["epoch"]
        prior.train()

        def state() -> Payload:
            modules = {
                "prior": prior.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
            }
            return {**modules, "rng": rng, "epoch": epoch + 1}

        for epoch in range(first, self.epochs):
            orders = [
                torch.randperm(len(public), generator=rng).to(work.device) for _ in range(views)
            ]
            terms: dict[str, Tensor] = {}
            for i in range(per_epoch):
                picks = [order[i * size : (i + 1) * size] for order in orders]
                update = (epoch * per_epoch + i) % self.critic_steps == turn
                terms |= step(picks, update)
            check_finite(torch.stack(list(terms.values())), f"a loss in epoch {epoch + 1}")
            work.save(state)
            work.progress(epoch + 1, self.epochs)


@dataclass(frozen=True)
class WGANGP(GANSpec):
    """The prior of GMI: Zhang et al., CVPR 2020, https://arxiv.org/abs/1911.07135.

    A Wasserstein GAN with gradient penalty (Gulrajani et al., NeurIPS 2017); it never sees
    the target, so every target shares it.

    Attributes:
        penalty: Weight of (‖∇D‖₂ − 1)² between real and generated images.
        critic: "random" hands the attack an untrained critic, as the code released with the
            paper did by a mistake in loading it; "trained" is sound.
    """

    name: ClassVar[str] = "wgan-gp"
    version: ClassVar[int] = 2

    epochs: int = 300
    penalty: float = 10.0
    critic: Literal["trained", "random"] = "trained"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, penalty=(0, INF))
        choose(self, critic=("trained", "random"))

    def build(self, shape: Shape, num_classes: int) -> GAN:
        """Returns untrained networks."""
        draw = Generator(self.z_dim, self.generator_width, shape)
        return GAN(self.z_dim, draw, Critic(self.discriminator_width, shape), pooled=False)

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: None,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains the prior on ``public``, whose labels it hands to the prior as classes."""
        assert isinstance(prior, GAN)
        untrained = {k: v.clone() for k, v in prior.discriminator.state_dict().items()}
        for_G, for_D = self._optimizers(prior)

        def draw(y: Labels) -> Images:
            return prior.generate(prior.sample(len(y), rng).to(work.device), y)

        def step(picks: list[Tensor], update: bool) -> dict[str, Tensor]:
            batch = public.take(picks[0])
            x, y = batch.images, batch.labels
            with torch.no_grad():
                fake = draw(y)
            alpha = torch.rand(len(x), 1, 1, 1, generator=rng).to(work.device)
            D = partial(prior.realism, y=y)
            gap = D(fake).mean() - D(x).mean()
            penalty = gradient_penalty(D, alpha * x + (1 - alpha) * fake)
            descend_on(gap + self.penalty * penalty, for_D)
            terms = {"critic gap": gap.detach(), "penalty": penalty.detach()}
            if update:
                loss = -D(draw(y)).mean()
                descend_on(loss, for_G)
                terms["generator"] = loss.detach()
            return terms

        self._alternate(prior, (for_G, for_D), public, 1, step, rng, work)
        if self.critic == "random":
            prior.discriminator.load_state_dict(untrained)


def descend_on(loss: Scalar, optimizer: torch.optim.Optimizer) -> None:
    """Takes one step on ``loss`` with the weights of ``optimizer`` alone."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        # A gradient may be laid out otherwise than its weight, which fused Adam would misread.
        p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
    optimizer.step()


def gradient_penalty(D: Callable[[Images], Tensor], x: Images) -> Scalar:
    r"""Returns the mean over the batch of (‖∇_x D(x)‖₂ − 1)²."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    norm: Tensor = gradient.flatten(1).norm(dim=1)
    return (norm - 1).square().mean()


@dataclass(frozen=True)
class InversionGAN(GANSpec):
    """The inversion-specific GAN: Chen et al., ICCV 2021, https://arxiv.org/abs/2010.04092.

    The discriminator also predicts the target's soft labels of public images, so the prior
    learns what the target knows of them; every target needs its own.

    Attributes:
        entropy_weight: Weight of the class entropy of generated images, summed over the
            batch, in the generator's loss.
        mbd: Projections of the minibatch discrimination.
        mbd_kernels: Their dimension.
        labelling: Mode of the target while it labels: "eval"; or "train" as released, where
            batch normalisation takes each public batch's own statistics.
        views: Soft labels are means over these views of a public image, drawn at every step;
            none: of the image as it is. An attack's own ``views`` do not enter here.
    """

    name: ClassVar[str] = "inversion-gan"
    version: ClassVar[int] = 3
    small: ClassVar[Mapping[str, Any]] = {**GANSpec.small, "mbd": 4, "mbd_kernels": 3}
    access: ClassVar[Access] = "white"

    entropy_weight: float = 1e-4
    mbd: int = 64
    mbd_kernels: int = 50
    labelling: Literal["eval", "train"] = "eval"
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, entropy_weight=(0, INF), mbd=(1, INF), mbd_kernels=(1, INF))
        choose(self, labelling=("eval", "train"))

    def planned_answers(self, images: int, classes: int, noisy: bool) -> int:
        """Returns one for each image, or where they change, one for each view at every step."""
        if self.labelling == "eval" and not noisy and not self.views:
            return images
        size = min(self.batch_size, images)
        return self.epochs * (images // size) * size * queries_per_image(self.views)

    def build(self, shape: Shape, num_classes: int) -> GAN:
        """Returns untrained networks."""
        judge = InversionDiscriminator(
            self.discriminator_width, shape, num_classes, self.mbd, self.mbd_kernels
        )
        return GAN(
            self.z_dim, Generator(self.z_dim, self.generator_width, shape), judge, pooled=True
        )

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: Classifier,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains the prior on ``public`` images and what ``target`` says of them."""
        assert isinstance(prior, GAN)
        assert isinstance(prior.discriminator, InversionDiscriminator)
        for_G, for_D = self._optimizers(prior)
        G, D = prior.generator, prior.discriminator
        owned = {k: v.clone() for k, v in target.state_dict().items()}
        label = self._labeller(target, public, rng)

        def draw(n: int) -> Images:
            x: Images = G(prior.sample(n, rng).to(work.device))
            return x

        def step(picks: list[Tensor], update: bool) -> dict[str, Tensor]:
            labelled, unlabelled, match = (public.take(p).images for p in picks)
            with torch.no_grad():
                fake = draw(len(labelled))
            views = [labelled, unlabelled, fake]
            sizes = [len(x) for x in views]
            seen, real, drawn = torch.split(D(torch.cat(views), sizes)[1], sizes)
            supervised = soft_cross_entropy(seen, label(picks[0]))
            adversarial = discriminator_loss(real.logsumexp(1), drawn.logsumexp(1))
            descend_on(supervised + adversarial, for_D)
            terms = {"soft labels": supervised.detach(), "adversarial": adversarial.detach()}
            if update:
                features, logits = D(draw(len(match)))
                with torch.no_grad():
                    wanted = D.features(match).mean(0)
                matching = (features.mean(0) - wanted).abs().mean()
                descend_on(matching + self.entropy_weight * entropy(logits), for_G)
                terms["matching"] = matching.detach()
            return terms

        self._alternate(prior, (for_G, for_D), public, 3, step, rng, work)
        target.eval().load_state_dict(owned)  # running statistics stay the owner's

    def _labeller(
        self, target: Classifier, public: ImageSet, rng: torch.Generator
    ) -> Callable[[Tensor], Tensor]:
        """Returns what gives the target's soft labels of the images at some positions."""
        if (
            self.labelling == "eval" and not target.noise_dim and not self.views
        ):  # they never change: ask once
            once = answers(target, public, fresh_generator("no noise"))
            soft = torch.cat([logits.softmax(1) for logits, _ in once]).to(public.labels.device)
            return lambda index: soft[index]

        def ask(index: Tensor) -> Tensor:
            target.train(self.labelling == "train")
            x = public.take(index).images
            with torch.no_grad():
                if self.views:
                    return soft_labels(target, self.views, x, rng)
                logits: Logits = target(x)
            return logits.softmax(1)

        return ask


def soft_labels(
    target: Classifier, views: Sequence[View], x: Images, rng: torch.Generator
) -> Float[Tensor, "n k"]:
    """Returns the target's probabilities, the mean over the views and their draws."""
    views = single(views)
    looks = viewed(views, x, [(len(x), rng)])
    means = []
    for view, look in zip(views, looks, strict=True):
        z = target.latents(look)[-1].repeat(view.draws, 1)
        means.append(target.head(z).softmax(1).view(view.draws, len(x), -1).mean(0))
    return torch.stack(means).mean(0)


def soft_cross_entropy(logits: Logits, soft: Float[Tensor, "n k"]) -> Scalar:
    """Returns the mean over the batch of −Σ_k soft_k log softmax(logits)_k, in nats."""
    return -(soft * logits.log_softmax(1)).sum(1).mean()


def discriminator_loss(real: Float[Tensor, " n"], fake: Float[Tensor, " n"]) -> Scalar:
    r"""Returns half the binary cross-entropy of D = e^s / (e^s + 1), s the log-sum-exp.

    .. math:: \tfrac12 (E[\log(1 + e^{s})] - E[s])_{real} + \tfrac12 E[\log(1 + e^{s})]_{fake}
    """
    return (F.softplus(real).mean() - real.mean() + F.softplus(fake).mean()) / 2


def entropy(logits: Logits) -> Scalar:
    """Returns the class entropy summed over the batch, in nats."""
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum()
