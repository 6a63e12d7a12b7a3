r"""RLB-MI, Han et al., CVPR 2023, https://arxiv.org/abs/2304.04625: reinforcement learning.

An agent for each reconstruction learns which latent to answer a drawn one with. From the state
:math:`z \sim N(0, I)` its action :math:`a \in [-1, 1]^d` leads to
:math:`z' = \alpha z + (1 - \alpha) a`, with the reward

.. math:: r = 2 \log f_y(G(z')) + 2 \log f_y(G(a))
    + 8 \log \max\big(10^{-7}, f_y(G(z')) - \max_{k \ne y} f_k(G(z'))\big)

The agent is a soft actor-critic, Haarnoja et al., https://arxiv.org/abs/1812.05905. An episode has
one step, so what the released agent has for later ones does nothing, and is left out: discount,
target networks and the second critic, which only targets read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log, pi, sqrt
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.bases import BlackBox
from mibench.attacks.descent import rounds
from mibench.attacks.goal import Goal
from mibench.attacks.priors.gan import WGANGP
from mibench.attacks.selection import answered
from mibench.attacks.views import affordable
from mibench.roles import PriorSpec
from mibench.spec import choose, require
from mibench.store import State, Work
from mibench.types import Access, Prior, Reconstructions

INF = float("inf")
LEAST = 1e-7
"""Logarithms are of values that are at least this."""
Weights = list[Tensor]
"""Of each layer's matrix (rows, out, in) and shift (rows, out), one layer after the other."""


@dataclass(frozen=True)
class RLBMI(BlackBox):
    """Trains one agent for each reconstruction; the surest image that it draws counts.

    Attributes:
        prior: Draws and generates; it never sees the target.
        steps: Episodes.
        alpha: α, how much of the drawn latent stays. With 0, as released, both images of an
            episode are one, and it is asked about once.
        hidden: Width of both hidden layers of actor and critic.
        batch: Episodes that an update learns from; there is one after each further episode, and
            none where a limit pays for no more than these.
        memory: Episodes that are kept to learn from, the last ones.
        lr: Of Adam, for actor, critic and temperature.
        noise: "independent" for each dimension and episode; or "shared", as released, where one
            number is the noise of all dimensions and of all episodes of an update.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "rlb-mi"
    small: ClassVar[Mapping[str, Any]] = {"steps": 8, "hidden": 8, "batch": 3, "memory": 5}
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=WGANGP)
    steps: int = 40_000
    alpha: float = 0.0
    hidden: int = 256
    batch: int = 256
    memory: int = 10_000
    lr: float = 5e-4
    noise: Literal["independent", "shared"] = "independent"
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, steps=(1, INF), alpha=(0, 1), hidden=(1, INF), batch=(1, INF), memory=(1, INF),
            lr=(1e-12, INF), max_queries=(0, INF),
        )  # fmt: skip
        choose(self, noise=("independent", "shared"))
        if self.steps <= self.batch:
            raise ValueError(
                f"RLBMI.steps is {self.steps} and RLBMI.batch {self.batch}: agents learn after "
                "each episode beyond the first batch, so let steps be more"
            )

    @property
    def asks(self) -> int:
        """Answers that an episode takes: about its images, and about one to keep."""
        return 2 if self.alpha == 0 else 3

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the episodes; all agents have each together."""
        return affordable(self, self.steps, samples * self.asks)

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Trains all agents at once.

        Raises:
            ValueError: If the answers left do not pay for an episode.
        """
        rows, d = goal.samples * len(goal.labels), prior.z_dim
        steps = min(self.steps, target.remaining // (rows * self.asks))
        if steps < 1:
            raise ValueError(
                f"the {target.remaining} answers that the target still gives do not pay for an "
                f"episode, which asks {rows * self.asks}: raise max_queries"
            )
        labels = goal.labels.repeat(goal.samples)
        agent = Agent.drawn(goal, d, self.hidden, self.lr)
        size = min(self.memory, steps)
        z = torch.zeros(rows, d, device=goal.device)
        state: State = {
            **agent.state(),
            "states": torch.zeros(rows, size, d, device=goal.device),
            "actions": torch.zeros(rows, size, d, device=goal.device),
            "rewards": torch.zeros(rows, size, device=goal.device),
            "best": z, "surest": torch.full((rows,), -1.0, device=goal.device),
        }  # fmt: skip

        def scores(z: Tensor) -> Tensor:
            return answered(target, z, prior.generate, labels)

        def drawn() -> tuple[Tensor, Tensor]:
            z = goal.draws(prior).flatten(0, 1)
            with torch.no_grad():
                action, _ = agent.act(z[:, None], self._noise(goal, 1, d))
            return z, action[:, 0]

        def advance(done: int) -> Tensor:
            z, action = drawn()
            after = self.moved(z, action)
            told = scores(after)
            reward = rewards(told, told if self.alpha == 0 else scores(action), labels)
            for name, value in (("states", z), ("actions", action), ("rewards", reward)):
                state[name][:, done % size] = value
            have = min(done + 1, size)
            picks = (goal.uniform(goal.samples, self.batch).flatten(0, 1) * have).long()
            noise = self._noise(goal, self.batch, d)
            if done >= self.batch:
                at = torch.arange(rows, device=goal.device)[:, None]
                z, action, reward = (state[k][at, picks] for k in ("states", "actions", "rewards"))
                agent.learn(z, action, reward, noise)
            kept = self.moved(*drawn())
            sure = scores(kept).gather(1, labels[:, None])[:, 0]
            better = sure > state["surest"]
            state["surest"].copy_(torch.where(better, sure, state["surest"]))
            state["best"].copy_(torch.where(better[:, None], kept, state["best"]))
            return agent.actor[0]

        left = rounds(
            state, advance, steps, goal, work, what="a weight of the agents",
            show=lambda: goal.images(prior, state["best"].view(goal.samples, -1, d)),
        )  # fmt: skip
        return goal.reconstructions(prior, left["best"].view(goal.samples, -1, d))

    def moved(self, z: Float[Tensor, "r d"], action: Float[Tensor, "r d"]) -> Tensor:
        """Returns the latents that actions lead to."""
        return self.alpha * z + (1 - self.alpha) * action

    def _noise(self, goal: Goal, episodes: int, d: int) -> Float[Tensor, "r m d"]:
        """Returns the agents' noise for so many episodes of each."""
        shape = (episodes, d) if self.noise == "independent" else (1, 1)
        return goal.noise(goal.samples, *shape).flatten(0, 1).expand(-1, episodes, d)


def rewards(
    after: Float[Tensor, "r k"], acted: Float[Tensor, "r k"], labels: Tensor
) -> Float[Tensor, " r"]:
    """Returns the reward of episodes.

    Args:
        after: Scores of the images of the latents that the actions lead to.
        acted: Those of the images of the actions themselves.
        labels: The classes wanted.
    """
    own = F.one_hot(labels, after.shape[1]).bool()
    likely = [p[own].clamp(min=LEAST).log() for p in (after, acted)]
    margin = after[own] - after.masked_fill(own, 0).amax(1)
    return 2 * likely[0] + 2 * likely[1] + 8 * margin.clamp(min=LEAST).log()


class Agent:
    """Soft actor-critics side by side, one in each row; no row's weights meet another's.

    Args:
        actor: Weights of two hidden layers, of the mean and of the logarithm of the deviation.
        critic: Weights of two hidden layers and of the value.
        lr: Adam's learning rate.
    """

    def __init__(self, actor: Weights, critic: Weights, lr: float) -> None:
        self.actor = [w.requires_grad_() for w in actor]
        self.critic = [w.requires_grad_() for w in critic]
        rows, dtype, device = len(actor[0]), actor[0].dtype, actor[0].device
        self.log_temperature = torch.zeros(rows, dtype=dtype, device=device, requires_grad=True)
        moved = {"actor": self.actor, "critic": self.critic, "warmth": [self.log_temperature]}
        self.optimizers = {name: torch.optim.Adam(ws, lr) for name, ws in moved.items()}

    @classmethod
    def drawn(cls, goal: Goal, d: int, hidden: int, lr: float) -> "Agent":
        """Returns agents whose weights are drawn as torch draws those of linear layers."""

        def layers(*sizes: tuple[int, int]) -> Weights:
            weights = []
            for inputs, outputs in sizes:
                for shape in ((outputs, inputs), (outputs,)):
                    uniform = goal.uniform(goal.samples, *shape).flatten(0, 1)
                    weights.append((2 * uniform - 1) / sqrt(inputs))
            return weights

        actor = layers((d, hidden), (hidden, hidden), (hidden, d), (hidden, d))
        return cls(actor, layers((2 * d, hidden), (hidden, hidden), (hidden, 1)), lr)

    def state(self) -> State:
        """Returns all that learning changes, in place."""
        weights = {"actor": self.actor, "critic": self.critic, "warmth": [self.log_temperature]}
        named = {f"{k} {i}": w for k, ws in weights.items() for i, w in enumerate(ws)}
        return {**named, **{f"Adam of {k}": o for k, o in self.optimizers.items()}}

    def act(
        self, z: Float[Tensor, "r m d"], noise: Float[Tensor, "r m d"]
    ) -> tuple[Float[Tensor, "r m d"], Float[Tensor, "r m"]]:
        """Returns actions, and the mean over dimensions of their log-densities, as released."""
        x = hidden(self.actor, z)
        mean = linear(x, *self.actor[4:6])
        spread = linear(x, *self.actor[6:8]).clamp(-20, 2)
        action = (mean + spread.exp() * noise).tanh()
        density = -(noise.square() + log(2 * pi)) / 2 - spread - (1 - action**2 + 1e-6).log()
        return action, density.mean(-1)

    def value(self, z: Float[Tensor, "r m d"], action: Float[Tensor, "r m d"]) -> Tensor:
        """Returns the critics' estimates of rewards, (rows, m)."""
        x = hidden(self.critic, torch.cat([z, action], -1))
        return linear(x, *self.critic[4:6])[..., 0]

    def learn(
        self,
        z: Float[Tensor, "r m d"],
        action: Float[Tensor, "r m d"],
        reward: Float[Tensor, "r m"],
        noise: Float[Tensor, "r m d"],
    ) -> Float[Tensor, " r"]:
        """Updates critics, temperatures and actors by episodes; returns the critics' losses."""
        error = (self.value(z, action) - reward).square().mean(1) / 2
        self._step("critic", error.sum())
        new, density = self.act(z, noise)
        temperature = self.log_temperature.detach().exp()
        surplus = (density.detach() - z.shape[-1]).mean(1)
        self._step("warmth", -(self.log_temperature * surplus).sum())
        loss = (temperature[:, None] * density - self.value(z, new)).mean(1)
        self._step("actor", loss.sum())
        return error.detach()

    def _step(self, which: str, loss: Tensor) -> None:
        optimizer = self.optimizers[which]
        weights = optimizer.param_groups[0]["params"]
        for w, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            w.grad = gradient
        optimizer.step()


def linear(x: Float[Tensor, "r m i"], W: Tensor, b: Tensor) -> Float[Tensor, "r m o"]:
    """Returns each row's affine map."""
    return torch.baddbmm(b[:, None], x, W.transpose(1, 2))


def hidden(weights: Sequence[Tensor], x: Float[Tensor, "r m i"]) -> Float[Tensor, "r m h"]:
    """Returns what the two hidden layers give."""
    for i in (0, 2):
        x = linear(x, *weights[i : i + 2]).relu()
    return x
