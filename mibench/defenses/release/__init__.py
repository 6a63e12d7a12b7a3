"""Releases, one file each: what an owner makes of a trained target's scores before answering."""

from mibench.defenses.release.base import Release, Released
from mibench.defenses.release.label_only import LabelOnly
from mibench.defenses.release.purifier import Purifier
from mibench.defenses.release.rounding import Rounding
from mibench.defenses.release.score_noise import ScoreNoise
from mibench.defenses.release.ssd import SSD
from mibench.defenses.release.top_k import TopK

__all__ = [
    "SSD", "LabelOnly", "Purifier", "Release", "Released", "Rounding", "ScoreNoise", "TopK",
]  # fmt: skip
