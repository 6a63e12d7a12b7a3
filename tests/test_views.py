"""Adaptive attacks: views, losses and budgets against closed forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.attacks import GMI, KEDMI, VIEWS, VMI, InversionGAN
from mibench.attacks.access import Watched
from mibench.attacks.losses import CrossEntropy, LogitMatching, MaxMargin
from mibench.attacks.priors.gan import soft_labels
from mibench.attacks.views import (
    Crop,
    Flip,
    Noise,
    Plain,
    Shift,
    affordable,
    identity_loss,
    viewed,
    window,
)
from mibench.benchmarks.tables import TABLES
from mibench.defenses import MID
from mibench.networks import MLP
from mibench.override import override
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Classifier, ImageSet, predict

SHAPE = (1, 6, 6)
LABELS = torch.tensor([0, 2, 1, 2])


def make(noisy: bool = False) -> Classifier:
    with seeded("target"):
        network: Classifier = MLP(width=16).build(SHAPE, 3)
        network = MID(0.01).harden(network) if noisy else network
    if noisy:
        with torch.no_grad():  # noise that shows
            network.last.statistics.bias[8:] += 4  # type: ignore[index, union-attr, operator]
    return network.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.rand(4, *SHAPE, generator=rng).requires_grad_()


def slope(loss: Tensor, x: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(loss.sum(), x)
    return g


# Views --------------------------------------------------------------------------------------


def test_the_slope_over_views_is_the_mean_of_their_slopes(x: Tensor) -> None:
    target = make()
    views = (Plain(), Flip(), Shift(pixels=2), Crop(scale=0.7), Noise(std=0.3))
    got = slope(identity_loss(CrossEntropy(), views, target, x, LABELS, [(4, generator("v"))]), x)
    each = []
    rng = generator("v")
    for view in views:
        wrong = F.cross_entropy(target(view(x, rng)), LABELS, reduction="none")
        each.append(slope(wrong, x))
    torch.testing.assert_close(got, torch.stack(each).mean(0))
    assert not torch.allclose(got, each[0])


def test_without_views_the_loss_is_of_the_image_to_the_bit(x: Tensor) -> None:
    target = make()
    for views in ((), (Plain(),)):
        got = identity_loss(CrossEntropy(), views, target, x, LABELS, [(4, generator("v"))])
        assert torch.equal(got, CrossEntropy()(target(x), LABELS))


def test_draws_are_the_mean_over_so_many_answers_of_a_target_with_noise(x: Tensor) -> None:
    target = make(noisy=True)
    with seeded("noise"):
        got = identity_loss(
            CrossEntropy(), (Plain(draws=5),), target, x, LABELS, [(4, generator())]
        )
    with seeded("noise"):
        z = target.latents(x)[-1]
        noise = torch.randn(5, 4, target.noise_dim)
    each = [CrossEntropy()(target.head(z, n), LABELS) for n in noise]
    torch.testing.assert_close(got, torch.stack(each).mean(0))
    assert (torch.stack(each).std(0) > 1e-3).all()


def test_many_draws_come_near_the_expectation_of_the_slope(x: Tensor) -> None:
    target = make(noisy=True)

    def spread(draws: int) -> float:
        with seeded("noise", draws):
            many = [
                slope(
                    identity_loss(
                        CrossEntropy(),
                        (Plain(draws=draws),),
                        target,
                        x,
                        LABELS,
                        [(4, generator())],
                    ),
                    x,
                )
                for _ in range(40)
            ]
        return torch.stack(many).var(0).mean().item()

    assert spread(1) / spread(16) == pytest.approx(16, rel=0.35)


def test_views_of_unequal_draws_weigh_the_same(x: Tensor) -> None:
    target = make()
    got = identity_loss(
        CrossEntropy(), (Plain(draws=3), Flip()), target, x, LABELS, [(4, generator())]
    )
    want = [CrossEntropy()(target(v), LABELS) for v in (x, x.flip(3))]
    torch.testing.assert_close(got, torch.stack(want).mean(0))


def test_a_block_draws_from_its_own_stream_alone(x: Tensor) -> None:
    views = (Shift(pixels=2), Noise(std=1.0))
    together = viewed(views, x, [(3, generator("a")), (1, generator("b"))])
    alone = viewed(views, x[3:], [(1, generator("b"))])
    for both, one in zip(together, alone, strict=True):
        assert torch.equal(both[3:], one)


def test_a_whole_shift_moves_pixels_and_repeats_the_border(x: Tensor) -> None:
    moved = window(x, 1, -2, 1.0)
    assert torch.equal(moved[..., :5, 2:], x[..., 1:, :4])
    assert torch.equal(moved[..., 5, :], moved[..., 4, :])
    assert torch.equal(moved[..., 0], moved[..., 1])


def test_shifts_are_drawn_up_to_the_limit_each_way(x: Tensor) -> None:
    rng, ramp = generator("s"), torch.arange(6.0).expand(1, 1, 6, 6)
    at = {int(Shift(pixels=2)(ramp, rng)[0, 0, 0, 3]) - 3 for _ in range(60)}
    assert at == {-2, -1, 0, 1, 2}


def test_a_crop_of_a_ramp_is_a_slower_ramp_within_it(rng: torch.Generator) -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    got = Crop(scale=0.5)(ramp, rng)[0, 0, 0]
    inner = (got.diff() - 0.5).abs() < 1e-5
    assert inner.sum() >= 6
    assert 0 <= got.min() <= got.max() <= 7


def test_a_crop_of_the_whole_is_the_image(x: Tensor, rng: torch.Generator) -> None:
    torch.testing.assert_close(Crop(scale=1.0)(x, rng), x)


def test_noise_has_its_deviation(rng: torch.Generator) -> None:
    noise = Noise(std=0.25)(torch.zeros(50, 1, 20, 20), rng)
    assert noise.std().item() == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_keeps_the_shape_and_lets_slopes_through(
    name: str, x: Tensor, rng: torch.Generator
) -> None:
    view = VIEWS[name]()
    assert view.draws == 1
    assert view(x, rng).shape == x.shape
    assert (slope(view(x, rng), x) != 0).any()
    with pytest.raises(ValueError, match="draws must be at least 1"):
        VIEWS[name](draws=0)  # type: ignore[call-arg]


def test_soft_labels_are_mean_probabilities_over_the_views(x: Tensor) -> None:
    target = make(noisy=True)
    with seeded("noise"), torch.no_grad():
        got = soft_labels(target, (Flip(draws=2),), x, generator())
    with seeded("noise"):
        z = target.latents(x.flip(3))[-1]
        noise = torch.randn(2, 4, target.noise_dim)
    want = torch.stack([target.head(z, n).softmax(1) for n in noise]).mean(0)
    torch.testing.assert_close(got, want.detach())


def test_the_inversion_gan_is_told_what_the_target_says_of_views(x: Tensor) -> None:
    public = ImageSet((x.detach() * 255).to(torch.uint8), LABELS)
    target, index = make(), torch.tensor([2, 0])
    got = InversionGAN(views=(Flip(),))._labeller(target, public, generator())(index)
    want = target(public.images[index].flip(3)).softmax(1)
    torch.testing.assert_close(got, want)


# Losses -------------------------------------------------------------------------------------


def test_max_margin_is_the_best_other_logit_less_the_own(rng: torch.Generator) -> None:
    logits = torch.randn(4, 3, generator=rng)
    want = [max(v for k, v in enumerate(row) if k != y) - row[y]
            for row, y in zip(logits.tolist(), LABELS.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(MaxMargin()(logits, LABELS), torch.tensor(want))


def test_logit_matching_by_hand() -> None:
    loss, offset = LogitMatching(weight=2.0), torch.tensor([[3.0, 0.0, 0.0, -1.0]])
    assert loss(torch.tensor([[1.0, 5.0]]), torch.tensor([1])).tolist() == [-5]
    assert loss.penalty(offset).tolist() == [2 * (9 + 1) / 4]


def test_logit_matching_compares_with_the_mean_public_latent(
    x: Tensor, rng: torch.Generator
) -> None:
    pixels = torch.randint(0, 256, (30, *SHAPE), generator=rng).to(torch.uint8)
    public = ImageSet(pixels, torch.arange(30) % 3)
    target, work = make(), Work()
    watched = Watched(target, work)
    watched.look_at(public)
    assert work.queries == 30
    got = identity_loss(LogitMatching(weight=0.5), (), watched, x, LABELS, [(4, generator())])
    z, logits = target.latents(x)[-1], target(x)
    mean = predict(target, public.images, generator())[1].mean(0)
    want = -logits[range(4), LABELS] + 0.5 * (z - mean).square().mean(1)
    torch.testing.assert_close(got, want)


def test_logit_matching_without_public_images_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="logit-matching needs the target's mean public latent"):
        identity_loss(LogitMatching(), (), make(), x, LABELS, [(4, generator())])


# Budgets ------------------------------------------------------------------------------------


def test_a_watched_target_answers_as_the_target_and_counts(x: Tensor) -> None:
    target, work = make(), Work()
    watched = Watched(target, work)
    assert torch.equal(watched(x), target(x))
    assert (work.queries, work.gradients) == (4, 0)
    slope(watched(x), x)
    assert (work.queries, work.gradients) == (8, 4)
    z = watched.latents(x)[-1]
    watched.head(z.repeat(3, 1))
    assert (work.queries, work.gradients) == (20, 4)
    watched.head(z)
    assert work.queries == 24
    assert watched.last is target.last
    assert not watched.training


@pytest.mark.parametrize(
    ("attack", "images", "steps"),
    [
        (GMI(steps=100), 5, 100),
        (GMI(steps=100, max_queries=52), 5, 10),
        (GMI(steps=100, max_queries=5000), 5, 100),
        (KEDMI(steps=100, max_queries=52, views=(Plain(draws=3), Flip())), 1, 13),
        (VMI(steps=100, batch=4, max_queries=52), 4, 13),
    ],
)
def test_a_budget_pays_for_whole_steps(attack: GMI | KEDMI | VMI, images: int, steps: int) -> None:
    assert affordable(attack, attack.steps, images) == steps
    assert attack.planned_steps(1, 5) == steps


def test_a_budget_below_one_step_is_refused_before_anything_runs() -> None:
    table = TABLES["smoke"].only(["GMI / *"])
    with pytest.raises(ValueError, match="max_queries is 9, but a step asks 10 answers"):
        table.modified(["attack.max_queries=9"])
    assert table.modified(["attack.max_queries=10"])


# The command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("identity", "max-margin", MaxMargin()),
        ("identity", '{"is": "logit-matching", "weight": 2}', LogitMatching(2.0)),
        ("views", '["flip", {"is": "shift", "pixels": 3}]', (Flip(), Shift(3))),
    ],
)
def test_a_name_stands_for_a_loss_or_a_view(path: str, text: str, value: object) -> None:
    assert getattr(override(KEDMI(), path, text), path) == value


@pytest.mark.parametrize("text", ["margin", '{"weight": 1}', '{"is": "max-margin", "weight": 1}'])
def test_what_is_no_loss_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="takes one of cross-entropy, max-margin, logit-matching"):
        override(KEDMI(), "identity", text)
