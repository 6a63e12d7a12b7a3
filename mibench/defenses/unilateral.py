"""Unilateral dependency optimization, Figure 1 of Peng et al., KDD 2022.

https://arxiv.org/abs/2206.05483: forgetting the input at the output alone costs utility.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

from mibench.defenses.dependence import KERNELS, MEASURES, measure
from mibench.roles import Batch, Defense
from mibench.spec import choose, require
from mibench.types import Classifier, Scalar


@dataclass(frozen=True)
class Unilateral(Defense):
    """Minimises d(X, Ŷ) beside the task loss.

    Attributes:
        lambda_: Weight of d(X, Ŷ), at least 0; the paper sweeps it up to 1,000.
        measure: The dependence d, a name in MEASURES.
        kernel: Kernel of X, a name in KERNELS.
        output_kernel: Kernel of the logits.
        ridge: ε of "nhsic", κ of "kcca"; others have none.
    """

    name: ClassVar[str] = "unilateral"

    lambda_: float
    measure: str = "coco_frobenius"
    kernel: str = "gaussian"
    output_kernel: str = "linear"
    ridge: float = 1e-5

    def __post_init__(self) -> None:
        choose(self, measure=MEASURES, kernel=KERNELS, output_kernel=KERNELS)
        require(self, lambda_=(0, float("inf")), ridge=(1e-12, 1e6))

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the task loss and the weighted dependence of logits on the input."""
        x, y = batch.x, batch.y
        logits = network(x)
        d = measure(self.measure, self.ridge)
        K_x = KERNELS[self.kernel]([network.own_input(x).flatten(1)])
        K_out = KERNELS[self.output_kernel]([logits])
        return {
            "task": F.cross_entropy(logits, y),
            "d(X,Y)": self.lambda_ * d(K_x, K_out).sum().to(x.dtype),
        }
