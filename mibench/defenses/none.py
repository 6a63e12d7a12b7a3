"""The undefended classifier."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from mibench.types import Classifier, Defense, Images, Labels, Scalar


@dataclass(frozen=True)
class NoDefense(Defense):
    """Plain empirical risk minimisation, Eq. (6)."""

    name: ClassVar[str] = "none"

    def loss_terms(self, network: Classifier, x: Images, y: Labels) -> dict[str, Scalar]:
        """Returns the cross-entropy alone."""
        return {"task": F.cross_entropy(network(x), y)}
