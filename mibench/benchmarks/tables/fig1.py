"""Figure 1 of Peng et al., KDD 2022: forgetting the input at the output alone costs utility.

The weight of d(X, Ŷ) is swept; the training curves are the figure.
"""

from dataclasses import replace

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Trials
from mibench.benchmarks.tables import digits, table3
from mibench.benchmarks.tables.base import Table, versus
from mibench.defenses import Recipe
from mibench.defenses.unilateral import Unilateral
from mibench.evaluation import Protocol

WEIGHTS = (0, 1, 10, 30, 100, 300, 1000)
NOTES = (
    "d is COCO (Frobenius form) of the input, with a Gaussian kernel, and the logits, with a "
    "linear one.",
)


def sweep(recipe: Recipe) -> dict[str, tuple[Recipe, Unilateral]]:
    """Returns one row per weight."""
    return {f"λ = {weight}": (recipe, Unilateral(lambda_=weight)) for weight in WEIGHTS}


FIG1 = Table(
    name="fig1",
    caption="Unilateral dependency optimization on MNIST.",
    source="Figure 1, Peng et al. 2022",
    columns=("accuracy", "attack_acc"),
    rows=versus(
        table3.ON_MNIST,
        GMI(WGANGP(epochs=20), steps=300),
        Trials(classes=5, samples=20),
        Protocol(),
        sweep(replace(table3.SGD, select="validation")),
        "GMI",
    ),
    notes=NOTES,
)
FIG1_DIGITS = Table(
    name="fig1-digits",
    caption="Unilateral dependency optimization on 16x16 digits.",
    source="Figure 1, Peng et al. 2022",
    columns=("accuracy", "attack_acc"),
    rows=versus(
        digits.SETTING,
        GMI(digits.WGAN, steps=300),
        Trials(classes=5, samples=20),
        Protocol(),
        sweep(digits.RECIPE),
        "GMI",
    ),
    notes=NOTES,
)
