"""The undefended classifier."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from mibench.roles import Batch, Defense
from mibench.types import Classifier, Scalar


@dataclass(frozen=True)
class NoDefense(Defense):
    """Plain empirical risk minimisation, Eq. (6)."""

    name: ClassVar[str] = "none"
    undefended: ClassVar[bool] = True

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy alone."""
        x, y = batch.x, batch.y
        return {"task": F.cross_entropy(network(x), y)}
