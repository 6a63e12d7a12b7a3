"""Label smoothing as a defense, Struppek et al., ICLR 2024, https://arxiv.org/abs/2310.06549."""

from dataclasses import dataclass
from typing import ClassVar

from mibench.roles import Batch, Defense
from mibench.spec import require
from mibench.types import Classifier, Scalar


@dataclass(frozen=True)
class LabelSmoothing(Defense):
    r"""Cross-entropy against labels that are smoothed, or, by an alpha below 0, sharpened.

    .. math:: (1 - \alpha) \, (-\log p_y) + \alpha \, \tfrac1k \sum_j (-\log p_j)

    A negative alpha takes effect by the released schedule: 0 before ``start``, then a ramp that
    would reach alpha in the last epoch, and all of alpha at once from ``full`` on. Only epochs at
    all of alpha may be kept. A positive one holds from the first epoch on, as does a negative one
    with ``start`` and ``full`` at 0, which is what the first release did.

    Attributes:
        alpha: Smoothing, at most 1; -0.05 is the authors' for faces, and above 0 it is found to
            raise leakage. Below 0 the loss has no least value.
        start: Share of the epochs after which the ramp begins, in [0, 1]; 50 of 100 as released.
        full: Share of the epochs after which the ramp is left, in [start, 1]; 75 of 100 as
            released.
    """

    name: ClassVar[str] = "label-smoothing"

    alpha: float = -0.05
    start: float = 0.5
    full: float = 0.75

    def __post_init__(self) -> None:
        require(self, alpha=(float("-inf"), 1), start=(0, 1), full=(self.start, 1))

    def strength(self, epoch: int, epochs: int) -> float:
        """Returns the alpha of an epoch, from 0 on."""
        start, full = round(self.start * epochs), round(self.full * epochs)
        if self.alpha < 0 and epoch < start:
            return 0.0
        if self.alpha >= 0 or epoch >= full:
            return self.alpha
        return self.alpha * ((epoch + 1 - start) / (self._end(full, epochs) - start))

    def _end(self, full: int, epochs: int) -> int:
        """Returns at which epoch the ramp would reach alpha."""
        return epochs

    def mature(self, epoch: int, epochs: int) -> bool:
        """Whether all of alpha is in effect."""
        return self.strength(epoch, epochs) == self.alpha

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the one term; with a negative alpha it may be negative."""
        alpha = self.strength(batch.epoch, batch.epochs)
        wrong = -network(batch.x).log_softmax(1)
        own = wrong.gather(1, batch.y[:, None])[:, 0]
        return {"task": ((1 - alpha) * own + alpha * wrong.mean(1)).mean()}


@dataclass(frozen=True)
class RampedSmoothing(LabelSmoothing):
    """Label smoothing whose ramp reaches all of alpha at ``full``, without a jump.

    So it is in LoFt's code: alpha of -0.02 and 125 epochs, 50, a ramp of 25, and 50 more.
    """

    name: ClassVar[str] = "label-smoothing-ramp"

    def _end(self, full: int, epochs: int) -> int:
        """Returns where the ramp ends."""
        return full
