"""BiDO beside outliers told by their energy, Peng et al., TPAMI 2025, BiDO+, strategy "ER"."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.bido_plus import BiDOPlus
from mibench.roles import Batch, Helper
from mibench.types import Classifier, Images, Logits, Scalar

if TYPE_CHECKING:
    from mibench.data import Corpus
    from mibench.training.train import Recipe

NO_MARGINS = (
    "bido-plus-er takes its margins from all batches of an epoch but the last, and here an epoch "
    "has one: lower recipe.batch_size"
)


@dataclass(frozen=True)
class BiDOPlusEnergy(BiDOPlus):
    r"""BiDO that gives outliers a higher energy than private images, from ``start`` on.

    .. math:: \dots + \gamma \Big( \frac1n \sum_i (E(X_i) - m)_+^2
        + \frac1{n'} \sum_i (m' - E(O_i))_+^2 \Big), \qquad E = -\log \sum_k \exp f_k

    The margins m and m' are the mean energies of private images and outliers over the last epoch
    before ``start``, but for its last batch, as released: there must be such an epoch, of two
    batches or more. Before ``start`` outliers pass the
    network in any case, so ``early`` has no say. With BiDO's terms the released code takes
    energies of an earlier step and stops with an error; here they are the step's own.

    Attributes:
        gamma: Weight of both terms, at least 0; with 0 it is BiDO.
    """

    name: ClassVar[str] = "bido-plus-er"

    gamma: float = 0.1

    def assist(
        self, network: Classifier, recipe: "Recipe", corpus: "Corpus", rng: torch.Generator
    ) -> Helper:
        """Returns what holds the margins; raises ValueError where there would be none."""
        held_out = int(corpus.validation.sum()) if recipe.select == "validation" else 0
        images = len(corpus.train) - held_out
        if sentence := self._lack(recipe, min(recipe.batch_size, images)):
            raise ValueError(sentence)
        if self.gamma and recipe.planned_steps(images) < 2 * recipe.epochs:
            raise ValueError(NO_MARGINS)
        first = round(self.start * recipe.epochs)
        return Margins(rng, first if self.gamma else None).to(next(network.parameters()).device)

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Refuses recipes in which no epoch is before ``start``, or no batch has an outlier."""
        return self._lack(cell.recipe, cell.recipe.batch_size)

    def _lack(self, recipe: "Recipe", batch: int) -> str:
        """Returns why training with batches of this size cannot work; "" if it can."""
        if not (self.gamma and recipe.epochs):
            return ""
        if not round(self.start * recipe.epochs):
            return (
                f"{self.name} takes its margins from the epoch before defense.start, and "
                f"{self.start:g} of {recipe.epochs} epochs leaves none: raise defense.start or "
                "recipe.epochs"
            )
        if not round(self.share * batch):
            return (
                f"{self.name} takes means over outliers, and a share of {self.share:g} of "
                f"{batch} images is none: raise defense.share"
            )
        return ""

    def before(self, network: Classifier, batch: Batch, outliers: Images) -> dict[str, Scalar]:
        """Returns the terms of BiDO and notes energies."""
        assert isinstance(batch.helper, Margins), "the energies are noted in the helper"
        with torch.no_grad():
            other = network(outliers)
        zs = network.latents(batch.x)
        logits = network.head(zs[-1])
        batch.helper.note(energies(logits.detach()), energies(other))
        return self.terms_of(network, batch, zs, logits)

    def exposure(
        self, private: Logits, outliers: Float[Tensor, "m k"], batch: Batch
    ) -> dict[str, Scalar]:
        """Returns the term of both energies; raises ValueError without outliers."""
        assert isinstance(batch.helper, Margins), "the margins are in the helper"
        if not len(outliers):
            raise ValueError(
                f"{self.name} met a batch of {len(private)} without outliers: raise defense.share "
                "or recipe.batch_size"
            )
        own, other = batch.helper.margins.to(private.dtype)
        above = (energies(private) - own).relu().square().mean()
        below = (other - energies(outliers)).relu().square().mean()
        return {"E": self.gamma * (above + below)}


class Margins(Helper):
    """Mean energies of private images and of outliers.

    Attributes:
        first: The epoch, from 0 on, in which they are needed; None if none is.
        margins: Over the epoch's batches before the last one that was noted; 0 before the second.
        sums: Of the energies of the epoch.
        counts: How many these are.
    """

    margins: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, rng: torch.Generator, first: int | None = None) -> None:
        super().__init__(rng)
        self.first = first
        for name in ("margins", "sums", "counts"):
            self.register_buffer(name, torch.zeros(2, dtype=torch.float64))

    def epoch_begins(self, epoch: int) -> None:
        """Begins new sums; raises ValueError if there are no margins and they are needed now."""
        if epoch == self.first and not self.margins.any():
            raise ValueError(NO_MARGINS)
        self.sums.zero_()
        self.counts.zero_()

    def note(self, private: Float[Tensor, " n"], outliers: Float[Tensor, " m"]) -> None:
        """Takes the means so far for margins, and adds a batch to the sums."""
        self.margins.copy_(self.sums / self.counts.clamp(min=1))
        self.sums.add_(torch.stack([private.sum(), outliers.sum()]))
        self.counts.add_(self.counts.new_tensor([len(private), len(outliers)]))


def energies(logits: Logits) -> Float[Tensor, " n"]:
    """Returns the energy of each image."""
    return -logits.logsumexp(1)
