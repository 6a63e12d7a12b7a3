"""Priors and the attacks that descend in them: losses by hand, loops by hand, kills."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.attacks import GMI, KEDMI, WGANGP, Goal, InversionGAN, batches
from mibench.attacks.kedmi import improved_prior_loss
from mibench.attacks.losses import CrossEntropy, MaxMargin
from mibench.attacks.priors import gan as priors
from mibench.attacks.priors.gan import (
    GAN,
    GANSpec,
    discriminator_loss,
    entropy,
    gradient_penalty,
    soft_cross_entropy,
)
from mibench.defenses import MID, NoDefense
from mibench.networks import MCNN
from mibench.roles import Attack, Defense
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Classifier, Images, ImageSet, Labels, Prior, Reconstructions

SHAPE = (1, 8, 8)
WGAN = WGANGP(z_dim=4, generator_width=4, discriminator_width=4, epochs=3, batch_size=8, lr=1e-2)
INVERSION = InversionGAN(
    z_dim=4, generator_width=4, discriminator_width=4, epochs=3, batch_size=8, lr=1e-2,
    critic_steps=2, mbd=3, mbd_kernels=2,
)  # fmt: skip
both_priors = pytest.mark.parametrize("spec", [WGAN, INVERSION], ids=lambda s: s.name)


# Losses -------------------------------------------------------------------------------------


class LinearCritic(nn.Module):
    """D(x) = w · x, whose slope is w everywhere."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: Images) -> Tensor:
        return x.flatten(1) @ self.w


def test_the_gradient_penalty_of_a_linear_critic(rng: torch.Generator) -> None:
    w = torch.randn(12, generator=rng)
    penalty = gradient_penalty(LinearCritic(w), torch.rand(5, 3, 2, 2, generator=rng))
    torch.testing.assert_close(penalty, (w.norm() - 1).square())


def test_the_gradient_penalty_trains_the_critic(rng: torch.Generator) -> None:
    critic = LinearCritic(torch.tensor([3.0, 4.0]))
    penalty = gradient_penalty(critic, torch.rand(5, 1, 1, 2, generator=rng))
    (slope,) = torch.autograd.grad(penalty, critic.w)
    torch.testing.assert_close(slope, 2 * 4 * torch.tensor([0.6, 0.8]))


def test_soft_cross_entropy_of_one_hot_labels_is_cross_entropy(rng: torch.Generator) -> None:
    logits, y = torch.randn(6, 4, generator=rng), torch.arange(6) % 4
    soft = F.one_hot(y, 4).float()
    torch.testing.assert_close(soft_cross_entropy(logits, soft), F.cross_entropy(logits, y))


def test_the_discriminator_loss_is_half_the_binary_cross_entropy_of_the_sigmoid(
    rng: torch.Generator,
) -> None:
    real, fake = torch.randn(2, 7, generator=rng)
    on_real = F.binary_cross_entropy(real.sigmoid(), torch.ones(7))
    on_fake = F.binary_cross_entropy(fake.sigmoid(), torch.zeros(7))
    torch.testing.assert_close(discriminator_loss(real, fake), (on_real + on_fake) / 2)


def test_the_entropy_of_equal_logits_is_log_k_per_image() -> None:
    got = entropy(torch.full((3, 5), 2.0))
    torch.testing.assert_close(got, 3 * torch.tensor(5.0).log())


def test_the_entropy_of_a_certain_prediction_is_zero() -> None:
    assert entropy(torch.tensor([[100.0, 0.0, 0.0]])).item() == pytest.approx(0, abs=1e-6)


def test_the_improved_prior_loss_is_minus_log_sigmoid(rng: torch.Generator) -> None:
    score = 5 * torch.randn(9, generator=rng)
    torch.testing.assert_close(improved_prior_loss(score), -score.sigmoid().log())


def test_the_max_margin_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0], [5.0, 3.0, 3.5]])
    margins = MaxMargin()(logits, torch.tensor([1, 2, 0]))
    assert margins.tolist() == [-2.0, 2.0, -1.5]


def test_the_identity_loss_is_the_cross_entropy_of_each_image() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    want = torch.tensor([2.0, 1 + torch.tensor(2.0).exp().item()]).log()
    torch.testing.assert_close(CrossEntropy()(logits, torch.tensor([0, 1])), want)


# Training a prior ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def public() -> ImageSet:
    rng = generator("public")
    pixels = torch.randint(0, 256, (32, *SHAPE), generator=rng).to(torch.uint8)
    return ImageSet(pixels, torch.arange(32) % 4)


def make_target(defense: Defense | None = None) -> Classifier:
    with seeded("target"):
        network = MCNN(widths=(4,), kernels=(3,), paddings=(1,)).build(SHAPE, 3)
        return (defense or NoDefense()).harden(network).eval()


def train(
    spec: GANSpec, public: ImageSet, work: Work | None = None, target: Classifier | None = None
) -> GAN:
    if spec.access == "white" and target is None:
        target = make_target()
    with seeded("prior"):
        prior = spec.build(SHAPE, 3)
    assert isinstance(prior, GAN)
    with seeded("noise"):
        spec.train(prior, public, target, generator("train"), work or Work())
    return prior


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(p, q)
        for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("critic", ["random", "trained"])
def test_a_random_critic_stays_as_it_was_initialised_beside_a_trained_generator(
    critic: Literal["random", "trained"], public: ImageSet
) -> None:
    with seeded("prior"):
        untrained = WGAN.build(SHAPE, 3)
    trained = train(replace(WGAN, critic=critic), public)
    assert equal(trained.discriminator, untrained.discriminator) == (critic == "random")
    assert not equal(trained.generator, untrained.generator)


def test_a_random_critic_changes_nothing_about_the_generator(public: ImageSet) -> None:
    sound, mistaken = (train(replace(WGAN, critic=c), public) for c in ("trained", "random"))
    assert equal(sound.generator, mistaken.generator)


@both_priors
def test_the_generator_moves_at_every_critic_steps_th_step(
    spec: GANSpec, public: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight steps in two epochs, counted through."""
    moves: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(priors, "descend_on", lambda loss, optimizer: moves.append(optimizer))
    prior = train(replace(spec, critic_steps=3, epochs=2), public)
    first = next(prior.generator.parameters())
    whose = "".join("G" if m.param_groups[0]["params"][0] is first else "D" for m in moves)
    assert whose == "DDDGDDDGDD"


def test_labelling_in_train_mode_gives_the_owner_his_statistics_back(public: ImageSet) -> None:
    target = make_target()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    train(replace(INVERSION, labelling="train"), public, target=target)
    torch.testing.assert_close(target.state_dict(), before, rtol=0, atol=0)
    assert not target.training


def test_labelling_in_train_mode_gives_other_labels_than_eval(public: ImageSet) -> None:
    target = make_target()
    index = torch.arange(8)
    by_mode = []
    for mode in (INVERSION, replace(INVERSION, labelling="train")):
        by_mode.append(mode._labeller(target.eval(), public, generator(0))(index))
    assert not torch.allclose(by_mode[0], by_mode[1])
    network = target.train()
    with torch.no_grad():
        torch.testing.assert_close(by_mode[1], network(public.take(index).images).softmax(1))


def test_labels_are_the_targets_probabilities(public: ImageSet) -> None:
    target, index = make_target(), torch.tensor([3, 1, 2])
    got = INVERSION._labeller(target, public, generator(0))(index)
    torch.testing.assert_close(got, target(public.images[index]).softmax(1).detach())


@pytest.mark.parametrize("saves", [1, 2, 3])
@pytest.mark.parametrize(
    ("spec", "defense"),
    [
        (replace(WGAN, critic="random"), NoDefense()),
        (replace(INVERSION, labelling="train"), NoDefense()),
        (INVERSION, MID(0.1)),
    ],
    ids=["random-critic", "inversion-train", "inversion-mid"],
)
def test_an_interrupted_and_resumed_prior_equals_an_uninterrupted_one(
    spec: GANSpec, defense: Defense, saves: int, public: ImageSet, tmp_path: Path
) -> None:
    def target() -> Classifier | None:
        return make_target(defense) if spec.access == "white" else None

    whole = train(spec, public, target=target())
    with pytest.raises(StoppedError):
        train(spec, public, CheckedWork(tmp_path, saves), target())
    assert equal(train(spec, public, Work(tmp_path), target()), whole)


@both_priors
def test_optimisers_move_weights_as_plain_adam_whatever_the_layout_of_a_gradient(
    spec: GANSpec, public: ImageSet
) -> None:
    with seeded("prior"):
        prior = spec.build(SHAPE, 3)
    assert isinstance(prior, GAN)
    weight = next(p for p in prior.discriminator.parameters() if p.ndim == 4 and len(p) > 1)
    weight.data = torch.randn(4, 3, 5, 5, generator=generator("weight"))
    pull = torch.randn(4, 5, 5, 3, generator=generator("pull")).permute(0, 3, 1, 2)
    assert pull.stride() != weight.stride()
    optimizer = spec._optimizers(prior)[1]
    optimizer.param_groups[0]["params"] = [weight]
    plain = weight.detach().clone().requires_grad_()
    slow = torch.optim.Adam([plain], spec.lr, spec.betas, foreach=False)
    for scale in (1, -3, 2):
        # The gradient of a product has the layout of the other factor.
        priors.descend_on((weight * pull).sum() * scale, optimizer)
        plain.grad = (pull * scale).contiguous()
        slow.step()
    torch.testing.assert_close(weight, plain)


def test_a_diverging_prior_stops(public: ImageSet) -> None:
    with pytest.raises(FloatingPointError, match="a loss in epoch"):
        train(replace(WGAN, lr=1e30), public)


# Attacks, on a linear prior and a linear target ----------------------------------------------


class LinearPrior(Prior):
    """G(z) = A z as 2x2 pixels around grey, with the realism w · x."""

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.z_dim = 3
        self.A = torch.randn(3, 4, generator=generator("A")) / 20
        self.w = torch.randn(4, generator=generator("w"))
        self.pooled = pooled

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return (z @ self.A + 0.5).view(len(z), 1, 2, 2)

    def realism(self, x: Images, y: Tensor | None = None) -> Tensor:
        """Looks at the other images of the batch if ``pooled``."""
        f = x.flatten(1)
        own = f @ self.w
        return own + 10 * (f @ f.mean(0)) if self.pooled else own


class LinearTarget(Classifier):
    """Four pixels to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.neck = nn.Identity()
        with seeded("target"):
            self.last = nn.Linear(4, 5)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (x.flatten(1),)


TARGET = LinearTarget().requires_grad_(requires_grad=False).eval()
BLOCKS = [torch.tensor([0, 1, 2]), torch.tensor([3, 4])]
DESCENT = GMI(WGAN, steps=30, lr=0.02, lambda_id=20.0)
FIT = KEDMI(INVERSION, steps=30, lr=0.02, lambda_id=20.0)


def invert(
    attack: Attack,
    prior: Prior,
    which: Sequence[int] = (0, 1),
    samples: int = 2,
    work: Work | None = None,
) -> Reconstructions:
    """Inverts some of the blocks; each keeps its own stream."""
    rngs = [generator("attack", i) for i in which]
    blocks = [BLOCKS[i] for i in which]
    return attack.invert(TARGET, prior, Goal(blocks, samples, rngs, (1, 2, 2)), work or Work())


def test_gmi_is_the_released_momentum_loop() -> None:
    """v <- 0.9 v - lr g; z <- z - 0.9 v_before + 1.9 v; then the clamp."""
    prior, y = LinearPrior(), BLOCKS[0]
    starts = prior.sample(2 * 3, generator("attack", 0)).view(2, 3, 3)
    attack = replace(DESCENT, clip=0.9)
    want = []
    for z in starts:
        v = torch.zeros_like(z)
        for _ in range(attack.steps):
            z = z.detach().requires_grad_()
            x = prior.generate(z)
            loss = -prior.realism(x).mean() + 20 * F.cross_entropy(TARGET(x), y)
            (g,) = torch.autograd.grad(loss, z)
            before, v = v, 0.9 * v - 0.02 * g
            z = (z - 0.9 * before + 1.9 * v).clamp(-0.9, 0.9)
        want.append(z.detach())
    found = invert(attack, prior, which=[0])
    assert (found.latents.abs() == 0.9).any()
    assert (found.latents.abs() < 0.9).any()
    torch.testing.assert_close(found.latents, torch.stack(want), rtol=1e-4, atol=1e-5)


def test_ked_mi_is_adam_on_mean_and_log_variance() -> None:
    """One fresh draw a step; then as many draws of the fitted distribution as samples."""
    prior, y, rng = LinearPrior(), BLOCKS[0], generator("attack", 0)
    mu = torch.zeros(3, 3, requires_grad=True)
    log_var = torch.full((3, 3), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([mu, log_var], 0.02)
    for _ in range(FIT.steps):
        noise = torch.randn(1, 3, 3, generator=rng)[0]
        x = prior.generate(mu + (log_var / 2).exp() * noise)
        s = prior.realism(x)
        loss = (F.softplus(s) - s).mean() + 20 * F.cross_entropy(TARGET(x), y)
        mu.grad, log_var.grad = torch.autograd.grad(loss, (mu, log_var))
        optimizer.step()
    draws = torch.randn(2, 3, 3, generator=rng)
    want = (mu + (log_var / 2).exp() * draws).detach()
    found = invert(replace(FIT, log_var=0.5), prior, which=[0])
    torch.testing.assert_close(found.latents, want, rtol=1e-4, atol=1e-5)


both_attacks = pytest.mark.parametrize(
    ("attack", "prior"),
    [(DESCENT, LinearPrior(pooled=True)), (FIT, LinearPrior(pooled=True))],
    ids=["gmi", "ked-mi"],
)


@both_attacks
def test_blocks_inverted_together_equal_blocks_inverted_alone(
    attack: Attack, prior: Prior
) -> None:
    together = invert(attack, prior)
    alone = [invert(attack, prior, which=[i]) for i in (0, 1)]
    latents = torch.cat([a.latents for a in alone], 1)
    torch.testing.assert_close(together.latents, latents, rtol=1e-4, atol=1e-5)


@both_attacks
@pytest.mark.parametrize("room", [1, 2, 3, 5, 8])
def test_an_attack_in_several_batches_equals_one_in_a_single_batch(
    attack: Attack, prior: Prior, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of three and two classes, images of four values."""
    whole = invert(attack, prior)
    monkeypatch.setattr(batches, "BATCH_PIXELS", 4 * room)
    found = invert(attack, prior)
    torch.testing.assert_close(found.latents, whole.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("room", "want"),
    [
        (1, [(0, 1, 0, 3), (1, 2, 3, 5), (2, 3, 5, 8), (3, 4, 8, 10)]),
        (5, [(0, 2, 0, 5), (2, 4, 5, 10)]),
        (7, [(0, 2, 0, 5), (2, 4, 5, 10)]),
        (8, [(0, 3, 0, 8), (3, 4, 8, 10)]),
        (10, [(0, 4, 0, 10)]),
    ],
)
def test_a_batch_holds_as_many_whole_groups_as_there_is_room_for(
    room: int, want: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_PIXELS", 4 * room)
    split = batches.parts([3, 2, 3, 2], 4, torch.device("cpu"))
    got = [(p.groups.start, p.groups.stop, p.rows.start, p.rows.stop) for p in split]
    assert got == want


@both_attacks
def test_an_attack_lowers_the_identity_loss(attack: Attack, prior: Prior) -> None:
    y = torch.cat(BLOCKS)
    rngs = [generator("attack", i) for i in (0, 1)]
    starts = torch.cat([prior.sample(len(b), r) for b, r in zip(BLOCKS, rngs, strict=True)])
    before = F.cross_entropy(TARGET(prior.generate(starts)), y)
    after = F.cross_entropy(TARGET(invert(attack, prior, samples=1).images[0]), y)
    assert after < before


@both_attacks
def test_the_images_are_what_the_latents_generate(attack: Attack, prior: Prior) -> None:
    found = invert(attack, prior, samples=3)
    assert found.images.shape == (3, 5, 1, 2, 2)
    images = prior.generate(found.latents.flatten(0, 1)).clamp(0, 1)
    torch.testing.assert_close(found.images.flatten(0, 1), images)


def test_a_resumed_inversion_continues_the_stream_of_every_block(tmp_path: Path) -> None:
    prior, blocks = LinearPrior(), list(torch.arange(5).view(5, 1))

    def run(work: Work) -> Tensor:
        rngs = [generator("attack", i) for i in range(5)]
        return FIT.invert(TARGET, prior, Goal(blocks, 1, rngs, (1, 2, 2)), work).latents

    whole = run(Work())
    with pytest.raises(StoppedError):
        run(CheckedWork(tmp_path, 17))
    assert torch.equal(run(Work(tmp_path)), whole)


def test_restarts_of_gmi_do_not_influence_each_other() -> None:
    """Two restarts of a block of one class start where the first two of a stream lie."""
    prior, y = LinearPrior(), [torch.tensor([0])]
    two, one = (
        DESCENT.invert(TARGET, prior, Goal(y, n, [generator("attack")], (1, 2, 2)), Work()).latents
        for n in (2, 1)
    )
    torch.testing.assert_close(two[0, 0], one[0, 0], rtol=1e-4, atol=1e-5)


def test_a_plain_prior_loss_is_minus_the_realism() -> None:
    prior = LinearPrior()
    attack = replace(FIT, prior_loss="plain", lambda_id=0.0)
    fitted = invert(attack, prior).latents.mean((0, 1))
    assert fitted @ (prior.A @ prior.w) > invert(replace(attack, steps=1), prior).latents.mean(
        (0, 1)
    ) @ (prior.A @ prior.w)


def test_a_limit_on_ked_mis_latents_is_kept() -> None:
    found = invert(replace(FIT, clip=0.5), LinearPrior(), samples=20)
    assert found.latents.abs().max().item() == 0.5


def test_realism_is_the_log_sum_exp_of_the_inversion_discriminators_logits(
    public: ImageSet,
) -> None:
    with seeded("prior"):
        prior = INVERSION.build(SHAPE, 3)
    x = public.images[:4]
    want = prior.discriminator(x)[1].exp().sum(1).log()
    torch.testing.assert_close(prior.realism(x), want)


def test_latents_that_are_not_finite_stop_an_attack() -> None:
    prior = LinearPrior()
    prior.w = torch.full((4,), float("nan"))
    with pytest.raises(FloatingPointError, match="a latent"):
        invert(DESCENT, prior)


def test_labels_of_blocks_are_repeated_for_every_sample() -> None:
    """Each sample of class c must be drawn towards c: with a strong pull all of them are."""
    y: Labels = torch.cat(BLOCKS)
    attack = replace(DESCENT, steps=200, lr=0.1, clip=50.0)
    found = invert(attack, LinearPrior(), samples=4)
    loss = F.cross_entropy(TARGET(found.images.flatten(0, 1)), y.repeat(4))
    swapped = F.cross_entropy(TARGET(found.images.flatten(0, 1)), y.flip(0).repeat(4))
    assert loss < swapped
