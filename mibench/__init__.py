"""mibench: defended classifiers, model-inversion attacks, and what the attacks recover.

The eight names that a table, an attack or a defense of your own needs are found here; they
are loaded when first used, so that ``import mibench`` is quick.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mibench.benchmarks.cell import Cell
    from mibench.benchmarks.tables import Table
    from mibench.roles import Attack, Defense, PriorSpec
    from mibench.types import Classifier, Prior, Reconstructions

__version__ = "0.2.0.dev0"
__all__ = [
    "Attack",
    "Cell",
    "Classifier",
    "Defense",
    "Prior",
    "PriorSpec",
    "Reconstructions",
    "Table",
]


def __getattr__(name: str) -> object:
    """Returns one of the names in ``__all__``."""
    import importlib

    homes = {
        "Cell": "mibench.benchmarks.cell", "Table": "mibench.benchmarks.tables",
        "Attack": "mibench.roles", "Defense": "mibench.roles", "PriorSpec": "mibench.roles",
    }  # fmt: skip
    if name not in __all__:
        raise AttributeError(f"module 'mibench' has no attribute {name!r}")
    return getattr(importlib.import_module(homes.get(name, "mibench.types")), name)
