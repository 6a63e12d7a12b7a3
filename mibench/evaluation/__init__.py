"""Metrics: how well an attack did, and how useful the target stayed. To add one: line."""

from mibench.evaluation.evidence import Evidence, UndefinedError
from mibench.evaluation.metrics import METRICS, Metric
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
    "Evidence",
    "Metric",
    "Protocol",
    "Score",
    "UndefinedError",
    "fields_of",
    "measure",
    "score",
    "summarise",
]
