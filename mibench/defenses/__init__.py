"""Defenses, one file each. To add one: write the file, name it here."""

from mibench.defenses.bido import BiDO
from mibench.defenses.mid import MID
from mibench.defenses.none import NoDefense
from mibench.defenses.unilateral import Unilateral
from mibench.roles import Defense
from mibench.training.train import Recipe

DEFENSES: dict[str, type[Defense]] = {d.name: d for d in (NoDefense, MID, BiDO, Unilateral)}

__all__ = ["DEFENSES", "MID", "BiDO", "NoDefense", "Recipe", "Unilateral"]
