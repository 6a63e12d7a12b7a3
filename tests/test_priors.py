"""What priors ask of the target and offer to attacks, and images of a class."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mibench.attacks import (
    BREPMI,
    GMI,
    PLGGAN,
    TACGAN,
    VMI,
    WGANGP,
    Goal,
    InversionGAN,
    Pixels,
    PriorSamples,
)
from mibench.attacks.access import Query, Watched
from mibench.attacks.priors.conditional import PseudoLabelGAN
from mibench.benchmarks.tables import TABLES
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.networks import MLP
from mibench.roles import Attack, IdentityLoss, PriorSpec
from mibench.running.stages import (
    ClassifierStage,
    ImagesStage,
    InversionStage,
    PriorStage,
    record_stage,
)
from mibench.seeding import generator, seeded
from mibench.store import Payload, Work
from mibench.types import Access, ImageSet, Prior, Reconstructions

TASK = Blobs(num_classes=4)
CELL = TABLES["smoke"].rows["GMI / No Def."]
IMAGES = ImagesStage(TASK, "drawn")
TARGET = ClassifierStage(IMAGES, "private", MLP(), NoDefense(), Recipe(1, select="last"), 0)


class Shared(list[Any]):
    """A list that copies of its owner fill, too."""

    def __deepcopy__(self, memo: object) -> "Shared":
        return self


class Grey(Prior):
    """Grey images, a little brighter for each class; notes the classes that it is handed."""

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.z_dim, self.pooled = 2, pooled
        self.asked = Shared()

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        self.asked.append(y)
        level = z.mean(1) / 100 + (0 if y is None else y / 10)
        return level.view(-1, 1, 1, 1).expand(-1, *TASK.shape)

    def realism(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.asked.append(y)
        return x.mean((1, 2, 3)) if y is None else y.float()


@dataclass(frozen=True)
class Asking(PriorSpec):
    name: ClassVar[str] = "asking"
    handed: ClassVar[list[Any]] = []

    def build(self, shape: Any, num_classes: int) -> Prior:
        return Grey()

    def train(self, prior: Any, public: ImageSet, target: Any, rng: Any, work: Work) -> None:
        self.handed.append(target)
        if isinstance(target, Query):
            target(public.take(torch.arange(7)).images)


def compute(stage: Any) -> Payload:
    payload: Payload = stage.compute(compute, Work())
    return payload


@dataclass(frozen=True)
class OfLabels(Asking):
    access: ClassVar[Access] = "labels"


@dataclass(frozen=True)
class OfScores(Asking):
    access: ClassVar[Access] = "scores"


@dataclass(frozen=True)
class OfAll(Asking):
    access: ClassVar[Access] = "white"


@pytest.mark.parametrize(
    ("spec", "kind", "queries"),
    [(Asking(), type(None), 0), (OfLabels(), Query, 7), (OfScores(), Query, 7),
     (OfAll(), Watched, 0)],
)  # fmt: skip
def test_a_prior_is_handed_what_its_access_says_and_every_answer_counts(
    spec: Asking, kind: type, queries: int
) -> None:
    target = None if spec.access == "none" else TARGET
    assert compute(PriorStage(IMAGES, target, spec, 0))["queries"] == queries
    seen = Asking.handed.pop()
    assert type(seen) is kind
    if isinstance(seen, Query):
        answer = seen(torch.zeros(2, *TASK.shape))
        assert answer.is_floating_point() == (spec.access == "scores")


def test_only_a_prior_that_asks_needs_the_target() -> None:
    for spec in (Asking(), OfLabels()):
        stage = record_stage(replace(CELL, attack=GMI(spec)), [], "x").evidence[0].inversion.prior
        assert (stage.target is not None) == (spec.access != "none")


# What a cell refuses ------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain(Attack):
    name: ClassVar[str] = "plain"

    prior: PriorSpec = field(default_factory=WGANGP)

    def invert(self, target: Any, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        return goal.reconstructions(prior, goal.draws(prior))


ORDER = ("none", "labels", "scores", "white")
SPECS = dict(zip(ORDER, (Asking(), OfLabels(), OfScores(), OfAll()), strict=True))


@pytest.mark.parametrize("asks", ORDER)
@pytest.mark.parametrize("sees", ORDER)
def test_a_prior_may_ask_for_as_much_as_the_attack_and_for_no_more(asks: str, sees: str) -> None:
    seeing: Any = type("Seeing", (Plain,), {"access": sees, "__module__": __name__})
    cell = replace(CELL, attack=seeing(SPECS[asks]))
    if sees == "none" or ORDER.index(asks) <= ORDER.index(sees):  # what asks nothing may be told
        cell.check()
        return
    handed = "the whole target" if asks == "white" else "its scores"
    with pytest.raises(ValueError, match=f"plain sees only .* {sees}, .* trained on {handed}; "):
        cell.check()


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (GMI(Pixels()), "gmi needs a prior with critic, and pixels has none; give it another"),
        (VMI(WGANGP()), "vmi needs a prior with styles, and wgan-gp has none"),
    ],
)
def test_an_attack_refuses_a_prior_that_lacks_what_it_wants(attack: Attack, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CELL, attack=attack).check()
    replace(CELL, attack=PriorSamples(attack.prior)).check()


@pytest.mark.parametrize("prior", [TACGAN(), PseudoLabelGAN(), PLGGAN()])
def test_a_search_that_names_no_class_refuses_priors_that_have_to_be_told_one(prior: Any) -> None:
    with pytest.raises(ValueError, match=f"{prior.name}.* give it another prior"):
        replace(CELL, attack=BREPMI(prior)).check()


def test_an_untrained_critic_s_number_is_never_given_for_a_critic_that_is_not_there() -> None:
    prior = Pixels().build(TASK.shape, 4)
    with pytest.raises(ValueError, match="PixelPrior has no critic"):
        prior.realism(torch.zeros(2, *TASK.shape))
    with pytest.raises(ValueError, match="PixelPrior has no critic"):
        prior.realism_by_group(torch.zeros(2, *TASK.shape), [2])


# Old signatures -----------------------------------------------------------------------------


def test_sees_target_is_taken_and_told_how_to_be_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Old(Asking):
        sees_target = True

    class Blind(Asking):
        sees_target = False

    assert (Old.access, Blind.access) == ("white", "none")
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": write ")[1] for line in said] == [
        'access: ClassVar[Access] = "white"', 'access: ClassVar[Access] = "none"'
    ]  # fmt: skip


@pytest.mark.parametrize(("method", "given"), [("generate", "z"), ("realism", "x")])
def test_a_prior_that_takes_no_classes_is_told_how_to_be_written(method: str, given: str) -> None:
    sentence = f"Old.{method} is called with classes, too: write def {method}(self, {given}, y="
    with pytest.raises(TypeError, match=re.escape(sentence)):
        type("Old", (Grey,), {method: lambda self, a: a})


def test_a_loss_that_expects_latents_beside_the_logits_is_told_how_to_be_written() -> None:
    def call(self: Any, logits: Tensor, labels: Tensor, away: Any = None) -> Any:
        return away

    with pytest.raises(TypeError, match=r"Old is public, but has no penalty: .*\(self, offset\)"):
        type("Old", (IdentityLoss,), {"public": True, "__call__": call})


# Images of a class --------------------------------------------------------------------------


def test_many_images_are_generated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counting(Grey):
        def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
            sizes.append(len(z))
            return super().generate(z, y)

    goal = Goal([torch.arange(4)], 3, [generator()], TASK.shape)
    z = torch.rand(3, 4, 2, generator=generator("z"))
    whole = goal.images(Counting(), z)
    monkeypatch.setattr("mibench.attacks.goal.ROOM", 5 * whole[0, 0].numel())
    assert torch.equal(goal.images(Counting(), z), whole)
    assert sizes == [12, 5, 5, 2]


def test_attacks_draw_images_of_the_class_they_want_and_judge_them_as_such() -> None:
    blocks, prior = [torch.arange(2), torch.arange(2, 4)], Grey(pooled=True)
    goal = Goal(blocks, 3, [generator(0), generator(1)], TASK.shape)
    made = GMI(steps=1).invert(Watched(compute_target(), Work()), prior, goal, Work())
    assert made.images.shape[:2] == (3, 4)
    assert len(prior.asked) >= 3  # in the loop, of images and of realism, and at the end
    assert all(y is not None for y in prior.asked)
    rows = goal.rows(3)
    x = torch.zeros(12, *TASK.shape)
    assert torch.equal(goal.realism(prior, x, rows), torch.arange(4.0).repeat(3))
    assert [len(y) for y in prior.asked[-6:]] == [2] * 6
    levels = goal.images(prior, torch.zeros(3, 4, 2))[:, :, 0, 0, 0]
    torch.testing.assert_close(levels, torch.arange(4).div(10).expand(3, 4))


def compute_target() -> Any:
    with seeded("test"):
        return MLP().build(TASK.shape, 4).eval().requires_grad_(requires_grad=False)


class Told(Query):
    """Says that image i is of class i % 4, the surer the larger i."""

    def __init__(self) -> None:
        self.num_classes = 4

    def soft_answers(self, public: ImageSet) -> Tensor:
        n = len(public)
        sure = torch.linspace(0.5, 0.9, n)[:, None]
        own = torch.nn.functional.one_hot(torch.arange(n) % 4, 4)
        return torch.where(own.bool(), sure, (1 - sure) / 3)


SMALL = PseudoLabelGAN(**{**PseudoLabelGAN.small, "per_class": 5, "batch_size": 8})


def test_the_images_that_the_target_is_surest_of_stand_for_a_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = TASK.load(Path()).public.take(torch.arange(50))
    handed: list[ImageSet] = []
    monkeypatch.setattr(WGANGP, "train", lambda _, prior, chosen, *rest: handed.append(chosen))
    with seeded("prior"):
        prior = SMALL.build(TASK.shape, 4)
    SMALL.train(prior, public, Told(), generator("p"), Work())
    (chosen,) = handed
    assert len(chosen) == 20
    surest = [range(n, 29, -4) for n in (48, 49, 46, 47)]  # five of each class
    for label, positions in enumerate(surest):
        mine = chosen.pixels[chosen.labels == label].unique(dim=0)  # type: ignore[no-untyped-call]
        want = public.pixels[torch.tensor(positions)].unique(dim=0)  # type: ignore[no-untyped-call]
        assert torch.equal(mine, want)
    assert chosen.labels.bincount().tolist() == [5] * 4


def test_a_class_conditional_gan_learns_what_a_class_looks_like() -> None:
    """Two public patterns are the classes; images of a class come out nearest to its own."""
    public = Blobs(num_classes=2).load(Path()).public
    patterns = torch.stack([public.images[public.labels == c].mean(0) for c in (2, 3)])

    class Knowing(Told):
        def soft_answers(self, public: ImageSet) -> Tensor:
            return torch.nn.functional.one_hot(public.labels - 2, 2).float()

    target = Knowing()
    target.num_classes = 2
    spec = PseudoLabelGAN(
        z_dim=4, generator_width=8, discriminator_width=8, epochs=30, batch_size=32, lr=5e-3,
        betas=(0.0, 0.9), critic_steps=2, penalty=1.0, per_class=40,
    )  # fmt: skip
    with seeded("prior"):
        prior = spec.build(TASK.shape, 2)
    spec.train(prior, public, target, generator("train"), Work())
    prior.eval()
    y = torch.arange(2).repeat(25)
    with torch.no_grad():
        x = prior.generate(prior.sample(50, generator("z")), y)
        gaps = (x[:, None] - patterns).square().sum((2, 3, 4))
        real = prior.realism(patterns, torch.arange(2))
        wrong = prior.realism(patterns, torch.arange(2).roll(1))
    assert (gaps.argmin(1) == y).float().mean() > 0.9
    assert real.mean() > wrong.mean()


def test_a_class_conditional_prior_needs_a_class() -> None:
    with seeded("prior"):
        prior = SMALL.build(TASK.shape, 4)
    x = torch.zeros(2, *TASK.shape)
    for call in (prior.generate, prior.realism):
        with pytest.raises(ValueError, match=r"of a class: call prior.generate\(z, y\)"):
            call(torch.zeros(2, prior.z_dim) if call == prior.generate else x)


def test_pixels_are_their_own_latents() -> None:
    prior = Pixels().build(TASK.shape, 4)
    z = prior.sample(3, generator("z")).requires_grad_()
    assert 0 <= z.min() <= z.max() < 1
    x = prior.generate(z)
    assert torch.equal(x.flatten(1), z)
    (gradient,) = torch.autograd.grad(x.sum(), z)
    assert gradient.min() == 1
    assert prior.generate(z * 9 - 4).min() == 0


# Public images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curious(Plain):
    name: ClassVar[str] = "curious"
    public: ClassVar[bool] = True
    goals: ClassVar[list[Goal]] = []

    def invert(self, target: Any, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        self.goals.append(goal)
        return super().invert(target, prior, goal, work)


class Incurious(Curious):
    public = False


@pytest.mark.parametrize("kind", [Curious, Incurious])
def test_an_attack_gets_public_images_if_it_says_so(kind: Any) -> None:
    prior = PriorStage(IMAGES, None, Asking(), 0)
    compute(InversionStage(TARGET, prior, kind(Asking()), 4, 2, 2, 0, 0))
    Asking.handed.clear()
    public = Curious.goals.pop().public
    assert (public is not None) == kind.public
    if public is not None:
        assert torch.equal(public.pixels, TASK.load(Path()).public.pixels)


def test_what_asks_nothing_is_given_no_answer() -> None:
    class Sly(Plain):
        access = "none"

        def invert(self, target: Any, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
            target(torch.zeros(1, *TASK.shape))
            raise NotImplementedError

    stage = InversionStage(
        TARGET, PriorStage(IMAGES, None, Asking(), 0), Sly(Asking()), 4, 2, 2, 0, 0
    )
    with pytest.raises(ValueError, match="1 more answers, but 0 remain"):
        compute(stage)
    Asking.handed.clear()
    assert InversionGAN.access == "white"
    replace(CELL, attack=PriorSamples(InversionGAN())).check()
