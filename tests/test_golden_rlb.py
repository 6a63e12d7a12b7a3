"""RLB-MI's reward and agent agree with the numbers of its authors' released code."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import RLBMI, Goal
from mibench.attacks.rlbmi import Agent, rewards
from mibench.seeding import generator
from tests.golden import read
from tests.toys import tensor

SAC = read("attacks/rlbmi-sac-update")


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any, tolerance: float = 1e-9) -> Any:
    return pytest.approx(want, rel=tolerance, abs=1e-11)


def test_rewards_and_moves_are_the_released_ones() -> None:
    told = read("attacks/rlbmi-reward")["outputs"]["rows"]
    after = torch.tensor([row["scores_of_next_state_image"] for row in told])
    acted = torch.tensor([row["scores_of_action_image"] for row in told])
    ours = rewards(after, acted, torch.ones(len(told), dtype=torch.long))
    assert ours.tolist() == near([row["reward"] for row in told])
    z, action = (torch.tensor([row[k] for row in told]) for k in ("state", "action"))
    moved = RLBMI().moved(z, action)
    assert moved.tolist() == [near(row["next_state"]) for row in told]
    assert RLBMI(alpha=0.3).moved(z, action)[0, 0].item() == near(
        0.3 * z[0, 0].item() + 0.7 * action[0, 0].item()
    )


def weights(name: str) -> list[Tensor]:
    return [tensor(row)[None] for row in SAC["inputs"]["tensors"][name]]


def test_updates_of_the_agent_are_the_released_ones() -> None:
    inputs, told = SAC["inputs"], SAC["outputs"]["all_done"]
    agent = Agent(weights("actor"), weights("critic 1"), SAC["hyperparameters"]["lr"])
    z, action, reward = (tensor(inputs[k])[None] for k in ("states", "actions", "rewards"))
    for noise, want in zip((-0.4, 1.1), told["updates"], strict=True):
        losses = agent.learn(z, action, reward[..., 0], torch.full_like(z, noise))
        assert losses.item() == near(want["critic_losses"][0])
        for name, ours in (("actor", agent.actor), ("critic_1", agent.critic)):
            flat = torch.cat([w.detach().flatten() for w in ours])
            assert flat.sum().item() == near(want[name]["sum"])
            assert flat.square().sum().item() == near(want[name]["sum_of_squares"])
        assert agent.actor[0].flatten()[:6].tolist() == near(want["actor_first_entries"])
    assert agent.log_temperature.item() == near(want["log_alpha_after"][0])
    act, _ = agent.act(z[:, :1], torch.full((1, 1, 6), 0.25))
    told_action = next(v for k, v in told.items() if k.startswith("action_after"))
    assert act[0, 0].tolist() == near(told_action)


def test_agents_side_by_side_learn_as_each_alone() -> None:
    def pair(names: tuple[str, ...]) -> list[Tensor]:
        both = [weights("actor"), [w.flip(1) for w in weights("actor")]]
        return [torch.cat(ws) for ws in zip(*[both[int(n)] for n in names], strict=True)]

    inputs = SAC["inputs"]
    z, action, reward = (tensor(inputs[k])[None] for k in ("states", "actions", "rewards"))
    ends = []
    for names in (("0", "1"), ("0",), ("1",)):
        n = len(names)
        critic = [w.repeat(n, *(1,) * (w.ndim - 1)) for w in weights("critic 1")]
        agent = Agent(pair(names), critic, 5e-4)
        for _ in range(2):
            agent.learn(z.repeat(n, 1, 1), action.repeat(n, 1, 1), reward[..., 0].repeat(n, 1),
                        torch.full((n, 5, 6), 0.3))  # fmt: skip
        ends.append(agent.actor[0].detach())
    torch.testing.assert_close(ends[0], torch.cat(ends[1:]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_noise_is_one_number_where_it_is_shared(noise: Any) -> None:
    goal = Goal([torch.arange(2)], 3, [generator()], (1, 8, 8))
    drawn = RLBMI(noise=noise)._noise(goal, 4, 5)
    assert drawn.shape == (6, 4, 5)
    each = [len(set(row)) for row in drawn.flatten(1).tolist()]
    assert each == [1 if noise == "shared" else 20] * 6
    assert len(set(drawn[:, 0, 0].tolist())) == 6


def test_agents_that_could_never_learn_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"RLBMI\.steps is 256 and RLBMI\.batch 256: agents learn"
    ):
        RLBMI(steps=256)
