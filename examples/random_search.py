"""An attack of your own in one file: ``mibench run examples/random_search.py``.

Draws latents at random and keeps, for each class, those that the target is surest of. It
needs only the target's scores, so it says ``access = "scores"``: the target it is handed
answers with probabilities, gives no gradients and counts its queries. With ``max_queries`` it
refuses a call that would pass the limit; ``target.remaining`` says how many answers are left.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from mibench import Prior, PriorSpec, Reconstructions, Table
from mibench.attacks import WGANGP, BlackBox, Goal
from mibench.attacks.access import Query
from mibench.benchmarks.tables import TABLES
from mibench.store import Work
from mibench.types import Access


@dataclass(frozen=True)
class RandomSearch(BlackBox):
    """Keeps the best of many random draws from a prior.

    Attributes:
        prior: Where the draws come from.
        draws: How many.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "random-search"
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=WGANGP)
    draws: int = 2000
    max_queries: int = 0

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Ranks the draws by the target's score of each class.

        Raises:
            ValueError: If the answers left do not pay for as many draws as are kept.
        """
        draws = min(self.draws, target.remaining // len(goal.blocks))
        if draws < goal.samples:
            raise ValueError(f"{goal.samples} of {draws} draws cannot be kept; raise max_queries")
        kept = []
        for labels, stream in goal:
            z = prior.sample(draws, stream).to(goal.device)
            with torch.no_grad():
                scores = target(prior.generate(z))
            kept.append(z[scores.topk(goal.samples, dim=0).indices[:, labels]])
        return goal.reconstructions(prior, torch.cat(kept, dim=1))


SMOKE = TABLES["smoke"]
TABLE = Table(
    name="random-search",
    caption="Random search beside GMI, which shares its prior, on 8x8 digits.",
    rows={label: cell for label, cell in SMOKE.rows.items() if label.startswith("GMI")}
    | {
        label.replace("GMI", "Random search"): replace(
            cell, attack=RandomSearch(cell.attack.prior)
        )
        for label, cell in SMOKE.rows.items()
        if label.startswith("GMI")
    },
)
