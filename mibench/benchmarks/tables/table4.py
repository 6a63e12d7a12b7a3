"""Table 4 of Peng et al., KDD 2022: VMI on CelebA, as published and controlled.

Twenty identities, a hundred draws each; means and deviations are across identities. As
published, the moment at which each identity is scored is the one its evaluator liked best.
"""

from dataclasses import replace

from mibench.attacks import VMI, StyleGAN2
from mibench.attacks.vmi import BUDGETS
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables.base import Table, controlled, versus
from mibench.data import CelebAVMI
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import IRSE50, ResNet34
from mibench.roles import Defense

SETTING = Setting(
    CelebAVMI(),
    ResNet34(),
    (
        Evaluator(
            IRSE50(),
            Recipe(
                epochs=14, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4,
                select="last",
            ),
        ),
    ),
)  # fmt: skip
RECIPE = Recipe(
    epochs=100, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4,
    milestones=(60, 80), gamma=0.2, augment=("cutout",), select="test",
)  # fmt: skip
DEFENSES: dict[str, tuple[Recipe, Defense]] = {
    "No Def.": (replace(RECIPE, epochs=200, milestones=(60, 120, 160)), NoDefense()),
    "MID": (RECIPE, MID(lambda_=0)),
    "BiDO-COCO": (RECIPE, BiDO("coco_frobenius", lambda_x=0.05, lambda_y=2.5)),
    "BiDO-HSIC": (RECIPE, BiDO("nhsic", lambda_x=0.1, lambda_y=2)),
}
TRIALS = Trials(classes=20, samples=100, block=20)
PROTOCOL = Protocol(spread="identity", real=100, real_part="all", select="evaluator")
ATTACK = VMI(StyleGAN2(), levels=3, **BUDGETS["kdd22"])  # type: ignore[arg-type]
COLUMNS = ("accuracy", "attack_acc", "attack_acc5", "fid_identity", "fid_identity_floor")

TABLE4 = Table(
    name="table4",
    heavy=True,
    caption="VMI on CelebA, as published.",
    source="Table 4, Peng et al. 2022",
    columns=COLUMNS,
    rows=versus(SETTING, ATTACK, TRIALS, PROTOCOL, DEFENSES, "VMI"),
    reported={
        "VMI / No Def.": {
            "accuracy": (69.27, None), "attack_acc": (36.90, 22.70), "attack_acc5": (61.50, None),
            "fid_identity": (0.9295, None),
        },
        "VMI / MID": {"accuracy": (52.52, None), "attack_acc": (29.05, None)},
        "VMI / BiDO-COCO": {"accuracy": (59.34, None), "attack_acc": (29.45, None)},
        "VMI / BiDO-HSIC": {"accuracy": (61.14, None), "attack_acc": (30.25, None)},
    },
    notes=(
        "As released: weights are selected on the test images; the target without a defense is "
        "trained twice as long; MID has weight 0, so only its bottleneck is left.",
        "COCO is the Frobenius form and HSIC the normalised form of the released code. COCO's "
        "weights (0.05, 2.5) look like HSIC's; at COCO's scale they add next to nothing.",
        "The released choice of identities depends on the sorting routine; this one does not, "
        "so its identities are others.",
        "The evaluation classifier starts from scratch unless weights are given; the paper's "
        "started from a face embedding and reached about 97.4 %.",
    ),
)  # fmt: skip
TABLE4_CONTROLLED = Table(
    name="table4-controlled",
    heavy=True,
    caption="VMI on CelebA, under control.",
    source="Table 4, Peng et al. 2022",
    columns=COLUMNS,
    rows=versus(
        SETTING,
        replace(ATTACK, snapshots=0),
        TRIALS,
        replace(PROTOCOL, select="last"),
        controlled(
            replace(RECIPE, select="validation"), DEFENSES, {"BiDO (0)": BiDO("nhsic", 0, 0)}
        ),
        "VMI",
    ),
    notes=(
        "One recipe for all rows, selection on held-out train images, and the samples of the "
        "attack's last step. MID has weight 0: only its bottleneck is left.",
        *TABLE4.notes[1:],
    ),
)
