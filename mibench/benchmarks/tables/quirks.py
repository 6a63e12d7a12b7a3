"""What the released code's quirks change: the digits again, with one quirk each.

Rows have the labels of ``digits``, so `mibench compare` sets them side by side, seed by seed.
"""

from collections.abc import Iterable
from dataclasses import replace

from mibench.benchmarks.tables.base import Table
from mibench.benchmarks.tables.digits import DIGITS


def quirk(name: str, what: str, rows: Iterable[str], *settings: str, note: str = "") -> Table:
    """Returns the rows of ``digits`` that match, with fields set as released."""
    changed = DIGITS.only(rows).modified(settings)
    notes = (f"As digits but for {' and '.join(settings)}{note}.", *DIGITS.notes[1:])
    return replace(changed, name=name, caption=f"Digits as released: {what}.", notes=notes)


UNTRAINED_CRITIC = quirk(
    "digits-untrained-critic",
    "GMI's critic is a network that was never trained",
    ["GMI"],
    "attack.prior.critic=random",
)
TRAIN_LABELS = quirk(
    "digits-train-labels",
    "the target labels KED-MI's public images in training mode",
    ["KED-MI"],
    "attack.prior.labelling=train",
)
SELECT_TEST = quirk(
    "digits-select-test",
    "a target's epoch is chosen by the test images",
    ["GMI"],
    "recipe.select=test",
    note=": no train images are held out, and of equal epochs the first is taken, as released",
)
