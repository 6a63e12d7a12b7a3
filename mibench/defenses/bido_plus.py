"""BiDO beside outlier exposure, Peng et al., TPAMI 2025, BiDO+.

Its code: https://github.com/AlanPeng0897/BiDO_plus.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.bido import BiDO
from mibench.roles import Batch
from mibench.spec import require
from mibench.types import Classifier, Images, Logits, Scalar


@dataclass(frozen=True)
class BiDOPlus(BiDO):
    r"""BiDO that is unsure of images of others: their entropies are raised, from ``start`` on.

    .. math:: L(f(X), Y) + \lambda_x \sum_j d(X, Z_j) - \lambda_y \sum_j d(Z_j, Y)
        - \gamma \sum_i H(f(O_i))

    O are images that are neither private nor public; the other terms are those of BiDO. Both
    kinds of images pass the network together, so batch normalisation mixes them, as released
    (its strategy "CM"). Only weights of epochs with outliers may be kept.

    Attributes:
        gamma: Weight of the sum of entropies, in nats, at least 0; with 0 it is BiDO.
        start: Share of the epochs after which outliers come in, in [0, 1]; 60 of 100 as released.
        share: How many outliers a batch has, as a share of its private images, in [0, 1].
        early: Whether outliers pass before ``start``, too, as released: they give no gradient,
            but move the statistics of batch normalisation.
    """

    name: ClassVar[str] = "bido-plus"
    version: ClassVar[int] = 1
    wants_outliers: ClassVar[bool] = True

    gamma: float = 1e-3
    start: float = 0.6
    share: float = 0.5
    early: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, gamma=(0, float("inf")), start=(0, 1), share=(0, 1))

    def mature(self, epoch: int, epochs: int) -> bool:
        """Whether outliers have come in."""
        return not self.gamma or epoch >= round(self.start * epochs)

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the terms of BiDO and, from ``start`` on, that of outliers."""
        if not self.gamma:
            return super().loss_terms(network, batch)
        assert batch.outliers is not None, "BiDO+ is trained with outliers"
        outliers = batch.outliers[: round(self.share * len(batch.outliers))]
        if not self.mature(batch.epoch, batch.epochs):
            return self.before(network, batch, outliers)
        private = len(batch.x)
        zs = network.latents(torch.cat([batch.x, outliers]))
        logits = network.head(zs[-1])
        terms = self.terms_of(network, batch, tuple(z[:private] for z in zs), logits[:private])
        return terms | self.exposure(logits[:private], logits[private:], batch)

    def before(self, network: Classifier, batch: Batch, outliers: Images) -> dict[str, Scalar]:
        """Returns the terms of a step before ``start``."""
        if self.early:
            with torch.no_grad():
                network.latents(outliers)
        return super().loss_terms(network, batch)

    def exposure(
        self, private: Logits, outliers: Float[Tensor, "m k"], batch: Batch
    ) -> dict[str, Scalar]:
        """Returns what the logits of outliers add from ``start`` on."""
        log = outliers.log_softmax(1)
        return {"H(outliers)": self.gamma * (log.exp() * log).sum()}
