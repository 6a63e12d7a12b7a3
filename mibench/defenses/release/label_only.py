"""The most likely class alone."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.release.base import Release
from mibench.roles import Defense, NoDefense
from mibench.ties import votes
from mibench.types import Images


@dataclass(frozen=True)
class LabelOnly(Release):
    """Lets out 1 for the most likely class and 0 for the others; equals share the 1.

    An attack that reads scores is run on these; one that reads labels meets no other answers than
    without the release.

    Attributes:
        inner: How the target is trained.
    """

    name: ClassVar[str] = "label-only"

    inner: Defense = field(default_factory=NoDefense)

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the one-hot scores."""
        return votes(probs).to(probs.dtype)
