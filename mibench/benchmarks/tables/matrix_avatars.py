"""Every attack against every defense in training, and black-box ones against releases.

Attacks are those of ``attacks-avatars``, defenses those of ``defenses-avatars`` at their middle
strength, so what these tables have computed is here already.
"""

from mibench.benchmarks.tables.attacks_avatars import BLACK_BOX, WHITE_BOX
from mibench.benchmarks.tables.avatars import NOTES
from mibench.benchmarks.tables.base import Table
from mibench.benchmarks.tables.defenses_avatars import (
    BARE,
    RELEASES,
    TRAINED,
    UNFROZEN,
    against,
    middle,
)
from mibench.defenses import NoDefense

IN_TRAINING = {
    "No Def.": NoDefense(),
    **middle(TRAINED),
    BARE: NoDefense(),
    UNFROZEN: NoDefense(),
}

MATRIX_AVATARS = Table(
    name="matrix-avatars",
    caption="All attacks against defenses on drawn portraits, 32x32, at small budgets.",
    rows={
        label: cell
        for title in WHITE_BOX | BLACK_BOX
        for label, cell in against(
            title, IN_TRAINING | (RELEASES if title in BLACK_BOX else {})
        ).items()
    },
    columns=("accuracy", "attack_acc", "trait_leakage", "trait_acc"),
    worst=True,
    notes=(
        "In brackets: the middle strength of each defense in defenses-avatars, which says how it "
        "was chosen. RoLSS and SSF defend another network, an IR with skip connections, and "
        "TL-DMI one that starts from trained blocks; each has its own row without a defense. "
        "DP-SGD has a recipe of its own; its twin has a row in defenses-avatars, as those of MID "
        "and Trap-MID have.",
        "Attacks that see all of the target, from GMI to MI-Face, have no row against defenses "
        "that change answers only: these do not stand in their way.",
        *NOTES,
    ),
)
