"""mibench: defended classifiers, model-inversion attacks, and what the attacks recover.

The names that a table, an attack or a defense of your own needs are found here, and the
functions that compute and read results. They are loaded when first used, so that
``import mibench`` is quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mibench.api import evaluator, load, run, score, target
    from mibench.auditing import audit
    from mibench.benchmarks.cell import Cell
    from mibench.benchmarks.tables import Table
    from mibench.reporting.results import Results
    from mibench.roles import Attack, Defense, PriorSpec
    from mibench.types import Classifier, Prior, Reconstructions

__version__ = "0.2.0"
__all__ = [
    "Attack",
    "Cell",
    "Classifier",
    "Defense",
    "Prior",
    "PriorSpec",
    "Reconstructions",
    "Results",
    "Table",
    "audit",
    "evaluator",
    "load",
    "run",
    "score",
    "target",
]


def __getattr__(name: str) -> object:
    """Returns one of the names in ``__all__``."""
    import importlib

    homes = {
        "mibench.api": ("evaluator", "load", "run", "score", "target"),
        "mibench.auditing": ("audit",),
        "mibench.benchmarks.cell": ("Cell",),
        "mibench.benchmarks.tables": ("Table",),
        "mibench.reporting.results": ("Results",),
        "mibench.roles": ("Attack", "Defense", "PriorSpec"),
        "mibench.types": ("Classifier", "Prior", "Reconstructions"),
    }
    for home, names in homes.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'mibench' has no attribute {name!r}")
