"""Table 5 of Peng et al., KDD 2022, on the digits: which of BiDO's two terms does what."""

from mibench.benchmarks.tables import digits
from mibench.benchmarks.tables.base import Table, versus
from mibench.defenses import BiDO
from mibench.evaluation import Protocol
from mibench.roles import Defense

COCO, HSIC = (1, 50), (0.05, 0.5)
ABLATION: dict[str, Defense] = {
    "neither": digits.DEFENSES["No Def."][1],
    "COCO, X only": BiDO("coco_frobenius", lambda_x=COCO[0], lambda_y=0),
    "COCO, Y only": BiDO("coco_frobenius", lambda_x=0, lambda_y=COCO[1]),
    "COCO, both": BiDO("coco_frobenius", *COCO),
    "HSIC, X only": BiDO("nhsic", lambda_x=HSIC[0], lambda_y=0),
    "HSIC, Y only": BiDO("nhsic", lambda_x=0, lambda_y=HSIC[1]),
    "HSIC, both": BiDO("nhsic", *HSIC),
}
ATTACK, TRIALS = digits.ATTACKS["KED-MI"]

TABLE5_DIGITS = Table(
    name="table5-digits",
    caption="Ablation of BiDO against KED-MI on 16x16 digits.",
    source="Table 5, Peng et al. 2022",
    rows=versus(
        digits.SETTING,
        ATTACK,
        TRIALS,
        Protocol(),
        {label: (digits.RECIPE, defense) for label, defense in ABLATION.items()},
        "KED-MI",
    ),
    columns=("accuracy", "attack_acc"),
    notes=(
        "The weights are those of digits. neither: no defense, which is what BiDO of "
        "weight zero is under one recipe.",
        *digits.DIGITS.notes[2:],
    ),
)
