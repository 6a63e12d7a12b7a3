"""Every defense at three strengths on drawn portraits, beside its twin, against four attacks.

The attacks are those of ``attacks-avatars``, so what that table has computed is here already.

Strengths of MID and BiDO are those of ``tradeoff-avatars``; the middle ones of others are their
authors', where they name any that fit.
"""

from collections.abc import Mapping
from dataclasses import replace

from mibench.benchmarks.cell import Cell
from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.attacks_avatars import BLACK_BOX, WHITE_BOX
from mibench.benchmarks.tables.avatars import NOTES, PROTOCOL, RECIPE, SETTING
from mibench.benchmarks.tables.base import Table
from mibench.defenses import (
    DPSGD,
    MID,
    SSD,
    SSF,
    AdversarialTraining,
    AntiAdversarial,
    BiDO,
    BiDOPlus,
    BiDOPlusEnergy,
    LabelOnly,
    LabelSmoothing,
    LowRank,
    NoDefense,
    Purifier,
    RampedSmoothing,
    RandomErasing,
    RoLSS,
    Rounding,
    ScoreNoise,
    TopK,
    TransferLearning,
    TrapMID,
    Unilateral,
)
from mibench.networks import FaceNet, Pretrained, Weights
from mibench.roles import Defense

Strengths = Mapping[str, Defense]
"""What stands in a label's parentheses → the defense; from weak to strong."""

FACE = replace(SETTING, network=FaceNet(width=0.25, size=32, blocks=(1, 1, 1, 1)))
"""The same with a target that has skip connections."""
PRETRAINED = replace(
    SETTING,
    network=Pretrained(
        SETTING.network,
        Weights(
            "mcnn-79d8ed4b.safetensors",
            "79d8ed4bbcbc31478b1dcef1cd78870826904d6081d94a7a3c2cc025788ac5ae",
        ),
    ),
)
"""The same with a target that starts from layers trained on 500 other persons."""
POISSON = replace(RECIPE, sampler="poisson", select="last")
"""What the epsilon of DP-SGD holds for."""
BARE = "No Def. (IR)"
UNFROZEN = "No Def. (pretrained)"
SETTINGS = {
    **dict.fromkeys(("RoLSS", "SSF", BARE), FACE),
    **dict.fromkeys(("TL-DMI", UNFROZEN), PRETRAINED),
}
"""Row or defense → its setting, where this is another one."""
UNDEFENDED: Strengths = {
    "No Def.": NoDefense(),
    "MID (0)": MID(lambda_=0),
    "Trap-MID (0)": TrapMID(beta=0),
    "DP-SGD (0)": DPSGD().twin(),
}
TRAINED: dict[str, Strengths] = {
    "MID": {f"{x:g}": MID(lambda_=x) for x in (0.02, 0.05, 0.1)},
    "BiDO-COCO": {
        f"{x:g}, {50 * x:g}": BiDO("coco_frobenius", lambda_x=x, lambda_y=50 * x)
        for x in (1, 2.5, 5)
    },
    "BiDO-HSIC": {
        f"{x:g}, 0.5": BiDO("nhsic", lambda_x=x, lambda_y=0.5) for x in (0.05, 0.2, 0.6)
    },
    "BiDO+": {
        f"{x:g}": BiDOPlus("nhsic", lambda_x=0.05, lambda_y=0.5, gamma=x)
        for x in (1e-4, 1e-3, 1e-2)
    },
    "BiDO+, ER": {
        f"{x:g}": BiDOPlusEnergy("nhsic", lambda_x=0.05, lambda_y=0.5, gamma=x)
        for x in (0.01, 0.1, 1)
    },
    "Unilateral": {f"{x:g}": Unilateral(lambda_=x) for x in (1, 10, 30)},
    "Label smoothing": {f"{x:g}": LabelSmoothing(alpha=x) for x in (-0.01, -0.05, -0.2)},
    "Label smoothing, ramp": {f"{x:g}": RampedSmoothing(alpha=x) for x in (-0.01, -0.05, -0.2)},
    "TL-DMI": {f"{n} of 3": TransferLearning(last_frozen=f"blocks.{n - 1}") for n in (1, 2, 3)},
    "MIDRE": {f"{x:g}": RandomErasing(area_max=x) for x in (0.2, 0.4, 0.8)},
    "LoFt": {f"{x}": LowRank(rank=x) for x in (24, 16, 8)},
    "Trap-MID": {f"{x:g}": TrapMID(beta=x) for x in (0.05, 0.2, 0.5)},
    "AT-AT": {f"{x:g}": AntiAdversarial(weight=x) for x in (0.02, 0.08, 0.3)},
    "Adversarial training": {
        f"{x:g}": AdversarialTraining(epsilon=x, rate=x / 2.5, steps=5)
        for x in (0.002, 0.005, 0.02)
    },
    "DP-SGD": {f"{x:g}": DPSGD(noise=x) for x in (0.01, 0.1, 0.5)},
    "SSF": {f"{x:g}": SSF(scales=(1, 1, 1, x)) for x in (0.5, 0.2, 0.1)},
    "RoLSS": {
        "1, 0.6": RoLSS(scales=(1, 1, 1, 0.6)),
        "1, 0": RoLSS(scales=(1, 1, 1, 0)),
        "0, 0": RoLSS(scales=(1, 1, 0, 0)),
    },
}
RELEASED: dict[str, Strengths] = {
    "Rounding": {f"{d}": Rounding(decimals=d) for d in (3, 2, 1)},
    "Top-k": {f"{k}": TopK(k=k) for k in (10, 3, 1)},
    "Score noise": {f"{x:g}": ScoreNoise(std=x) for x in (0.01, 0.1, 0.5)},
    "SSD": {f"{x:g}": SSD(epsilon=x) for x in (0.1, 0.5, 1.5)},
    "Purifier": {f"{x:g}": Purifier(lambda_=x) for x in (0.05, 0.2, 1)},
}
ATTACKS = WHITE_BOX | BLACK_BOX
BY_SCORES = ("Top-k", "Label-only")
"""After these the most likely class is what it was: a label-only attack meets the same answers."""


def middle(sweeps: Mapping[str, Strengths]) -> Strengths:
    """Returns the second strength of each defense, by its label."""
    return {f"{name} ({list(at)[1]})": list(at.values())[1] for name, at in sweeps.items()}


def others(sweeps: Mapping[str, Strengths]) -> Strengths:
    """Returns the first and the third."""
    return {
        f"{name} ({strength})": defense
        for name, at in sweeps.items()
        for i, (strength, defense) in enumerate(at.items())
        if i != 1
    }


def against(title: str, defenses: Strengths) -> dict[str, Cell]:
    """Returns the rows of one attack."""
    attack, trials = ATTACKS[title]
    cells = {}
    for label, defense in defenses.items():
        name = Row.of(label).defense
        setting = SETTINGS.get(label, SETTINGS.get(name, SETTING))
        recipe = POISSON if name == "DP-SGD" else RECIPE
        cells[f"{title} / {label}"] = Cell(setting, recipe, defense, attack, trials, PROTOCOL)
    return cells


USUAL = {**UNDEFENDED, **middle(TRAINED), BARE: NoDefense(), UNFROZEN: NoDefense()}
RELEASES = {**middle(RELEASED), "Label-only": LabelOnly()}
DEFENSES_AVATARS = Table(
    name="defenses-avatars",
    caption="Defenses of today on drawn portraits, 32x32, and what attacks make of them.",
    rows={
        **against("KED-MI", USUAL),
        **against("PPA", USUAL),
        **against("BREP-MI", USUAL),
        **against("MIRROR, black box", {"No Def.": NoDefense(), **RELEASES}),
        **against(
            "BREP-MI", {k: d for k, d in RELEASES.items() if Row.of(k).defense not in BY_SCORES}
        ),
        **against("KED-MI", others(TRAINED)),
        **against("MIRROR, black box", others(RELEASED)),
    },
    columns=("accuracy", "attack_acc", "trait_leakage", "trait_acc"),
    worst=True,
    curves={"No Def.": ("KED-MI / No Def.",)}
    | {
        name: tuple(f"KED-MI / {name} ({strength})" for strength in at)
        for name, at in TRAINED.items()
    },
    notes=(
        "In brackets: λ of MID, Unilateral and Purifier; λx and λy of BiDO; γ of BiDO+, whose λ "
        "are those of BiDO-HSIC (0.05, 0.5); α of label smoothing; how many of its three blocks "
        "TL-DMI freezes; the largest area that MIDRE erases; rank of LoFt; β of Trap-MID; weight "
        "of AT-AT; ε of adversarial training and SSD; noise of DP-SGD and of scores; k of SSF's "
        "last stage and of RoLSS's last two.",
        "Strengths of MID, BiDO, Unilateral and LoFt were chosen by the accuracy on other persons "
        "(setting.task.cast=99); the middle ones of others are their authors', where they name "
        "any. No attack was asked. The ramp has the α and schedule of label smoothing, so that "
        "only the ramp differs; LoFt's own are -0.02 and 50, 25 and 50 epochs. DP-SGD has its own "
        "recipe.",
        "Twins are marked (0), where a defense changes more than its loss. RoLSS and SSF defend "
        "another network, an IR with skip connections, and their twin is No Def. (IR). TL-DMI "
        "defends a network whose blocks come trained, on 500 drawn persons who are in no table; "
        "its twin, No Def. (pretrained), starts from the same weights and freezes nothing. "
        "Attacks that see the target see the frozen blocks too; none has images of the 500. BiDO+ "
        "is compared with no defense; what its outliers add to BiDO is not asked here.",
        "Top-k and Label-only have no row against BREP-MI, which sees the same labels.",
        *NOTES,
    ),
)
