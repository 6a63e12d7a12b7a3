"""Random views, choices among candidates, stages, and the parts of white-box attacks."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import (
    GMI,
    IFGMI,
    PLGGAN,
    PPA,
    PPDGMI,
    TACGAN,
    WGANGP,
    Goal,
    Imitation,
    InversionNetwork,
    MIFace,
    Mirror,
    OtherClass,
    Pixels,
    Student,
    StyleGAN2,
    Transfer,
)  # fmt: skip
from mibench.attacks.access import Watched
from mibench.attacks.ifgmi import onto_ball
from mibench.attacks.plgmi import PLGMI
from mibench.attacks.ppdgmi import one_by_one
from mibench.attacks.priors.conditional import PseudoLabelGAN
from mibench.attacks.priors.pixels import PixelPrior
from mibench.attacks.priors.stylegan import StyleGANPrior
from mibench.attacks.selection import scores
from mibench.attacks.views import Augment, Plain, identity_loss, turned
from mibench.attacks.vmi import VMI
from mibench.evaluation import Protocol
from mibench.networks import MLP
from mibench.running.checks.stages import cell
from mibench.running.stages import record_stage
from mibench.seeding import generator, seeded
from mibench.spec import canonical, require_betas
from mibench.store import Work
from mibench.types import Classifier, ImageSet, Prior

SHAPE = (1, 8, 8)
PRIOR = StyleGAN2(**StyleGAN2.small)


def target() -> Classifier:
    with seeded("target"):
        network = MLP().build(SHAPE, 4)
    return network.eval().requires_grad_(requires_grad=False)


def built(spec: Any) -> Any:
    with seeded("prior"):
        prior = spec.build(SHAPE, 4)
    return prior.eval().requires_grad_(requires_grad=False)


def goal(*blocks: list[int], samples: int = 2, **more: Any) -> Goal:
    streams = [generator("block", i) for i in range(len(blocks))]
    return Goal([torch.tensor(b) for b in blocks], samples, streams, SHAPE, **more)


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=rng)


# The view "augment" --------------------------------------------------------------------------


def test_without_changes_it_is_the_image_or_its_mirror_image(x: Tensor) -> None:
    for flip, want in ((0.0, x), (1.0, x.flip(3))):
        torch.testing.assert_close(Augment(flip=flip)(x, generator()), want)
    some = Augment(flip=0.5)(x, generator("some"))
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(some, x, strict=True)]
    assert 0 < sum(same) < 6


def test_images_have_changes_of_their_own_or_share_one_draw(x: Tensor) -> None:
    view = Augment(scale=(0.3, 0.9), ratio=(0.5, 2), rotation=20.0, brightness=0.3, contrast=0.5)
    twins = x[:1].repeat(4, 1, 1, 1)
    own, shared = view(twins, generator()), replace(view, each=False)(twins, generator())
    assert (own[0] - own[1]).abs().max() > 0.05
    torch.testing.assert_close(shared[0], shared[3])
    assert torch.equal(view(x, generator("a")), view(x, generator("a")))
    assert not torch.equal(view(x, generator("a")), view(x, generator("b")))


def test_the_part_has_the_area_and_the_ratio_that_are_asked_for() -> None:
    ramp = torch.arange(64.0).expand(1, 1, 64, 64)
    view = Augment(scale=(0.25, 0.25), ratio=(4.0, 4.0), flip=0.0)
    for i in range(5):
        wide = view(ramp, generator("part", i))[0, 0]
        tall = view(ramp.mT, generator("part", i))[0, 0].T
        step = (wide[:, 40] - wide[:, 20]) / 20, (tall[:, 40] - tall[:, 20]) / 20
        torch.testing.assert_close(step[0], torch.ones(64))  # as wide as the image
        torch.testing.assert_close(step[1], torch.full((64,), 0.25))  # a quarter as high


def test_a_turned_ramp_rises_along_a_turned_direction() -> None:
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = (columns - rows)[None, None]
    got = turned(ramp, torch.tensor([20.0]), black=False)[0, 0, 12:20, 12:20]
    along, down = got.diff(dim=1).mean(), got.diff(dim=0).mean()
    before, after = torch.tensor([1.0, -1.0]), torch.stack([along, down])
    assert after.norm().item() == pytest.approx(before.norm().item(), rel=0.01)
    cosine = (before @ after) / before.norm() / after.norm()
    assert torch.rad2deg(cosine.acos()).item() == pytest.approx(20, abs=0.5)
    assert float(after[0] * before[1] - after[1] * before[0]) < 0  # counter-clockwise, y downwards
    white = turned(torch.ones(1, 1, 32, 32), torch.tensor([20.0]), black=True)[0, 0]
    assert white[0, 0] < 0.1 < 0.99 < white[16, 16]
    assert (turned(torch.ones(1, 1, 32, 32), torch.tensor([20.0]), black=False) > 0.99).all()


def test_it_is_turned_and_lit_as_often_as_asked(x: Tensor) -> None:
    for view in (Augment(flip=0.0, rotation=40.0, turned=0.0),
                 Augment(flip=0.0, brightness=0.5, contrast=0.5, jittered=0.0)):  # fmt: skip
        torch.testing.assert_close(view(x, generator()), x)
    lit = Augment(flip=0.0, brightness=1.0)(x, generator("lit"))
    factor = (lit / x).flatten(1)
    assert (factor.std(1) < 1e-3).all()
    assert factor.mean(1).std() > 0.1
    stark = Augment(flip=0.0, contrast=1.0)(x, generator("lit"))
    torch.testing.assert_close(stark.mean((1, 2, 3)), x.mean((1, 2, 3)))
    assert lit.max() > 1
    assert Augment(flip=0.0, brightness=1.0, clip=True)(x, generator("lit")).max() <= 1


def test_a_view_that_counts_as_several_is_the_mean_over_them_and_asks_as_often() -> None:
    x, labels = torch.rand(4, *SHAPE, generator=generator()), torch.arange(4)
    attack, work = GMI(views=(Augment(scale=(0.5, 1.0), looks=3),)), Work()
    assert attack.queries_per_image == 3
    seen = Watched(target(), work)
    got = attack.wrong(seen, x, goal([0, 1, 2, 3]).rows(1))
    assert work.queries == 12
    three = (Augment(scale=(0.5, 1.0)),) * 3
    stream = [(4, generator("block", 0))]
    want = identity_loss(attack.identity, three, target(), x, labels, stream)
    torch.testing.assert_close(got, want)


def test_the_least_comes_first() -> None:
    with pytest.raises(
        ValueError, match=r"Augment\.scale is \(1\.0, 0\.5\): the least comes first"
    ):
        Augment(scale=(1.0, 0.5))


def test_what_is_looked_at_in_several_ways_is_computed_in_smaller_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mibench.attacks.batches.BATCH_PIXELS", 64 * 4)
    sizes: list[int] = []

    class Counting(PixelPrior):
        def __deepcopy__(self, memo: dict[int, object]) -> "Counting":
            return self

        def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
            sizes.append(len(z))
            return super().generate(z, y)

        def realism(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return 0 * x.sum((1, 2, 3))

    for looks, want in ((1, [4]), (2, [2, 2])):
        sizes.clear()
        attack = GMI(steps=1, views=(Augment(looks=looks),))
        attack.invert(target(), Counting(SHAPE), goal([0, 1], [2, 3], samples=1), Work())
        assert sizes[:-1] == want


# Choices -------------------------------------------------------------------------------------


def test_the_cutoff_truncates_coarse_styles_alone() -> None:
    prior, z = built(PRIOR), torch.randn(3, 8, generator=generator())
    prior.generator.mapping.w_avg.fill_(2.0)
    whole, drawn = prior.styles(z), prior.styles(z, 0.5)
    part = prior.styles(z, 0.5, 2)
    assert torch.equal(part[:, :2], drawn[:, :2])
    assert torch.equal(part[:, 2:], whole[:, 2:])
    torch.testing.assert_close(drawn, 1 + whole / 2)


def test_answers_for_choosing_are_counted_and_each_look_is_one() -> None:
    work = Work()
    views = (Plain(draws=2), Augment(looks=3))
    x = torch.rand(5, *SHAPE, generator=generator())
    said = scores(Watched(target(), work), x, lambda x: x, views, generator())
    assert work.queries == 5 * 5
    torch.testing.assert_close(said.sum(1), torch.ones(5))


def test_what_ppa_keeps_was_surest_of_what_it_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = PPA(PRIOR, pool=8, candidates=3, steps=2, lr=1e-9, final=(Plain(),), augment=())
    prior, seen = built(PRIOR), target()
    made = attack.invert(seen, prior, goal([0, 1, 2, 3]), Work())
    moved = replace(attack, candidates=1).invert(
        seen, prior, goal([0, 1, 2, 3], samples=6), Work()
    )
    sure = seen(moved.images.flatten(0, 1)).softmax(1).view(6, 4, 4)[:, range(4), range(4)]
    kept = seen(made.images.flatten(0, 1)).softmax(1).view(2, 4, 4)[:, range(4), range(4)]
    torch.testing.assert_close(kept, sure.topk(2, 0).values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "taken"), [(PPA(pool=7), 8), (IFGMI(pool=1), 2), (Mirror(pool=2), 4)]
)
def test_a_pool_smaller_than_what_is_taken_of_it_is_refused(attack: Any, taken: int) -> None:
    with pytest.raises(ValueError, match=f"pool is {attack.pool}, but each class starts from "):
        attack.planned_steps(1, 4 if isinstance(attack, Mirror) else 2)


def test_a_limit_that_does_not_pay_for_the_choices_is_refused_before_any_answer() -> None:
    attack, work = PPA(PRIOR, pool=8, candidates=2, steps=2, final=(Plain(),)), Work()
    seen = Watched(target(), work, 16 + 2 * 16 - 1)  # pool, one step and the last choice
    sentence = "do not pay for a step, which asks 16, beside 32 for choosing among images"
    with pytest.raises(ValueError, match=sentence):
        attack.invert(seen, built(PRIOR), goal([0, 1, 2, 3]), work)
    assert work.queries == 0
    with pytest.raises(ValueError, match="beside 4 for choosing among images"):
        replace(attack, max_queries=7).planned_steps(1, 2)


@pytest.mark.parametrize("cls", [PPA, IFGMI, WGANGP, PLGGAN, TACGAN, StyleGAN2, InversionNetwork])
@pytest.mark.parametrize("betas", [(1.0, 0.1), (0.1, 1.0), (-0.1, 0.9)])
def test_decay_rates_are_below_one(cls: Any, betas: tuple[float, float]) -> None:
    sentence = f"{cls.__name__}.betas must be two numbers of at least 0 and below 1, got {betas}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        cls(betas=betas)


@pytest.mark.parametrize("betas", [(), (0.1,), (0.1, 0.2, 0.3)])
def test_decay_rates_are_two(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"PPA\.betas must be two numbers"):
        require_betas(PPA(), betas)


# IF-GMI --------------------------------------------------------------------------------------


def staged(prior: StyleGANPrior, **fields: Any) -> list[Tensor]:
    """Returns the images of two stages."""
    attack = IFGMI(PRIOR, pool=4, steps=(1, 2), **fields)
    made = attack.invert(target(), prior, goal([0, 1], [2, 3]), Work())
    assert made.earlier is not None
    return [made.earlier[0], made.images]


def test_a_stage_begins_with_the_picture_of_the_one_before_unless_it_is_dropped() -> None:
    prior = built(PRIOR)
    first, second = staged(prior, lr=1e-9)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)
    first, second = staged(prior, lr=1e-9, skip="dropped")
    assert (first - second).abs().max() > 0.01


def test_what_counts_is_after_the_last_step_or_before_it() -> None:
    prior = built(PRIOR)
    before = staged(prior, judged="before-last", lr=0.1)
    start = IFGMI(PRIOR, pool=4, steps=(1,), lr=1e-9)
    made = start.invert(target(), prior, goal([0, 1], [2, 3]), Work())
    torch.testing.assert_close(before[0], made.images, rtol=0, atol=1e-4)
    assert (staged(prior, lr=0.1)[0] - made.images).abs().max() > 1e-3


def test_each_part_stays_in_its_ball(rng: torch.Generator) -> None:
    x = torch.randn(3, 50, generator=rng)
    near = onto_ball(x, 2.0)
    torch.testing.assert_close(near.abs().sum(1), torch.full((3,), 2.0))
    assert torch.equal(onto_ball(near * 0.9, 2.0), near * 0.9)
    prior = built(PRIOR)
    free, held = (
        staged(prior, lr=0.5, style_radii=(r, r), map_radii=(r, r)) for r in (1000.0, 0.0)
    )
    torch.testing.assert_close(held[0], held[1], rtol=0, atol=1e-4)
    assert (free[0] - free[1]).abs().max() > 0.01


def test_stages_are_as_many_as_fit() -> None:
    with pytest.raises(ValueError, match="names 3 stages, but the generator has 2 blocks"):
        IFGMI(PRIOR, pool=4, steps=(1, 1, 1)).invert(target(), built(PRIOR), goal([0]), Work())
    with pytest.raises(ValueError, match=r"a radius for each in IFGMI\.map_radii"):
        IFGMI(map_radii=(1.0,))


def test_of_a_single_stage_the_evaluator_selects_what_there_is() -> None:
    only = cell(attack=IFGMI(PRIOR, pool=4, steps=(1,)))
    only = replace(only, protocol=Protocol(select="evaluator"))
    only.check()
    made = only.attack.invert(target(), built(PRIOR), goal([0, 1]), Work())
    evidence = record_stage(only, ("accuracy",), "drawn").evidence[0]
    payload = {"images": made.images, "earlier": made.earlier}
    assert torch.equal(evidence._moments(lambda _: payload), made.images[None])


# MI-Face -------------------------------------------------------------------------------------


def test_an_image_moves_alike_whatever_else_is_attacked() -> None:
    attack = MIFace(steps=4, start="black", lr=5.0)
    together = attack.invert(target(), PixelPrior(SHAPE), goal([0, 1, 2, 3]), Work())
    apart = attack.invert(target(), PixelPrior(SHAPE), goal([0], [1], [2, 3]), Work())
    torch.testing.assert_close(together.images, apart.images)
    assert torch.equal(together.images[0], together.images[1])
    assert together.images.min() >= 0
    assert together.images.max() > 0


def test_pixels_beside_surrogates_are_moved_like_pixels_alone() -> None:
    attack, found = MIFace(steps=4, start="black", lr=50.0), []
    for spec in (Pixels(), Imitation(Pixels(), (Student(MLP(width=8)),))):
        moving = replace(attack, prior=spec)
        found.append(moving.invert(target(), built(spec), goal([0, 1, 2, 3]), Work()).latents)
    assert torch.equal(*found)
    assert 0 <= found[1].min() <= found[1].max() <= 1


# PPDG-MI -------------------------------------------------------------------------------------

PUBLIC = ImageSet(
    (torch.rand(12, *SHAPE, generator=generator("public")) * 255).byte(), torch.arange(12) + 4
)
WGAN = WGANGP(**WGANGP.small)


@pytest.mark.parametrize("together", [True, False])
def test_the_prior_trains_on_with_the_surest_results(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[ImageSet] = []
    lengths: list[tuple[int, float]] = []

    def train(
        self: WGANGP, prior: Prior, public: ImageSet, asked: Any, rng: Any, work: Work
    ) -> None:
        assert asked is None
        assert all(p.requires_grad for p in prior.parameters())
        shown.append(public)
        lengths.append((self.epochs, self.lr))
        with torch.no_grad():
            for p in prior.parameters():
                p.add_(0.1)

    monkeypatch.setattr(WGANGP, "train", train)
    attack = PPDGMI(
        WGAN, GMI(steps=2), candidates=4, share=0.5, ranking=(Plain(),), epochs=3, lr=0.5,
        together=together,
    )  # fmt: skip
    prior = built(WGAN)
    before = [p.clone() for p in prior.parameters()]
    made = attack.invert(target(), prior, goal([0, 1], [2, 3], public=PUBLIC), Work())
    assert made.images.shape == (2, 4, *SHAPE)
    assert all(torch.equal(p, q) for p, q in zip(prior.parameters(), before, strict=True))
    assert lengths == [(3, 0.5)] * (1 if together else 4)
    pseudo = [s.labels[12:].tolist() for s in shown]
    assert pseudo == ([[0, 1, 2, 3] * 2] if together else [[k] * 2 for k in range(4)])
    assert all(torch.equal(s.pixels[:12], PUBLIC.pixels) for s in shown)
    first = attack.attack.invert(
        target(), prior, goal([0, 1], [2, 3], samples=4, public=PUBLIC), Work()
    )
    sure = target()(first.images.flatten(0, 1)).softmax(1).view(4, 4, 4)[:, range(4), range(4)]
    best = sure.topk(2, 0).indices
    want = torch.stack([first.images[best[:, k], k] for k in range(4)], 1)
    got = torch.cat([s.images[12:].view(2, -1, *SHAPE) for s in shown], 1)
    torch.testing.assert_close(got, want, rtol=0, atol=0.003)  # through bytes


def test_a_class_on_its_own_steps_as_far_as_in_its_block() -> None:
    whole = goal([0, 1], [2, 3, 5])
    parts = [part.rows(2).weights for part in one_by_one(whole)]
    want = whole.rows(2).weights
    assert want.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3] * 2)
    assert torch.equal(torch.stack(parts, 1).flatten(), want)
    for all_classes, version in ((True, 1), (False, 2)):
        spec = canonical(PPDGMI(together=all_classes))
        assert isinstance(spec, dict)
        assert spec["version"] == version


def test_its_answers_are_divided_between_both_attacks() -> None:
    attack = PPDGMI(WGAN, GMI(steps=10), candidates=4, ranking=(Plain(),), epochs=1)
    prior = built(WGAN)
    for limit, steps in ((40 * 4 + 16 + 20 * 4, 20), ((40 * 4 + 20 * 4) // 2 + 16, 10)):
        work = Work()
        seen = Watched(target(), work, limit)
        attack.invert(seen, prior, goal([0, 1], [2, 3], public=PUBLIC), work)
        assert (work.steps, work.queries) == (steps, limit)


def test_within_is_less_than_what_is_left() -> None:
    work = Work()
    seen = Watched(target(), work, 20)
    part = seen.within(8)
    part(torch.zeros(5, *SHAPE))
    assert (part.remaining, seen.remaining, work.queries) == (3, 15, 5)
    assert seen.within(99).remaining == 15
    with pytest.raises(ValueError, match="asks the target for 4 more answers, but 3 remain"):
        part(torch.zeros(4, *SHAPE))


def test_other_attacks_and_priors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PPDGMI\.attack must be gmi, ked-mi or plg-mi, and vmi"):
        PPDGMI(attack=VMI())
    with pytest.raises(
        ValueError, match=r"PPDGMI\.prior must be a GAN that asks the target for no"
    ):
        PPDGMI(PseudoLabelGAN(), PLGMI())
    with pytest.raises(ValueError, match="must not be ppdg-mi: a control is not shown public"):
        OtherClass(attack=PPDGMI())
    with pytest.raises(ValueError, match="must not be ppdg-mi: it asks the target for more"):
        Transfer(attack=PPDGMI())
