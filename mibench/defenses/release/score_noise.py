"""Scores with noise: each answer draws its own, so that asking again gives another one."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.release.base import Release
from mibench.roles import Defense, NoDefense
from mibench.spec import require
from mibench.types import Images

INF = float("inf")


@dataclass(frozen=True)
class ScoreNoise(Release):
    """Adds normal noise to the scores, takes what is negative as 0, and scales rows to sum to 1.

    Where nothing is left above 0, all classes are let out as equally likely. The mean of many
    answers tells an attacker the scores: ``averaging`` is the attack that asks so.

    Attributes:
        std: Standard deviation of the noise of each score.
        keep: Whether the most likely class stays the most likely: it changes places with the
            class that the noise has put in front.
        inner: How the target is trained.
    """

    name: ClassVar[str] = "score-noise"
    repeatable: ClassVar[bool] = False

    std: float
    keep: bool = False
    inner: Defense = field(default_factory=NoDefense)

    def __post_init__(self) -> None:
        require(self, std=(0, INF))

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the noisy scores."""
        noise = torch.randn(probs.shape, generator=rng, dtype=probs.dtype).to(probs.device)
        noisy = (probs + self.std * noise).clamp(min=0)
        noisy = torch.where(noisy.sum(1, keepdim=True) > 0, noisy, 1.0)
        if self.keep:
            largest = probs == probs.amax(1, keepdim=True)
            own = noisy.where(largest, -1).argmax(1, keepdim=True)  # of equals, whose noise is
            other = noisy.argmax(1, keepdim=True)
            values = noisy.gather(1, own), noisy.gather(1, other)
            noisy = noisy.scatter(1, other, values[0]).scatter(1, own, values[1])
        return noisy / noisy.sum(1, keepdim=True)
