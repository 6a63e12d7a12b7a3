"""PPA, and TAA on it and on GMI, agree with the numbers of their authors' released code."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mibench.attacks import GMI, PPA, Augmented, Goal, Student, ppa
from mibench.attacks.access import Watched
from mibench.attacks.losses import LogitMatching, Poincare
from mibench.attacks.selection import scores, starts, surest
from mibench.attacks.views import Flip, Plain
from mibench.networks import MLP
from mibench.roles import View
from mibench.seeding import generator
from mibench.store import Work
from mibench.types import Images, Labels, Prior
from tests.golden import read
from tests.toys import InTurn, Styled, Toy, tensor, wave

SELECTION = read("attacks/ppa-selection")
INPUTS = SELECTION["inputs"]
TOY = INPUTS["toy_generator"]
TAA = read("attacks/alignmi-ppa-average")
TIGHT = 1e-9


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    InTurn.calls[0] = 0
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any) -> Any:
    return pytest.approx(want, rel=TIGHT, abs=1e-11)


def goal(labels: list[int], samples: int = 1) -> Goal:
    return Goal([torch.tensor(labels)], samples, [generator()], (3, 8, 8))


def target(rows: Any = INPUTS["target_tensors"]) -> Toy:
    return Toy(rows, signed=True)


def prior() -> Styled:
    L, S, M, w_avg = (TOY[name] for name in ("L", "S", "M", "w_avg"))
    return Styled(L, S, M, w_avg, crop=10, z=INPUTS["pool_z"])


@pytest.mark.parametrize("row", read("attacks/ppa-poincare")["outputs"]["rows"])
def test_the_distance_and_its_gradient_are_the_released_ones(row: dict[str, Any]) -> None:
    logits = torch.tensor([row["logits"]]).requires_grad_()
    distance = Poincare()(logits, torch.tensor([row["label"]]))
    (gradient,) = torch.autograd.grad(distance.sum(), logits)
    assert distance.item() == near(row["distance"])
    assert gradient[0].tolist() == near(row["gradient"])
    narrow = Poincare()(logits.float(), torch.tensor([row["label"]]))
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(row["distance"], rel=1e-6)


def test_the_distance_stays_finite_where_the_released_one_does_not() -> None:
    logits = torch.tensor([[10.0, 0, 0], [0, 0, 0]]).requires_grad_()
    distance = Poincare()(logits, torch.tensor([0, 1]))
    (gradient,) = torch.autograd.grad(distance.sum(), logits)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()


def test_the_first_choice_is_the_released_one() -> None:
    styled, want = prior(), SELECTION["outputs"]

    def draw(n: int, rng: torch.Generator) -> Tensor:
        return styled.styles(styled.sample(n, rng), 0.5, 2)

    chosen = []
    pool = draw(30, generator())
    for labels, count in (([0, 1, 3], 3), ([4], 1)):
        got, drawn = starts(
            target(), goal(labels), draw, styled.synthesise, 30, count, (Plain(), Flip())
        )
        assert torch.equal(drawn, pool[:, 0])
        same = (got[:, :, None] == pool[:, 0]).all(3)
        chosen += same.long().argmax(2).T.flatten().tolist()
    assert chosen == want["initial_pool_indices"]
    said = scores(target(), pool, styled.synthesise, (Plain(), Flip()), generator())
    sure = said[torch.tensor(chosen), torch.tensor(INPUTS["targets"])]
    assert sure.tolist() == near(want["initial_scores"])


def test_the_last_choice_is_the_released_one() -> None:
    styled, want = prior(), SELECTION["outputs"]
    w = tensor(INPUTS["final_candidates_w"])[:, 0]
    kept: list[int] = []
    for label, place in ((1, slice(0, 6)), (3, slice(6, 10))):
        got = surest(
            target(), goal([label]), w[place, None],
            lambda w: ppa.drawn(styled, w, clamp=False), 3, (InTurn(looks=6),),
        )  # fmt: skip
        kept += (got == w).all(2).long().argmax(1).tolist()
    assert kept == want["final_candidate_indices"]


def follow(attack: PPA, styled: Styled, w0: Tensor, network: Toy) -> Tensor:
    """Returns the styles after the steps from w0; those of each step are in ``styled.given``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppa, "chosen_styles", lambda *_: (w0.clone(), w0))
        made = attack.invert(network, styled, goal([0, 1, 3, 4]), Work())
    return made.latents


def test_steps_are_the_released_ones() -> None:
    golden = read("attacks/ppa-optimisation")
    told, w0 = golden["outputs"], tensor(golden["inputs"]["w0"])[:, 0]
    styled = prior()
    after = follow(PPA(candidates=1, steps=5, augment=()), styled, w0[None], target())
    for w, want in zip(styled.given, told["w_before_each_step"], strict=False):
        assert w.flatten().tolist() == near(want)
    assert after.flatten().tolist() == near(told["w_after"])
    first = PPA(augment=()).wrong(
        target(), ppa.drawn(styled, w0, clamp=False), goal([0, 1, 3, 4]).rows(1)
    )
    assert first.mean().item() == near(told["loss_per_step"][0])


# Averages over looks ------------------------------------------------------------------------


@dataclass(frozen=True)
class Noisy(View):
    """Noise by formula, in proportion to the range of all images."""

    name: ClassVar[str] = "noisy"
    calls: ClassVar[list[int]] = [0]

    looks: int = 50
    draws: int = 1

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        i = self.calls[0]
        self.calls[0] += 1
        return x + 0.06 * (x.max() - x.min()).detach() * wave(x.shape, 0.61 + 0.017 * i, 0.03 * i)


def toy() -> Styled:
    return Styled(TAA["inputs"]["L"], TAA["inputs"]["S"])


@pytest.mark.parametrize(("name", "view"), [("TAA", InTurn(looks=50)), ("PAA", Noisy())])
def test_the_mean_over_fifty_looks_moves_as_the_released_mean_of_gradients(
    name: str, view: View
) -> None:
    told, w0 = TAA["outputs"][name], tensor(TAA["inputs"]["w0"])[:, 0]
    network = target(TAA["inputs"]["target_tensors"])
    Noisy.calls[0] = 0
    attack = PPA(candidates=1, steps=2, views=(view,))
    after = follow(attack, toy(), w0[None], network)
    assert after.flatten().tolist() == near(told["w_after_2_steps"])
    InTurn.calls[0] = Noisy.calls[0] = 0
    w = w0.clone().requires_grad_()
    loss = attack.wrong(network, ppa.drawn(toy(), w, clamp=False), goal([0, 1, 3, 4]).rows(1))
    (gradient,) = torch.autograd.grad(loss.mean(), w)
    assert gradient.norm().item() == near(told["gradient_w_step_1"]["norm"])
    entries = told["gradient_w_step_1"]["entries"]
    assert gradient.flatten()[: len(entries)].tolist() == near(entries)


def test_three_looks_are_the_mean_of_three_gradients() -> None:
    golden = read("attacks/alignmi-three-looks")["outputs"]
    w0 = tensor(TAA["inputs"]["w0"])[:, 0]
    network = target(TAA["inputs"]["target_tensors"])
    attack = PPA(candidates=1, steps=1, views=(InTurn(looks=3),))
    assert follow(attack, toy(), w0[None], network).flatten().tolist() == near(golden["w_after"])
    work = Work()
    watched = Watched(network, work)
    follow(attack, toy(), w0[None], watched)  # type: ignore[arg-type]
    assert (work.queries, work.gradients) == (12, 12)


@dataclass(frozen=True)
class Stretched(InTurn):
    """The next of those views, stretched to [0, 1] over all images."""

    looks: int = 30

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        x = super().__call__(x, rng)
        low, high = x.detach().min(), x.detach().max()
        return (x - low) / (high - low)


class Linear(Prior):
    """image = tanh(M z); every image is as real as any."""

    z_dim = 20
    M = 0.3 * wave((192, 20), 0.4, 0.2)

    def __init__(self, row: Any) -> None:
        super().__init__()
        self.row, self.given = row, []  # type: ignore[var-annotated]

    def __deepcopy__(self, memo: dict[int, object]) -> "Linear":
        return self

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return tensor(self.row)

    def generate(self, z: Tensor, y: Labels | None = None) -> Images:
        self.given.append(z.detach().clone())
        return (z @ self.M.T).tanh().view(-1, 3, 8, 8)

    def realism(self, x: Images, y: Labels | None = None) -> Tensor:
        return 0 * x.sum((1, 2, 3))


def test_gmi_over_thirty_looks_follows_the_released_loop() -> None:
    golden = read("attacks/alignmi-gmi-average")
    first, *others = [Toy(rows) for rows in golden["inputs"]["nets"]]
    seen = Watched(first, Work())
    seen.students.extend(others)
    seen.public_mean = tensor(golden["inputs"]["penalty_mean"])
    identity = Augmented(LogitMatching(), (Student(), Student(MLP())))
    linear = Linear(golden["inputs"]["z0"])
    attack = GMI(steps=3, identity=identity, views=(Stretched(),))
    made = attack.invert(seen, linear, goal([0, 1, 3, 4]), Work())
    told = golden["outputs"]
    for z, want in zip(linear.given, [*told["z_before_each_step"], told["z_after"]], strict=True):
        assert z.sum().item() == near(want["sum"])
        assert z.square().sum().item() == near(want["sum_of_squares"])
        assert z.flatten()[: len(want["first"])].tolist() == near(want["first"])
    assert torch.equal(made.latents.flatten(0, 1), linear.given[-1])
