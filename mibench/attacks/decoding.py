"""The attack of Yang et al., CCS 2019, https://arxiv.org/abs/1902.08552, on classes.

Images are what a decoder of scores draws where the target would be sure of the class:
x = G(τ(p)) with p_y = sure, the other classes sharing what is left. It asks the target nothing:
all that it knows of it, the decoder has learnt.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.bases import BlackBox
from mibench.attacks.goal import Goal
from mibench.attacks.priors.scores import InversionNetwork
from mibench.roles import PriorSpec
from mibench.spec import require
from mibench.store import Work
from mibench.types import Access, Prior, Reconstructions


@dataclass(frozen=True)
class Decoding(BlackBox):
    """Decodes scores that are sure of a class; those of other classes are drawn for each sample.

    Attributes:
        prior: The decoder, one per target.
        sure: The class's score.
        max_queries: As every attack has it; nothing is asked.
    """

    name: ClassVar[str] = "inversion-network"
    small: ClassVar[Mapping[str, Any]] = {}
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=InversionNetwork)
    sure: float = 0.9
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(self, sure=(0, 1), max_queries=(0, float("inf")))
        if not isinstance(self.prior, InversionNetwork):
            raise ValueError(
                f"Decoding.prior must be an inversion-network, and {self.prior.name} decodes no "
                "scores"
            )

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Draws scores and decodes them."""
        uniform = goal.uniform(goal.samples, prior.z_dim)
        return goal.reconstructions(prior, scores(uniform, goal.labels, self.sure))


def scores(uniform: Tensor, labels: Tensor, sure: float) -> Tensor:
    """Returns scores (samples, classes, k), ``sure`` at each class.

    Args:
        uniform: Draws from [0, 1) of the same shape; the others' scores are in proportion to
            their negative logarithms, so that all that add up to the rest are equally likely.
        labels: The classes.
        sure: The classes' score.
    """
    own = torch.nn.functional.one_hot(labels, uniform.shape[-1]).bool().expand_as(uniform)
    others = (-uniform.clamp(min=1e-12).log()).masked_fill(own, 0)
    others = (1 - sure) * others / others.sum(-1, keepdim=True)
    return torch.where(own, sure, others)
