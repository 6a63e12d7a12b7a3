"""An attack of your own in one file: ``mibench run examples/random_search.py``.

Draws latents at random and keeps, for each class, those that the target is surest of. It
needs only the target's scores, so it says ``access = "scores"``: the target it is handed
answers with probabilities, gives no gradients and counts its queries. With ``max_queries`` it
refuses a call that would pass the limit; ``target.remaining`` says how many answers are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mibench import Attack, Prior, PriorSpec, Reconstructions, Table
from mibench.attacks import WGANGP
from mibench.benchmarks.tables import TABLES
from mibench.store import Work
from mibench.types import Access, Query


@dataclass(frozen=True)
class RandomSearch(Attack):
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

    def invert(
        self,
        target: Query,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Ranks the draws by the target's score of each class.

        Raises:
            ValueError: If the answers left do not pay for as many draws as are kept.
        """
        draws = min(self.draws, target.remaining // len(blocks))
        if draws < samples:
            raise ValueError(f"{samples} of {draws} draws cannot be kept; raise max_queries")
        found = []
        for labels, rng in zip(blocks, rngs, strict=True):
            z = prior.sample(draws, rng).to(work.device)
            with torch.no_grad():
                scores = target(prior.generate(z))
            found.append(z[scores.topk(samples, dim=0).indices[:, labels.to(work.device)]])
        latents = torch.cat(found, dim=1)
        with torch.no_grad():
            images = prior.generate(latents.flatten(0, 1))
        return Reconstructions(images.view(*latents.shape[:2], *images.shape[1:]), latents)


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
