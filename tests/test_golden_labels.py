"""BREP-MI agrees with the numbers of its authors' released code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import BREPMI, Goal
from mibench.attacks.access import NO_LIMIT, Query
from mibench.attacks.brepmi import NOT_ENTERED
from mibench.seeding import generator
from mibench.store import Work
from mibench.types import Classifier, Images, Labels, Prior
from tests.golden import read
from tests.toys import tensor, wave

TIGHT = 1e-9


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any) -> Any:
    return pytest.approx(want, rel=TIGHT, abs=1e-11)


class Itself(Prior):
    """Images are latents."""

    def __init__(self, draws: Tensor | None = None) -> None:
        super().__init__()
        self.z_dim, self.draws = 10, draws

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        assert self.draws is not None
        return self.draws[:n]

    def generate(self, z: Tensor, y: Labels | None = None) -> Images:
        return Latents(z.view(-1, 1, 1, 10))


class Latents(Tensor):
    """Pixels that are not held within [0, 1]."""

    def clamp(self, *limits: Any) -> Tensor:
        return self.as_subclass(Tensor)


class Linear(Classifier):
    """logits = W x + b."""

    def __init__(self, W: Tensor, b: Tensor) -> None:
        super().__init__()
        self.num_classes, self.neck = len(W), torch.nn.Identity()
        self.W, self.b = W, b

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (x.flatten(1),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return z @ self.W.T + self.b


class Slab(Linear):
    """Class 0 within h of where v·x is t."""

    def __init__(self, v: Tensor, h: float, t: float) -> None:
        super().__init__(torch.zeros(2, 10), torch.zeros(2))
        self.v, self.h, self.t = v, h, t

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        first = self.h**2 - (z @ self.v - self.t) ** 2
        return torch.stack([first, 0 * first], 1)


class Told(Goal):
    """Directions are those of the golden numbers, round after round."""

    def noise(self, copies: int, *shape: int) -> Tensor:
        draws: list[Tensor] = vars(self).setdefault("draws_left", [])
        return draws.pop(0).view(copies, 1, *shape)


class Noting(Query):
    """Keeps what it was asked and what it said."""

    def __init__(self, target: Classifier, limit: int = NO_LIMIT) -> None:
        self.pairs: list[tuple[Tensor, Tensor]] = []
        super().__init__(target, "labels", Work(), limit)

    def __call__(self, x: Images) -> Tensor:
        said = super().__call__(x)
        self.pairs.append((x.flatten(1), said))
        return said


def directions(golden: Any) -> list[Tensor]:
    name, H = golden["golden"], golden["hyperparameters"]
    shape = (H["points"], 10)
    base = 2.3 if name == "brepmi-rounds" else 1.7
    rows = [wave(shape, base + 0.37 * i, 0.11 * i) for i in range(40)]
    if name == "brepmi-refused-growth":
        return [row + 1.2 * tensor(golden["inputs"]["v"]) for row in rows]
    return [row + 0.3 * wave(shape, 0.71 + 0.05 * i, 0.4) for i, row in enumerate(rows)]


def target_of(golden: Any) -> Classifier:
    inputs = golden["inputs"]
    if "W" in inputs:
        W = tensor(inputs["W"])
        b = torch.zeros(len(W))
        b[golden["hyperparameters"]["attacked_class"]] = 0.8
        return Linear(W, b)
    return Slab(tensor(inputs["v"]), inputs["h"], inputs["t"])


@pytest.mark.parametrize("name", ["rounds", "refusals", "refused-growth"])
def test_rounds_are_the_released_ones(name: str) -> None:
    golden = read(f"attacks/brepmi-{name}")
    H, told = golden["hyperparameters"], golden["outputs"]["rounds"]
    attack = BREPMI(
        points=H["points"], radius=H["start_radius"], patience=H["patience"],
        growth=H["growth"], steps=len(told) + 5 * (golden["outputs"]["run"] == "ended"),
    )  # fmt: skip
    label = torch.tensor([H["attacked_class"]])
    goal = Told([label], 1, [generator()], (1, 1, 10))
    vars(goal)["draws_left"] = directions(golden)
    target = Noting(target_of(golden))
    start = tensor(golden["inputs"]["start z0"]).clamp(-1.5, 1.5)
    left = attack.repel(
        target, Itself(), goal, Work(), start.view(1, 1, 10), torch.ones(1, 1).bool()
    )
    assert len(target.pairs) == 2 * len(told)
    verdict = None
    for i, want in enumerate(told):
        (sphere, said), (moved, after) = target.pairs[2 * i : 2 * i + 2]
        radius = (sphere - torch.tensor(want["point"])).norm(dim=1)
        assert radius.tolist() == near([want["radius"]] * H["points"])
        assert int((said == label).sum()) == want["inside"]
        assert moved[0].tolist() == near(want["candidate"])
        assert bool(after == label) == want["accepted"]
        if want["grew"] and want["accepted"]:
            verdict = want["candidate"]
    assert left["kept"][0].tolist() == near(verdict)
    assert left["radius"].item() == near(golden["outputs"]["final_radius"])


def test_starts_are_the_first_latents_of_each_class() -> None:
    golden = read("attacks/brepmi-start")["outputs"]
    W = tensor(read("attacks/brepmi-rounds")["inputs"]["W"])
    stream = 2.5 * wave((16, 10), 0.9, 0)
    for told in (golden["untargeted {label: index of the latent in the stream}"],
                 golden["targeted"]):  # fmt: skip
        labels = torch.tensor([int(label) for label in told])
        goal = Goal([labels], 1, [generator()], (1, 1, 10))
        target = Noting(Linear(W, torch.zeros(4)))
        begun = BREPMI(batch=16).starts(target, Itself(stream), goal, Work())
        assert begun["z"][0].tolist() == stream[list(told.values())].clamp(-1.5, 1.5).tolist()
        assert len(target.pairs) == golden["untargeted_batches_drawn"]


def attacked(W: Tensor, **fields: Any) -> tuple[Any, Noting]:
    goal = Goal([torch.tensor([1]), torch.tensor([0, 2])], 2,
                [generator(0), generator(1)], (1, 1, 10))  # fmt: skip

    class Drawn(Itself):
        def sample(self, n: int, rng: torch.Generator) -> Tensor:
            return torch.randn(n, 10, generator=rng)

    attack = BREPMI(**{"points": 6, "pool": 64, "batch": 16, "patience": 3, **fields})
    target = Noting(Linear(W, torch.zeros(len(W))))

    class Flat(Drawn):
        def generate(self, z: Tensor, y: Labels | None = None) -> Images:
            return z.view(-1, 1, 1, 10).sigmoid()

    return attack.invert(target, Flat(), goal, Work()), target


def test_a_class_that_is_never_answered_is_counted_and_not_moved() -> None:
    W = torch.zeros(3, 10)
    W[0] += 1  # pixels are positive, so the answer is 0
    made, target = attacked(W)
    assert made.counts == {NOT_ENTERED: 4}
    assert sum(len(x) for x, _ in target.pairs[:8]) == 2 * 64
    moved = [len(x) for x, _ in target.pairs[8:]]
    assert moved
    assert set(moved) == {2 * 6, 2}


def test_a_radius_that_could_never_grow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BREPMI\.inside must be below 1"):
        BREPMI(inside=1.0)


def never(limit: int) -> tuple[Noting, Goal]:
    """Returns a target that says neither of two classes, of two samples each."""
    goal = Goal([torch.tensor([1]), torch.tensor([2])], 2,
                [generator(0), generator(1)], (1, 1, 10))  # fmt: skip
    return Noting(Linear(torch.zeros(3, 10), torch.tensor([1.0, 0, 0])), limit), goal


@pytest.mark.parametrize(
    ("limit", "drawn"), [(60, 2 * [16]), (91, 2 * [16]), (92, 4 * [16]), (108, 4 * [16] + 2 * [8])]
)
def test_a_limit_pays_for_all_of_the_pool_beside_a_round(limit: int, drawn: list[int]) -> None:
    target, goal = never(limit)
    BREPMI(points=6, batch=16, pool=40).starts(target, Itself(torch.zeros(16, 10)), goal, Work())
    assert [len(x) for x, _ in target.pairs] == drawn


def test_a_limit_that_pays_for_no_search_is_refused() -> None:
    target, goal = never(59)
    with pytest.raises(ValueError, match="a round, which asks 28, beside 32 to search for starts"):
        BREPMI(points=6, batch=16, pool=40).invert(
            target, Itself(torch.zeros(16, 10)), goal, Work()
        )
    assert not target.pairs
    target, goal = never(28 + 2 * 5)
    made = BREPMI(points=6, batch=16, pool=5).invert(
        target, Itself(torch.zeros(16, 10)), goal, Work()
    )
    assert made.counts == {NOT_ENTERED: 4}
    assert [len(x) for x, _ in target.pairs] == [5, 5]


def test_a_target_that_always_answers_the_class_ends_at_the_largest_radius() -> None:
    W = torch.zeros(3, 10)
    W[1] += 1
    goal = Goal([torch.tensor([1])], 1, [generator()], (1, 1, 10))
    target = Noting(Linear(W, torch.tensor([0.0, 100, 0])))
    attack = BREPMI(points=6, patience=3, largest=4.5)
    z = torch.zeros(1, 1, 10)
    left = attack.repel(target, Itself(), goal, Work(), z, torch.ones(1, 1).bool())
    assert left["radius"].item() == near(2 * 1.3**3)
    assert len(target.pairs) == 2 * (3 + 3)


def test_one_that_refuses_every_step_ends_after_the_greatest_number_of_rounds() -> None:
    class Fickle(Noting):
        def __call__(self, x: Images) -> Tensor:
            super().__call__(x)
            return torch.full((len(x),), int(len(x) > 1))  # points are inside, steps are not

    goal = Goal([torch.tensor([1])], 1, [generator()], (1, 1, 10))
    target = Fickle(Linear(torch.zeros(2, 10), torch.tensor([0.0, 1])))
    attack = BREPMI(points=6, patience=3, steps=12)
    z = torch.zeros(1, 1, 10)
    left = attack.repel(target, Itself(), goal, Work(), z, torch.ones(1, 1).bool())
    assert len(target.pairs) == 2 * 12
    assert torch.equal(left["z"], z[0])
