"""Tables 1, 2 and 5 of Peng et al., KDD 2022: CelebA, as published and under control.

As published, the rows differ in more than the defense: no defense and MID are trained with
SGD at 1e-2, BiDO with Adam at 1e-4, and weights are selected on the test images. The
controlled tables give every row BiDO's recipe and a held-out selection, and each defense a
twin of weight zero.
"""

from collections.abc import Mapping
from dataclasses import replace

from mibench.attacks import GMI, KEDMI, WGANGP, InversionGAN
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables.base import TWINS, Reported, Table, controlled, versus
from mibench.data import CelebA
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import VGG16, FaceNet
from mibench.roles import Defense

SGD = Recipe(
    epochs=50, optimizer="sgd", lr=1e-2, momentum=0.9, weight_decay=1e-4, sampler="balanced",
    augment=("flip",), select="test",
)  # fmt: skip
NESTEROV = replace(SGD, nesterov=True)
ADAM = Recipe(epochs=50, lr=1e-4, sampler="balanced", augment=("flip",), select="test")
CONTROLLED = replace(ADAM, select="validation")

SETTING = Setting(
    CelebA(),
    VGG16(),
    (
        Evaluator(
            FaceNet(),
            Recipe(
                epochs=30, optimizer="sgd", lr=1e-2, momentum=0.9, weight_decay=1e-4,
                augment=("flip",), select="last",
            ),
        ),
    ),
)  # fmt: skip
TRIALS = Trials(classes=300, samples=5, block=60)
KDD22 = Protocol(spread="block", real=5, fid="fid_stretched")
RAW = Protocol(real=5)
ATTACK_GMI = GMI(WGANGP(), steps=2000)
ATTACK_KED = KEDMI(InversionGAN(labelling="train"), steps=5000)
ATTACK_KED_CONTROLLED = replace(ATTACK_KED, prior=InversionGAN())

DEFENSES: dict[str, tuple[Recipe, Defense]] = {
    "No Def.": (NESTEROV, NoDefense()),
    "MID (a)": (SGD, MID(lambda_=0.02)),
    "MID (b)": (SGD, MID(lambda_=0.01)),
    "MID (c)": (SGD, MID(lambda_=0.003)),
    "BiDO-COCO (a)": (ADAM, BiDO("coco_frobenius", lambda_x=15, lambda_y=75)),
    "BiDO-COCO (b)": (ADAM, BiDO("coco_frobenius", lambda_x=10, lambda_y=50)),
    "BiDO-COCO (c)": (ADAM, BiDO("coco_frobenius", lambda_x=5, lambda_y=25)),
    "BiDO-HSIC (a)": (ADAM, BiDO("nhsic", lambda_x=0.05, lambda_y=2.5)),
    "BiDO-HSIC (b)": (ADAM, BiDO("nhsic", lambda_x=0.05, lambda_y=1)),
    "BiDO-HSIC (c)": (ADAM, BiDO("nhsic", lambda_x=0.05, lambda_y=0.5)),
}
ABLATION: dict[str, tuple[Recipe, Defense]] = {
    "neither": (ADAM, BiDO("nhsic", lambda_x=0, lambda_y=0)),
    "COCO, X only": (ADAM, BiDO("coco_frobenius", lambda_x=10, lambda_y=0)),
    "COCO, Y only": (ADAM, BiDO("coco_frobenius", lambda_x=0, lambda_y=50)),
    "COCO, both": (ADAM, BiDO("coco_frobenius", lambda_x=10, lambda_y=50)),
    "HSIC, X only": (ADAM, BiDO("nhsic", lambda_x=0.1, lambda_y=0)),
    "HSIC, Y only": (ADAM, BiDO("nhsic", lambda_x=0, lambda_y=1)),
    "HSIC, both": (ADAM, BiDO("nhsic", lambda_x=0.1, lambda_y=1)),
}


def reported(
    attack: str, columns: str, rows: Mapping[str, tuple[float | tuple[float, float], ...]]
) -> dict[str, Reported]:
    """Returns a paper's numbers, or pairs with their deviation, by row label.

    Columns are named in one string.
    """
    return {
        f"{attack} / {label}": {
            column: value if isinstance(value, tuple) else (value, None)
            for column, value in zip(columns.split(), values, strict=True)
        }
        for label, values in rows.items()
    }


ACCURACY = {
    "No Def.": 86.21,
    "MID (a)": 53.94, "MID (b)": 68.39, "MID (c)": 78.70,
    "BiDO-COCO (a)": 53.39, "BiDO-COCO (b)": 74.53, "BiDO-COCO (c)": 81.55,
    "BiDO-HSIC (a)": 53.49, "BiDO-HSIC (b)": 70.31, "BiDO-HSIC (c)": 80.35,
}  # fmt: skip
ATTACK_ACC_GMI = {
    "No Def.": 16.73,
    "MID (a)": 8.13, "MID (b)": 12.40, "MID (c)": 15.73,
    "BiDO-COCO (a)": 7.40, "BiDO-COCO (b)": 11.00, "BiDO-COCO (c)": 13.67,
    "BiDO-HSIC (a)": 1.67, "BiDO-HSIC (b)": 3.13, "BiDO-HSIC (c)": 6.47,
}  # fmt: skip
FURTHER_GMI: dict[str, Reported] = {
    "GMI / No Def.": {
        "attack_acc": (16.73, 3.32), "attack_acc5": (35.93, 4.88), "fid": (128.81, None),
    },
    "GMI / MID (a)": {"attack_acc5": (20.33, None)},
    "GMI / MID (b)": {"attack_acc5": (27.93, None)},
    "GMI / MID (c)": {"attack_acc5": (35.27, None)},
    "GMI / BiDO-COCO (b)": {"fid": (136.49, None)},
    "GMI / BiDO-HSIC (b)": {"fid": (136.49, None)},
    "GMI / BiDO-HSIC (c)": {"fid": (134.63, None)},
}  # fmt: skip
"""What else is known of Table 1; other cells of these columns, and deviations, are not."""
AS_RELEASED = (
    "As released: weights are selected on the test images, FID is of images stretched one by "
    "one, and recipes differ between rows (SGD for No Def. and MID, Adam for BiDO).",
    "COCO is the Frobenius form and HSIC the normalised form of the released code, to which "
    "the published weights belong.",
    "The evaluation classifier starts from scratch unless weights are given; the paper's "
    "started from MS1M and reached 95.88 %.",
)
UNDER_CONTROL = (
    "One recipe for all rows (BiDO's), selection on held-out train images, and twins of weight "
    "zero: what is left between rows is the defense.",
    AS_RELEASED[1],
    AS_RELEASED[2],
)

ABLATED = (
    'One recipe for all rows (BiDO\'s) and selection on held-out train images; "neither" is the '
    "twin of weight zero of both measures."
)

TABLE1 = Table(
    name="table1",
    heavy=True,
    caption="GMI on CelebA, as published.",
    source="Table 1, Peng et al. 2022",
    rows=versus(SETTING, ATTACK_GMI, TRIALS, KDD22, DEFENSES, "GMI"),
    reported={
        label: {**row, **FURTHER_GMI.get(label, {})}
        for label, row in reported(
            "GMI",
            "accuracy attack_acc",
            {label: (ACCURACY[label], ATTACK_ACC_GMI[label]) for label in DEFENSES},
        ).items()
    },
    notes=(
        *AS_RELEASED,
        "The released code attacked with an untrained critic: set attack.prior.critic=random.",
        "BiDO-COCO (c) is (5, 25): the paper's (5, 50) has another accuracy in its own scripts.",
        "Of the reported FIDs, the paper's text contradicts that of BiDO-HSIC (c): 143.63 in the "
        "text, 134.63 in the table. BiDO-COCO (b) and BiDO-HSIC (b) have the same FID there, "
        "136.49. Acc5 and FID of the other rows, and most deviations, are not known here.",
    ),
)
TABLE2 = Table(
    name="table2",
    heavy=True,
    caption="KED-MI on CelebA, as published.",
    source="Table 2, Peng et al. 2022",
    rows=versus(SETTING, ATTACK_KED, TRIALS, KDD22, DEFENSES, "KED-MI"),
    reported=reported(
        "KED-MI",
        "accuracy attack_acc attack_acc5 fid",
        {
            "No Def.": (86.21, (75.93, 3.65), (93.80, 2.51), 213.43),
            "MID (a)": (53.94, 32.67, 63.20, 290.96),
            "MID (b)": (68.39, 54.73, 79.67, 278.85),
            "MID (c)": (78.70, 69.60, 92.00, 235.61),
            "BiDO-COCO (a)": (53.39, 37.00, 68.20, 286.70),
            "BiDO-COCO (b)": (74.53, 48.73, 75.53, 266.28),
            "BiDO-COCO (c)": (81.55, 62.93, 88.27, 225.70),
            "BiDO-HSIC (a)": (53.49, 16.87, 35.73, 299.04),
            "BiDO-HSIC (b)": (70.31, 31.00, 60.00, 290.95),
            "BiDO-HSIC (c)": (80.35, 46.53, 73.00, 250.88),
        },
    ),
    notes=(
        *AS_RELEASED,
        "As released: the target labels public images in training mode.",
        "BiDO-COCO (c) is (5, 25): the paper's (5, 50) has another accuracy in its own scripts.",
    ),
)
TABLE5 = Table(
    name="table5",
    heavy=True,
    caption="Ablation of BiDO against KED-MI on CelebA, as published.",
    source="Table 5, Peng et al. 2022",
    rows=versus(SETTING, ATTACK_KED, TRIALS, KDD22, ABLATION, "KED-MI"),
    columns=("accuracy", "attack_acc"),
    reported=reported(
        "KED-MI",
        "accuracy attack_acc",
        {
            "neither": (85.31, 62.73),
            "COCO, X only": (85.04, 63.40),
            "COCO, Y only": (75.13, 59.00),
            "COCO, both": (74.53, 48.73),
            "HSIC, X only": (0.83, 0.67),
            "HSIC, Y only": (64.73, 27.47),
            "HSIC, both": (76.36, 31.40),
        },
    ),
    notes=(*AS_RELEASED, "As released: the target labels public images in training mode."),
)


def under_control(
    table: Table, rows: dict[str, tuple[Recipe, Defense]], twins: dict[str, Defense], title: str
) -> Table:
    """Returns a table with one recipe for all rows, and twins; nothing is reported for it.

    The ablation needs no twins: its row "neither" is one.
    """
    attack = {"GMI": ATTACK_GMI, "KED-MI": ATTACK_KED_CONTROLLED}[title]
    return replace(
        table,
        name=f"{table.name}-controlled",
        caption=table.caption.replace("as published", "under control"),
        rows=versus(SETTING, attack, TRIALS, RAW, controlled(CONTROLLED, rows, twins), title),
        reported={},
        notes=UNDER_CONTROL if twins else (ABLATED, *UNDER_CONTROL[1:]),
    )


TABLE1_CONTROLLED = under_control(TABLE1, DEFENSES, TWINS, "GMI")
TABLE2_CONTROLLED = under_control(TABLE2, DEFENSES, TWINS, "KED-MI")
TABLE5_CONTROLLED = under_control(TABLE5, ABLATION, {}, "KED-MI")
