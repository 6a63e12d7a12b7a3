r"""MIRROR, black box, An et al., NDSS 2022, https://model-inversion.github.io/mirror/.

Styles are bred: of a population's probabilities, two parents are drawn for each child, which takes
each gene from the first with probability c, changes some a little and is held within the box of
:class:`mibench.attacks.mirror.Box`:

.. math:: P(i) = \frac{f_y(G(w_i))}{\sum_j f_y(G(w_j))}, \qquad
    c = \frac{f_y(G(w_1))}{f_y(G(w_1)) + f_y(G(w_2))}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.bases import BlackBox
from mibench.attacks.descent import rounds
from mibench.attacks.goal import Goal
from mibench.attacks.mirror import NEGATIVE_SLOPE, Box
from mibench.attacks.ppa import drawn, of_styles
from mibench.attacks.priors.styled import StyledPrior
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.selection import answered
from mibench.attacks.views import affordable
from mibench.roles import PriorSpec
from mibench.spec import choose, require
from mibench.store import State, Work
from mibench.types import Access, Offer, Prior, Reconstructions

INF = float("inf")
LEAST = 1e-30
"""Shares and logarithms are of probabilities that are at least this."""


@dataclass(frozen=True)
class MirrorBlackBox(BlackBox):
    """Breeds styles within their usual range; the best of each population counts.

    Every sample of a class has a population of its own; all start alike.

    Attributes:
        prior: The StyleGAN; it never sees the target, so every target shares it.
        pool: Styles among which the classes of a block choose their first populations.
        psi: Truncation of the pool's styles, towards the mean style.
        deviations: How far p may be from its mean, in standard deviations.
        population: Styles of each population.
        steps: Generations.
        mutation: The probability that a gene changes.
        size: By how much at most, in standard deviations of p.
        crossover: c is by "probability", or as "released", where it is by its logarithm: the
            better parent then gives fewer genes.
        enough: A population of whose best the target is so sure ends.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "mirror-blackbox"
    version: ClassVar[int] = 2
    small: ClassVar[Mapping[str, Any]] = {"pool": 12, "population": 4, "steps": 8}
    access: ClassVar[Access] = "scores"
    wants: ClassVar[tuple[Offer, ...]] = ("styles",)

    prior: PriorSpec = field(default_factory=StyleGAN2)
    pool: int = 100_000
    psi: float = 0.7
    deviations: float = 1.0
    population: int = 100
    steps: int = 100
    mutation: float = 0.1
    size: float = 0.1
    crossover: Literal["probability", "released"] = "probability"
    enough: float = 0.95
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, pool=(2, INF), psi=(0, 1), deviations=(0, INF), population=(2, INF),
            steps=(1, INF), mutation=(0, 1), size=(0, INF), enough=(0, 1), max_queries=(0, INF),
        )  # fmt: skip
        choose(self, crossover=("probability", "released"))
        if self.pool < self.population:
            raise ValueError(
                f"MirrorBlackBox.pool is {self.pool}, but a population of {self.population} is "
                "chosen from it"
            )

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns the generations; None with a limit, which the classes' common pool shares."""
        affordable(self, self.steps, samples * self.population)
        return None

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Chooses among the pool, then breeds all populations at once.

        Raises:
            ValueError: If the answers left do not pay for the pool and one generation.
        """
        assert isinstance(prior, StyledPrior)
        rows = goal.samples * len(goal.labels)
        needed = self.pool * len(goal.blocks) + rows * (self.population - 1)
        if target.remaining < needed:
            raise ValueError(
                f"the {target.remaining} answers that the target still gives do not pay for the "
                f"pool and a generation, which ask {needed}: raise max_queries, or lower "
                "MirrorBlackBox.pool"
            )

        def images(w: Tensor) -> Tensor:
            return drawn(prior, w)

        first, chances, pool = self.chosen(target, prior, goal)
        box = Box.of(pool, self.deviations).of_each(goal)
        sizes = torch.tensor(goal.sizes, device=goal.device)
        std = (
            F.leaky_relu(pool, 1 / NEGATIVE_SLOPE).std(1, correction=0).repeat_interleave(sizes, 0)
        )
        low, high, std = (side.repeat(goal.samples, 1) for side in (box.low, box.high, std))
        labels = goal.labels.repeat(goal.samples)
        state: State = {
            "w": first.repeat(goal.samples, 1, 1),
            "chances": chances.repeat(goal.samples, 1),
        }
        others, genes = self.population - 1, first.shape[-1]

        def breeding() -> Tensor:
            surest: Tensor = state["chances"].amax(1)
            return (surest < self.enough).nonzero()[:, 0]

        def advance(_: int) -> Tensor:
            # drawn for all rows, so that no row's draws depend on which others have ended
            uniform = [
                goal.uniform(goal.samples, *shape).flatten(0, 1)
                for shape in ((2 * others,), (others, genes), (others, genes), (1, genes))
            ]
            at = breeding()
            u = [draws[at] for draws in uniform]
            w, chances = ordered(state["w"][at], state["chances"][at])
            mates = parents(chances, u[0])
            born = self.children(w, chances, mates, u[1:], Box(low[at], high[at]), std[at])
            y = labels[at].repeat_interleave(others)
            said = answered(target, born.flatten(0, 1), images)
            new = said.gather(1, y[:, None]).view(-1, others)
            state["w"][at] = torch.cat([w[:, :1], born], 1)
            state["chances"][at] = torch.cat([chances[:, :1], new], 1)
            return born

        def until() -> bool:
            needed = len(breeding()) * others
            return needed == 0 or target.remaining < needed

        def result() -> Reconstructions:
            best = ordered(state["w"], state["chances"])[0][:, 0]
            return of_styles(prior, goal, best.view(goal.samples, len(goal.labels), -1))

        rounds(
            state, advance, self.steps, goal, work, until=until, what="a style",
            show=lambda: result().images,
        )  # fmt: skip
        return result()

    @torch.no_grad()
    def chosen(
        self, target: Query, prior: StyledPrior, goal: Goal
    ) -> tuple[Float[Tensor, "c n d"], Float[Tensor, "c n"], Float[Tensor, "b p d"]]:
        """Returns each class's first population, its probabilities, and each block's pool."""
        styles, chances, pools = [], [], []
        for labels, stream in goal:
            z = prior.sample(self.pool, stream).to(goal.device)
            w = torch.cat([prior.styles(part, self.psi)[:, 0] for part in z.split(1024)])  # type: ignore[no-untyped-call]
            said = answered(target, w, lambda w: drawn(prior, w))[:, labels].T
            best = said.topk(self.population, 1)
            styles.append(w[best.indices])
            chances.append(best.values)
            pools.append(w)
        return torch.cat(styles), torch.cat(chances), torch.stack(pools)

    def children(
        self,
        w: Float[Tensor, "r n d"],
        chances: Float[Tensor, "r n"],
        mates: Int[Tensor, "r both"],
        uniform: list[Tensor],
        box: Box,
        std: Float[Tensor, "r d"],
    ) -> Float[Tensor, "r m d"]:
        """Returns the children of populations.

        Args:
            w: Populations of styles.
            chances: The class's probability of each.
            mates: First parents, then second ones, by their places.
            uniform: Draws from [0, 1): whether to take a gene of the first parent and whether to
                change it, (r, m, d) each, and by how much, the same for all children of a
                population, (r, 1, d).
            box: Holds the children's p.
            std: Of p.
        """
        at = torch.arange(len(w), device=w.device)[:, None]
        first, second = mates.chunk(2, 1)
        fitness = chances.clamp(min=LEAST)
        if self.crossover == "released":
            fitness = fitness.log()
        c = fitness[at, first] / (fitness[at, first] + fitness[at, second])
        crossing, changing, by = uniform
        child = torch.where(crossing < c[..., None], w[at, first], w[at, second])
        p = F.leaky_relu(child, 1 / NEGATIVE_SLOPE)
        changed = p + (2 * by - 1) * self.size * std[:, None]
        p = torch.where(changing < self.mutation, changed, p)
        return box.clip(F.leaky_relu(p, NEGATIVE_SLOPE).transpose(0, 1)).transpose(0, 1)


def ordered(
    w: Float[Tensor, "r n d"], chances: Float[Tensor, "r n"]
) -> tuple[Float[Tensor, "r n d"], Float[Tensor, "r n"]]:
    """Returns populations with those of which the target is surest first."""
    places = chances.argsort(dim=1, descending=True, stable=True)
    return w[torch.arange(len(w), device=w.device)[:, None], places], chances.gather(1, places)


def parents(chances: Float[Tensor, "r n"], uniform: Float[Tensor, "r m"]) -> Int[Tensor, "r m"]:
    """Returns places drawn in proportion to ``chances``; by chance where all are 0.

    Of some answers, such as labels, most probabilities are 0.
    """
    shares = chances.clamp(min=LEAST)
    until = (shares / shares.sum(1, keepdim=True)).cumsum(1)
    return torch.searchsorted(until, uniform.contiguous()).clamp(max=chances.shape[1] - 1)
