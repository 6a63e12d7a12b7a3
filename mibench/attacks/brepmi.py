r"""BREP-MI, Kahla et al., CVPR 2022, https://arxiv.org/abs/2203.01925: labels alone.

A latent is moved away from the points of a sphere around it that the target takes for another
class; where hardly any is, the sphere grows:

.. math:: z \leftarrow z - \min(R/3, 3) \, \frac1N \sum_i [f(G(z + R u_i)) \ne y] \, u_i,
    \qquad \lVert u_i \rVert = 1
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.bases import BlackBox
from mibench.attacks.descent import rounds
from mibench.attacks.goal import Goal
from mibench.attacks.priors.gan import WGANGP
from mibench.attacks.priors.tacgan import TACGAN
from mibench.attacks.selection import answered
from mibench.attacks.views import affordable
from mibench.roles import PriorSpec
from mibench.spec import choose, require
from mibench.store import Payload, State, Work
from mibench.types import Access, Prior, Reconstructions

INF = float("inf")
NOT_ENTERED = "not entered"
"""Reconstructions for which no latent of the class was found; theirs are the first drawn."""


@dataclass(frozen=True)
class BREPMI(BlackBox):
    """Repels latents from the boundary of the class, on spheres that grow.

    Each reconstruction starts from a latent of its own that the target takes for the class. If
    none is found, it is a latent of any class and moves no more; ``counts`` of the result says
    how many.

    Attributes:
        prior: Draws and generates; it never sees the target.
        batch: Latents that each block of classes draws at once, in search of where to start.
        pool: The greatest number of latents that a block draws in this search.
        points: N, on each sphere.
        radius: R of the first sphere.
        growth: R is multiplied by this each time it grows.
        inside: R grows where more than this share of the points are of the class.
        largest: R does not grow beyond this.
        reach: Latents, the first included, are held in [-reach, reach].
        patience: The number of steps with one radius after which a reconstruction ends.
        steps: The greatest number of rounds; steps that the target refuses are rounds, too.
        keep: Which latent counts: that of the last "expansion", as released, or the "last". One
            whose radius has never grown is the last.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit. The
            search leaves what one round takes.
    """

    name: ClassVar[str] = "brep-mi"
    small: ClassVar[Mapping[str, Any]] = {
        "batch": 8, "pool": 32, "points": 6, "patience": 4, "steps": 9, "inside": 0.6,
    }  # fmt: skip
    access: ClassVar[Access] = "labels"

    prior: PriorSpec = field(default_factory=WGANGP)
    batch: int = 256
    pool: int = 1_000_000
    points: int = 32
    radius: float = 2.0
    growth: float = 1.3
    inside: float = 0.875
    largest: float = 25.0
    reach: float = 1.5
    patience: int = 1000
    steps: int = 20_000
    keep: Literal["expansion", "last"] = "expansion"
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, batch=(1, INF), pool=(1, INF), points=(1, INF), radius=(1e-12, INF),
            growth=(1, INF), inside=(0, 1), largest=(1e-12, INF), reach=(1e-12, INF),
            patience=(1, INF), steps=(1, INF), max_queries=(0, INF),
        )  # fmt: skip
        choose(self, keep=("expansion", "last"))
        if self.inside == 1:
            raise ValueError(
                "BREPMI.inside must be below 1: more than all points are never inside"
            )
        if isinstance(self.prior, TACGAN):
            raise ValueError(
                f"BREPMI.prior must not be {self.prior.name}, which draws images of a class that "
                "it is told: starts are searched for among images of any; give it another prior"
            )

    def planned_steps(self, blocks: int, samples: int = 1) -> None:
        """Returns None: reconstructions end when they end."""
        affordable(self, self.steps, samples * (self.points + 1))

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Searches for starts, then moves all rows at once; those that end wait for the rest.

        Raises:
            ValueError: If the answers left do not pay for one round and the search's first draw.
        """
        asked = goal.samples * len(goal.labels) * (self.points + 1)
        first = len(goal.blocks) * min(self.batch, self.pool)
        if target.remaining < asked + first:
            raise ValueError(
                f"the {target.remaining} answers that the target still gives do not pay for a "
                f"round, which asks {asked}, beside {first} to search for starts: raise "
                "max_queries, or lower batch"
            )
        begun = self.starts(target, prior, goal, work)
        entered = torch.arange(goal.samples, device=goal.device)[:, None] < begun["entered"]
        left = self.repel(target, prior, goal, work, begun["z"], entered)
        z = left["z"] if self.keep == "last" else left["kept"]
        made = goal.reconstructions(prior, z.view_as(begun["z"]))
        made.counts[NOT_ENTERED] = int((~entered).sum())
        return made

    def starts(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Payload:
        """Searches for latents that the target takes for the classes.

        Returns:
            "z", (samples, classes, z), and for each class how many have "entered" it.
        """
        state: State = {
            "z": torch.zeros(goal.samples, len(goal.labels), prior.z_dim, device=goal.device),
            "entered": torch.zeros(len(goal.labels), dtype=torch.long, device=goal.device),
            "drawn": 0,
        }
        reserved = goal.samples * len(goal.labels) * (self.points + 1)

        def wanting() -> list[int]:
            full = (state["entered"] == goal.samples).split(goal.sizes)
            return [i for i, block in enumerate(full) if not block.all()]

        def advance(done: int) -> None:
            blocks, first = list(goal), [sum(goal.sizes[:i]) for i in range(len(goal.sizes))]
            size = min(self.batch, self.pool - state["drawn"])
            state["drawn"] += size
            for i in wanting():
                labels, stream = blocks[i]
                z = self.held(prior.sample(size, stream).to(goal.device))
                said = answered(target, z, prior.generate)
                for j, label in enumerate(labels, first[i]):
                    if done == 0:  # what is left if none is found
                        state["z"][:, j] = z[torch.arange(goal.samples) % size]
                    begin = int(state["entered"][j])
                    new = z[said == label][: goal.samples - begin]
                    state["z"][begin : begin + len(new), j] = new
                    state["entered"][j] += len(new)

        def until() -> bool:
            needed: int = len(wanting()) * min(self.batch, self.pool - state["drawn"])
            return needed == 0 or target.remaining < reserved + needed

        batches = -(-self.pool // self.batch)
        return rounds(
            state, advance, batches, goal, work, until=until,
            show=lambda: goal.images(prior, state["z"]),
        )  # fmt: skip

    def repel(
        self,
        target: Query,
        prior: Prior,
        goal: Goal,
        work: Work,
        z: Float[Tensor, "s n z"],
        entered: Bool[Tensor, "s n"],
    ) -> Payload:
        """Moves latents, (samples, classes, z), until each has ended.

        Returns:
            "z", (samples * classes, z), the last of each, and "kept", those of the last growth.
        """
        rows = goal.samples * len(goal.labels)
        labels = goal.labels.repeat(goal.samples)
        state: State = {
            "z": z.flatten(0, 1).clone(),
            "kept": z.flatten(0, 1).clone(),
            "radius": torch.full((rows,), self.radius, dtype=z.dtype, device=goal.device),
            "grown": torch.zeros(rows, dtype=torch.bool, device=goal.device),
            "quiet": torch.zeros(rows, dtype=torch.long, device=goal.device),
            "moving": entered.flatten().clone(),
        }

        def of_class(z: Float[Tensor, "n z"], y: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
            return answered(target, z, prior.generate, y) == y

        def advance(_: int) -> Tensor:
            # drawn for all rows, so that no row's draws depend on which others have ended
            directions = goal.noise(goal.samples, self.points, prior.z_dim).flatten(0, 1)
            at = state["moving"].nonzero()[:, 0]
            u = torch.nn.functional.normalize(directions[at], dim=-1)
            y, z, radius = labels[at], state["z"][at], state["radius"][at, None]
            sphere = z[:, None] + radius[..., None] * u
            inside = of_class(sphere.flatten(0, 1), y.repeat_interleave(self.points))
            inside = inside.view(-1, self.points)
            larger = radius * self.growth
            grows = (inside.sum(1) > self.inside * self.points) & (larger[:, 0] <= self.largest)
            new = torch.where(grows[:, None], larger, radius)
            direction = (
                -(u * ~inside[..., None]).mean(1) * radius / new
            )  # as released, shorter if it grows
            moved = self.held(z + (radius / 3).clamp(max=3) * direction)
            accepted = of_class(moved, y)
            self._note(state, at, moved, new[:, 0], grows, accepted)
            return moved

        def until() -> bool:
            needed = int(state["moving"].sum()) * (self.points + 1)
            return needed == 0 or target.remaining < needed

        counting = "z" if self.keep == "last" else "kept"
        return rounds(
            state, advance, self.steps, goal, work, until=until,
            show=lambda: goal.images(prior, state[counting].view_as(z)),
        )  # fmt: skip

    def _note(
        self,
        state: State,
        at: Int[Tensor, " m"],
        moved: Float[Tensor, "m z"],
        radius: Float[Tensor, " m"],
        grows: Bool[Tensor, " m"],
        accepted: Bool[Tensor, " m"],
    ) -> None:
        """Puts what a round has brought the rows ``at`` into the state.

        A refused step leaves the latent, but the radius that it came with stays, as released.
        """
        state["radius"][at] = radius
        state["z"][at[accepted]] = moved[accepted]
        state["grown"][at] |= grows & accepted
        counts = (grows & accepted) | ~state["grown"][at]
        state["kept"][at[counts]] = state["z"][at[counts]]
        state["quiet"][at] = torch.where(grows, 0, state["quiet"][at] + accepted)
        state["moving"][at] = state["quiet"][at] < self.patience

    def held(self, z: Float[Tensor, "... z"]) -> Float[Tensor, "... z"]:
        """Returns latents within reach."""
        return z.clamp(-self.reach, self.reach)
