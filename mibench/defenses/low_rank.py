"""A low-rank last layer as a defense, LoFt, https://arxiv.org/abs/2410.05814."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from mibench.roles import Defense, NoDefense
from mibench.spec import require
from mibench.types import Classifier


@dataclass(frozen=True)
class LowRank(NoDefense):
    """Lets few numbers through: Linear(d, r), tanh and Linear(r, k) in place of the last layer.

    The objective is the plain cross-entropy, Eq. (6) of Peng et al.

    Attributes:
        rank: How many numbers (r) are let through; the authors' values are 20 to 500.
    """

    name: ClassVar[str] = "loft"
    undefended: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {"rank": 3}

    rank: int = 50

    def __post_init__(self) -> None:
        require(self, rank=(1, 65_536))

    def harden(self, network: Classifier) -> Classifier:
        """Returns the network with the two layers; raises ValueError if its last is not linear."""
        network.last = nn.Sequential(
            nn.Linear(linear_last(network, self).in_features, self.rank),
            nn.Tanh(),
            nn.Linear(self.rank, network.num_classes),
        )
        return network


def linear_last(network: Classifier, defense: Defense, *, hidden: bool = False) -> nn.Linear:
    """Returns the layer that a defense replaces; raises ValueError if it is not a linear one.

    With ``hidden`` it may have hidden layers, as that of irse50 has, which are replaced too.
    """
    last = network.last
    if not isinstance(last, nn.Linear) or not (hidden or type(last) is nn.Linear):
        raise ValueError(
            f"{defense.name} replaces a linear last layer, and that of {type(network).__name__} "
            f"is a {type(last).__name__}; take another network"
        )
    return last
