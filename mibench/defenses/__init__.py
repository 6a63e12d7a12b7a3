"""Defenses, one file each. To add one: write the file, name it here."""

from mibench.defenses.adversarial import AdversarialTraining, AntiAdversarial
from mibench.defenses.bido import BiDO
from mibench.defenses.bido_plus import BiDOPlus
from mibench.defenses.bido_plus_energy import BiDOPlusEnergy
from mibench.defenses.dp_sgd import DPSGD
from mibench.defenses.erasing import RandomErasing
from mibench.defenses.label_smoothing import LabelSmoothing, RampedSmoothing
from mibench.defenses.low_rank import LowRank
from mibench.defenses.mid import MID
from mibench.defenses.release import (
    SSD,
    LabelOnly,
    Purifier,
    Release,
    Released,
    Rounding,
    ScoreNoise,
    TopK,
)
from mibench.defenses.skips import SSF, RoLSS
from mibench.defenses.transfer import TransferLearning
from mibench.defenses.trapdoor import TrapMID
from mibench.defenses.unilateral import Unilateral
from mibench.roles import Defense, NoDefense
from mibench.training.train import Recipe

DEFENSES: dict[str, type[Defense]] = {
    d.name: d
    for d in (
        NoDefense, MID, BiDO, Unilateral, LabelSmoothing, RampedSmoothing, TransferLearning,
        RandomErasing, TrapMID, LowRank, AntiAdversarial, AdversarialTraining, RoLSS, SSF,
        BiDOPlus, BiDOPlusEnergy, DPSGD, Rounding, TopK, ScoreNoise, LabelOnly, SSD, Purifier,
    )
}  # fmt: skip

__all__ = [
    "DEFENSES",
    "DPSGD",
    "MID",
    "SSD",
    "SSF",
    "AdversarialTraining",
    "AntiAdversarial",
    "BiDO",
    "BiDOPlus",
    "BiDOPlusEnergy",
    "LabelOnly",
    "LabelSmoothing",
    "LowRank",
    "NoDefense",
    "Purifier",
    "RampedSmoothing",
    "RandomErasing",
    "Recipe",
    "Release",
    "Released",
    "RoLSS",
    "Rounding",
    "ScoreNoise",
    "TopK",
    "TransferLearning",
    "TrapMID",
    "Unilateral",
]
