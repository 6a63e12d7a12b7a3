"""The weight of each defense swept, to compare defenses at equal accuracy.

Weights go from weak to where the accuracy on the held-out train images falls; they were chosen
by that alone.
"""

from collections.abc import Mapping

from mibench.benchmarks.cell import Setting, Trials
from mibench.benchmarks.tables import avatars, digits
from mibench.benchmarks.tables.base import Table, versus
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.roles import Attack, Defense

Sweep = Mapping[str, Mapping[str, Defense]]


def sweep(
    mid: tuple[float, ...], coco: tuple[float, ...], hsic: tuple[float, ...]
) -> dict[str, dict[str, Defense]]:
    """Returns curve → label → defense: λ of MID, and λx of BiDO with either measure."""
    return {
        "No Def.": {"No Def.": NoDefense()},
        "MID": {f"MID ({x:g})": MID(lambda_=x) for x in mid},
        "BiDO-COCO": {
            f"BiDO-COCO ({x:g}, {50 * x:g})": BiDO("coco_frobenius", lambda_x=x, lambda_y=50 * x)
            for x in coco
        },
        "BiDO-HSIC": {
            f"BiDO-HSIC ({x:g}, 0.5)": BiDO("nhsic", lambda_x=x, lambda_y=0.5) for x in hsic
        },
    }


def tradeoff(
    name: str,
    images: str,
    setting: Setting,
    attack: Attack,
    trials: Trials,
    protocol: Protocol,
    recipe: Recipe,
    curves: Sweep,
    chosen: str,
    notes: tuple[str, ...],
    columns: tuple[str, ...] = ("accuracy", "attack_acc"),
) -> Table:
    """Returns KED-MI against every weight of every defense."""
    defenses = {label: (recipe, d) for curve in curves.values() for label, d in curve.items()}
    return Table(
        name=name,
        caption=f"KED-MI on {images}, over the weight of each defense.",
        rows=versus(setting, attack, trials, protocol, defenses, "KED-MI"),
        columns=columns,
        curves={
            curve: tuple(f"KED-MI / {label}" for label in labels)
            for curve, labels in curves.items()
        },
        notes=(
            "In brackets λ of MID, and λx and λy of BiDO: with COCO λy is 50 λx, with HSIC it is "
            f"0.5. They were chosen by the accuracy on held-out train images{chosen}.",
            *notes,
        ),
    )


TRADEOFF_DIGITS = tradeoff(
    "tradeoff-digits",
    "16x16 digits",
    digits.SETTING,
    *digits.ATTACKS["KED-MI"],
    Protocol(),
    digits.RECIPE,
    sweep((0.02, 0.3, 1, 2), (1, 5, 15, 50), (0.05, 0.2, 0.5, 1)),
    ", seed 0",
    digits.DIGITS.notes[1:],
)
TRADEOFF_AVATARS = tradeoff(
    "tradeoff-avatars",
    "drawn portraits",
    avatars.SETTING,
    avatars.KED,
    avatars.TWENTY,
    avatars.PROTOCOL,
    avatars.RECIPE,
    sweep((0.02, 0.05, 0.1), (1, 2.5, 5), (0.05, 0.2, 0.6)),
    " of other persons (setting.task.cast=99)",
    avatars.NOTES,
    ("accuracy", "attack_acc", "trait_leakage", "trait_leakage_second"),
)
