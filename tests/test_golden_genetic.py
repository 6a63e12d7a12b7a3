"""MIRROR's genetic search agrees with the numbers of its authors' released code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.attacks import Goal, MirrorBlackBox
from mibench.attacks.access import Query
from mibench.attacks.genetic import ordered, parents
from mibench.attacks.mirror import Box
from mibench.attacks.priors.styled import Begun, StyledPrior
from mibench.seeding import generator
from mibench.store import Work
from mibench.types import Images
from tests.golden import read
from tests.toys import Toy, wave

GOLDEN = read("attacks/mirror-genetic")
TOLD = GOLDEN["outputs"]
RAW = 0.2 + 1.4 * wave((200, 12), 0.77, 0.2) + 0.6 * wave((200, 12), 2.541, 0.5)
POOL = F.leaky_relu(RAW, 0.2)


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any) -> Any:
    return pytest.approx(want, rel=1e-9, abs=1e-11)


class Held(Toy):
    """Sees styles, which stand as pixels in [0, 1]."""

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return super().latents(20 * x - 10)


class Itself(StyledPrior):
    """Images are styles."""

    z_dim = w_dim = 12
    num_ws = blocks = 1

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return POOL[:n]

    def styles(self, z: Tensor, psi: float = 1.0, cutoff: int = 0) -> Tensor:
        return z[:, None]

    def synthesise(self, ws: Tensor, *, clamp: bool = True, begun: Begun | None = None) -> Images:
        return (ws[:, 0].view(-1, 1, 1, 12) + 10) / 20

    def until(self, ws: Tensor, blocks: int, begun: Begun | None = None) -> Begun:
        raise NotImplementedError


class Told(Goal):
    """Draws are those of the golden numbers, but for the parents'."""

    def uniform(self, copies: int, *shape: int) -> Tensor:
        if len(shape) == 1:
            return torch.zeros(copies, 1, *shape)
        i = vars(self).setdefault("calls", 0)
        vars(self)["calls"] = i + 1
        draws = 0.5 + 0.5 * wave(shape, 0.9 + 0.13 * i, 0.2 * i)
        return draws.view(copies, 1, *shape)


def test_generations_are_the_released_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    populations: list[tuple[Tensor, Tensor]] = []

    attack = MirrorBlackBox(pool=200, psi=1.0, population=6, steps=3, crossover="released")
    goal = Told([torch.tensor([2])], 1, [generator()], (1, 1, 12))
    target = Query(Held(GOLDEN["inputs"]["target_tensors"]), "scores", Work())
    w, chances, _ = attack.chosen(target, Itself(), goal)
    assert w[0].tolist() == [near(POOL[i].tolist()) for i in TOLD["start_indices"]]
    assert chances.log()[0].tolist() == near(TOLD["start_fitness"])
    work = Work()

    def noting(w: Tensor, chances: Tensor) -> tuple[Tensor, Tensor]:
        populations.append((w, chances))
        return ordered(w, chances)

    monkeypatch.setattr("mibench.attacks.genetic.ordered", noting)
    monkeypatch.setattr(
        "mibench.attacks.genetic.parents",
        lambda c, u: torch.tensor([[(3 * i + len(populations) - 1) % 6 for i in range(10)]]),
    )
    target = Query(Held(GOLDEN["inputs"]["target_tensors"]), "scores", work)
    made = attack.invert(target, Itself(), goal, work)
    for (before, fitness), (after, new), told in zip(
        populations, populations[1:], TOLD["generations"], strict=False
    ):
        first = ordered(before, fitness)
        assert first[1][0, 0].log().item() == near(told["elite_fitness"])
        assert first[0][0, 0].tolist() == near(told["elite"])
        weights = first[1][0] / first[1].sum()
        assert weights.tolist() == near(told["parent_weights"])
        assert after[0].tolist() == [near(row) for row in told["population_after"]]
        assert new[0].log().tolist() == near(told["fitness_after"])
    assert len(populations) == 4
    last = TOLD["generations"][2]
    best = last["population_after"][last["fitness_after"].index(max(last["fitness_after"]))]
    assert made.latents[0, 0].tolist() == near(best)
    assert work.queries == 200 + 3 * 5


@pytest.mark.parametrize("crossover", ["probability", "released"])
def test_the_better_parent_gives_more_genes_unless_as_released(crossover: Any) -> None:
    w = torch.stack([torch.ones(1000), torch.zeros(1000)])[None]
    attack = MirrorBlackBox(population=2, crossover=crossover, mutation=0.0)
    u = [torch.rand(1, 1, 1000, generator=generator(i)) for i in range(2)] + [torch.rand(
        1, 1, 1000, generator=generator(2))]  # fmt: skip
    chances = torch.tensor([[0.8, 0.2]])
    box = Box(torch.full((1, 1000), -9.0), torch.full((1, 1000), 9.0))
    child = attack.children(w, chances, torch.tensor([[0, 1]]), u, box, torch.ones(1, 1000))
    share = child.mean().item()
    assert share == pytest.approx(0.8 if crossover == "probability" else 0.122, abs=0.03)


def test_parents_are_drawn_in_proportion_to_their_probability() -> None:
    chances = torch.tensor([[0.6, 0.3, 0.1]])
    drawn = parents(chances, torch.rand(1, 20_000, generator=generator()))
    shares = torch.bincount(drawn[0], minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_parents_are_drawn_by_chance_where_no_probability_is_above_0() -> None:
    chances = torch.tensor([[0.0] * 5, [0, 0, 0.3, 0, 0]])
    places = parents(chances, torch.rand(2, 20_000, generator=generator()))
    assert torch.bincount(places[0]).div(20_000).tolist() == pytest.approx([0.2] * 5, abs=0.02)
    assert set(places[1].tolist()) == {2}  # a probability of 0 beside others stays one


def test_a_population_ends_when_the_target_is_sure_of_its_best() -> None:
    goal = Goal([torch.tensor([2])], 1, [generator()], (1, 1, 12))
    work = Work()
    target = Query(Held(GOLDEN["inputs"]["target_tensors"]), "scores", work)
    MirrorBlackBox(pool=200, population=6, enough=0.25).invert(target, Itself(), goal, work)
    assert work.queries == 200
