"""Bilateral dependency optimization, Peng et al., KDD 2022, https://arxiv.org/abs/2206.05483."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.defenses.dependence import KERNELS, MEASURES, measure
from mibench.roles import Batch, Defense
from mibench.spec import choose, require
from mibench.types import Classifier, Logits, Scalar


@dataclass(frozen=True)
class BiDO(Defense):
    r"""Forget the input, keep the label: Eq. (7).

    .. math:: L(f(X), Y) + \lambda_x \sum_j d(X, Z_j) - \lambda_y \sum_j d(Z_j, Y)

    Attributes:
        measure: The dependence d, a name in MEASURES. "coco" gives Eq. (8), "hsic" Eq. (10);
            the paper's weights belong to "coco_frobenius" and "nhsic", which its code uses.
        lambda_x: Weight of Σ_j d(X, Z_j), at least 0. X is the augmented input, in
            the range of pixels that the network reads.
        lambda_y: Weight of Σ_j d(Z_j, Y), at least 0.
        kernel: Kernel of X and of every Z_j, a name in KERNELS.
        label_kernel: Kernel of the one-hot labels.
        ridge: ε of "nhsic", κ of "kcca" (whose authors take 0.02); others have none.
    """

    name: ClassVar[str] = "bido"
    version: ClassVar[int] = 2
    small: ClassVar[Mapping[str, Any]] = {"measure": "nhsic"}

    measure: str
    lambda_x: float
    lambda_y: float
    kernel: str = "gaussian"
    label_kernel: str = "linear"
    ridge: float = 1e-5

    def __post_init__(self) -> None:
        choose(self, measure=MEASURES, kernel=KERNELS, label_kernel=KERNELS)
        require(self, lambda_x=(0, float("inf")), lambda_y=(0, float("inf")), ridge=(1e-12, 1e6))

    @property
    def lowers_dependence(self) -> str:
        """The measure."""
        return self.measure

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the task loss and the two dependence terms of Eq. (7)."""
        zs = network.latents(batch.x)
        return self.terms_of(network, batch, zs, network.head(zs[-1]))

    def terms_of(
        self, network: Classifier, batch: Batch, zs: tuple[Tensor, ...], logits: Logits
    ) -> dict[str, Scalar]:
        """Returns the terms for the latents and logits of the batch's images."""
        x, y = batch.x, batch.y
        labels = F.one_hot(y, logits.shape[1]).to(x.dtype)
        K_x, *K_zs = KERNELS[self.kernel]([z.flatten(1) for z in (network.own_input(x), *zs)])
        (K_y,) = KERNELS[self.label_kernel]([labels])
        d = measure(self.measure, self.ridge)
        both = d(torch.stack(K_zs), torch.stack([K_x, K_y])[:, None]).sum(1).to(x.dtype)
        return {
            "task": F.cross_entropy(logits, y),
            "d(X,Z)": self.lambda_x * both[0],
            "d(Z,Y)": -self.lambda_y * both[1],
        }
