"""Defenses, one file each. To add one: write the file, name it here."""

from mibench.defenses.bido import BiDO
from mibench.defenses.label_smoothing import LabelSmoothing
from mibench.defenses.mid import MID
from mibench.defenses.release import LabelOnly, Release, Released, Rounding, TopK
from mibench.defenses.unilateral import Unilateral
from mibench.roles import Defense, NoDefense
from mibench.training.train import Recipe

DEFENSES: dict[str, type[Defense]] = {
    d.name: d
    for d in (NoDefense, MID, BiDO, Unilateral, LabelSmoothing, Rounding, TopK, LabelOnly)
}

__all__ = [
    "DEFENSES",
    "MID",
    "BiDO",
    "LabelOnly",
    "LabelSmoothing",
    "NoDefense",
    "Recipe",
    "Release",
    "Released",
    "Rounding",
    "TopK",
    "Unilateral",
]
