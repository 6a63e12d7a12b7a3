"""Scores rounded to decimals, Fredrikson et al., CCS 2015, https://doi.org/10.1145/2810103.2813677."""

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
class Rounding(Release):
    """Lets out each score rounded to some decimals, halves to the even digit.

    Attributes:
        decimals: How many are kept; classes that become equal count as in random order.
        inner: How the target is trained.
    """

    name: ClassVar[str] = "rounding"

    decimals: int
    inner: Defense = field(default_factory=NoDefense)

    def __post_init__(self) -> None:
        require(self, decimals=(0, 6))

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the rounded scores; rows need not sum to 1."""
        return probs.round(decimals=self.decimals)
