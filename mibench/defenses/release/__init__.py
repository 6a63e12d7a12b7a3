"""Releases, one file each: what an owner makes of a trained target's scores before answering."""

from mibench.defenses.release.base import Release, Released
from mibench.defenses.release.label_only import LabelOnly
from mibench.defenses.release.rounding import Rounding
from mibench.defenses.release.top_k import TopK

__all__ = ["LabelOnly", "Release", "Released", "Rounding", "TopK"]
