"""The scores of the most likely classes alone."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.release.base import Release
from mibench.roles import Defense, NoDefense
from mibench.spec import require
from mibench.types import Images


@dataclass(frozen=True)
class TopK(Release):
    """Lets out the k largest scores as they are, and 0 for the other classes.

    Attributes:
        k: How many are kept, at least 1; all that equal the last of them are, too.
        inner: How the target is trained.
    """

    name: ClassVar[str] = "top-k"

    k: int
    inner: Defense = field(default_factory=NoDefense)

    def __post_init__(self) -> None:
        require(self, k=(1, float("inf")))

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the scores; rows are not scaled to sum to 1."""
        least = probs.topk(min(self.k, probs.shape[1])).values[:, -1:]
        return probs.where(probs >= least, 0)
