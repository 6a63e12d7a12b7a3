"""Metrics: how well an attack did, and how useful the target stayed. To add one: file and name."""

from mibench.evaluation import (  # noqa: F401, I001 - metrics are listed in the order of this
    accuracy, panel, fid, kid, distance, similarity, manifold, pixels, traits,
)  # fmt: skip
from mibench.evaluation.evidence import Compared, Evidence, UndefinedError
from mibench.evaluation.lenses import Lens, Tools
from mibench.evaluation.metric import METRICS, Metric, metric
from mibench.evaluation.statistics import (
    PROTOCOLS,
    Protocol,
    Score,
    fields_of,
    measure,
    score,
    summarise,
)

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Compared",
    "Evidence",
    "Lens",
    "Metric",
    "Protocol",
    "Score",
    "Tools",
    "UndefinedError",
    "fields_of",
    "measure",
    "metric",
    "score",
    "summarise",
]
