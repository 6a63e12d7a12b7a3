"""A defense of your own in one file: ``mibench run examples/label_smoothing.py``.

A defense is a loss: it names the terms whose sum is minimised on each batch. ``network(x)``
gives logits, ``network.latents(x)`` the layers Z_1..Z_M. Negative smoothing is the defense of
Struppek et al., ICLR 2024, https://arxiv.org/abs/2310.06549.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from mibench import Classifier, Defense, Table
from mibench.benchmarks.tables import TABLES
from mibench.roles import Batch


@dataclass(frozen=True)
class LabelSmoothing(Defense):
    """Cross-entropy against (1 - alpha) one-hot + alpha / k, the same in all epochs.

    Attributes:
        alpha: Smoothing; below 0 it pushes other classes away.
    """

    name: ClassVar[str] = "constant-smoothing"

    alpha: float

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Tensor]:
        """Returns the one term."""
        log = network(batch.x).log_softmax(1)
        own = log.gather(1, batch.y[:, None])[:, 0]
        return {"task": -((1 - self.alpha) * own + self.alpha * log.mean(1)).mean()}


PLAIN = TABLES["smoke"].rows["GMI / No Def."]
TABLE = Table(
    name="label-smoothing",
    caption="Label smoothing against GMI on 8x8 digits.",
    rows={"GMI / No Def.": PLAIN}
    | {f"GMI / alpha {a}": replace(PLAIN, defense=LabelSmoothing(a)) for a in (0.1, -0.05)},
)
