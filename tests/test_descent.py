"""The loops of attacks resume to the same bits, however many there are."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from mibench import Attack
from mibench.attacks import Goal, rounds
from mibench.attacks.descent import descend
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.seeding import generator, seeded
from mibench.spec import check_role
from mibench.store import Payload, Work

SHAPE = (1, 2, 2)


def goal() -> Goal:
    return Goal([torch.arange(3), torch.arange(3, 5)], 2, [generator(0), generator(1)], SHAPE)


def three_loops(work: Work) -> tuple[Tensor, list[float]]:
    """Returns what three loops with draws and answers between them come to."""
    wanted = goal()
    told = []
    x = wanted.noise(1, 4)
    work.queries += 7  # candidates are asked about before the first loop
    for length in (3, 4, 5):
        told.append(torch.rand(()).item())  # as a layer that draws on its own would
        net = nn.Linear(4, 4)
        with torch.no_grad():
            net.weight.copy_(x[0, :4])
        optimizer = torch.optim.Adam(net.parameters(), 0.1)
        state: dict[str, Any] = {"x": x, "net": net, "optimizer": optimizer, "total": 0.0}

        def advance(
            _: int, net: nn.Linear = net, optimizer: Any = optimizer, state: Any = state
        ) -> Tensor:
            noise = wanted.noise(1, 4) + torch.rand(())
            loss = (net(state["x"] + noise) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["x"].add_(noise, alpha=0.1)
            state["total"] += loss.item()
            work.queries += 5
            work.gradients += 5
            value: Tensor = loss.detach()
            return value

        def result(net: nn.Linear = net, state: Any = state) -> Payload:
            return {"x": state["x"].clone(), "w": net.weight.detach().clone(), "t": state["total"]}

        left = rounds(state, advance, length, wanted, work, result=result)
        x = left["x"] + left["w"].mean()
        told += [left["t"], float(work.queries)]
        work.queries += 11  # a selection between two loops asks, too
    return x + wanted.noise(1, 4), [*told, work.steps, work.queries, work.gradients]


@pytest.mark.parametrize("saves", range(1, 13))
def test_loops_resume_to_the_same_bits_and_counts_wherever_they_die(
    saves: int, tmp_path: Path
) -> None:
    with seeded("noise"):
        x, told = three_loops(Work())
    with seeded("noise"), pytest.raises(StoppedError):
        three_loops(CheckedWork(tmp_path, saves))
    with seeded("noise"):  # a stage that starts again begins as it did
        y, again = three_loops(Work(tmp_path))
    assert torch.equal(x, y)
    assert told == again


def test_a_loop_stops_when_asked_and_counts_its_rounds() -> None:
    state = {"n": 0}

    def advance(i: int) -> None:
        state["n"] = i + 1

    work = Work()
    rounds(state, advance, 10, goal(), work, until=lambda: state["n"] == 4)
    assert state["n"] == work.steps == 4


def test_a_value_that_is_not_finite_stops_the_loop_and_is_named() -> None:
    with pytest.raises(FloatingPointError, match="a critic after step 3 is not finite"):
        rounds({}, lambda _: torch.tensor(math.nan), 3, goal(), Work(), what="a critic")


def test_loops_in_another_order_are_refused_when_they_resume(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        rounds({"x": torch.zeros(1)}, lambda _: None, 3, goal(), CheckedWork(tmp_path, 1))
    with pytest.raises(ValueError, match="the saved state holds x, this loop has y"):
        rounds({"y": torch.zeros(1)}, lambda _: None, 3, goal(), Work(tmp_path))


def test_progress_goes_on_over_loops_and_knows_the_end() -> None:
    told: list[tuple[int, int]] = []
    work = Work(report=lambda done, total, _: told.append((done, total)))
    wanted = Goal([torch.arange(2)], 1, [generator(0)], SHAPE, planned=5)
    for count in (2, 3):
        rounds({}, lambda _: None, count, wanted, work)
    assert told == [(2, 5), (5, 5)]


def test_a_descent_averages_over_a_block_and_sums_over_blocks_and_copies() -> None:
    z = torch.zeros(2, 5, 3, requires_grad=True)
    sgd = torch.optim.SGD([z], 1.0)
    seen: list[Tensor] = []

    def loss(z: Tensor, rows: Any) -> Tensor:
        seen.append(rows.labels)
        return z.sum(1)

    after: list[bool] = []
    descend(z, sgd, loss, 1, goal(), Work(), after=lambda: after.append(torch.is_grad_enabled()))
    want = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    torch.testing.assert_close(z.detach(), -want[None, :, None].expand(2, 5, 3))
    assert torch.equal(torch.cat(seen), torch.arange(5).repeat(2))
    assert after == [False]


def test_draws_of_a_block_do_not_depend_on_the_other_blocks() -> None:
    both = goal()
    alone = Goal([torch.arange(3, 5)], 2, [generator(1)], SHAPE)
    assert torch.equal(both.noise(2, 3)[:, 3:], alone.noise(2, 3))
    assert torch.equal(both.uniform(2, 3)[:, 3:], alone.uniform(2, 3))


@dataclass(frozen=True)
class Old(Attack):
    name: ClassVar[str] = "old"

    def invert(  # type: ignore[override]
        self, target: Any, prior: Any, blocks: Any, samples: Any, rngs: Any, work: Any
    ) -> Any:
        raise NotImplementedError


def test_an_attack_with_other_parameters_is_told_what_it_is_called_with() -> None:
    with pytest.raises(TypeError, match=r"write def invert\(self, target, prior, goal, work\)"):
        check_role(Old(), Attack, "a cell's attack")
