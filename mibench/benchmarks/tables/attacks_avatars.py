"""Every attack of the package on drawn portraits, against no defense, at small budgets."""

from dataclasses import replace

from mibench.attacks import (
    BREPMI,
    GMI,
    IFGMI,
    LOKT,
    PLGGAN,
    PLGMI,
    PPA,
    PPDGMI,
    RLBMI,
    TACGAN,
    Decoding,
    Imitation,
    InversionNetwork,
    MIFace,
    Mirror,
    MirrorBlackBox,
    Student,
    Transfer,
    lomma_gmi,
    lomma_kedmi,
)
from mibench.attacks.ppa import FAR
from mibench.attacks.ppdgmi import LOOKS
from mibench.benchmarks.cell import Trials
from mibench.benchmarks.tables import avatars
from mibench.benchmarks.tables.base import Table, versus
from mibench.defenses import Recipe
from mibench.networks import MCNN
from mibench.roles import Attack

ONE = Trials(classes=avatars.PERSONS, samples=1)
THREE = Trials(classes=avatars.PERSONS, samples=3)
STUDENT = Student(MCNN(widths=(16, 32, 64)), Recipe(20, lr=1e-3, select="last"))
PLG = PLGGAN(
    z_dim=50,
    generator_width=8,
    discriminator_width=8,
    epochs=40,
    batch_size=32,
    lr=1e-3,
    critic_steps=2,
    per_class=20,
    alpha=1.0,
)
TAC = TACGAN(
    z_dim=50,
    generator_width=8,
    discriminator_width=8,
    epochs=10,
    batch_size=32,
    lr=1e-3,
    critic_steps=2,
    warm_up=50,
    per_class=60,
    students=(STUDENT,),
)
WHITE_BOX: dict[str, tuple[Attack, Trials]] = {
    **avatars.ATTACKS,
    "LOMMA on GMI": (lomma_gmi((STUDENT,), prior=avatars.WGAN, steps=200), THREE),
    "LOMMA on KED-MI": (
        lomma_kedmi((STUDENT,), prior=avatars.INVERSION_GAN, steps=500),
        avatars.TWENTY,
    ),
    "PLG-MI": (PLGMI(PLG, steps=100), THREE),
    "PPA": (
        PPA(avatars.STYLEGAN, pool=500, candidates=2, final=(replace(FAR[0], looks=10),)),
        THREE,
    ),
    "IF-GMI": (IFGMI(avatars.STYLEGAN, pool=500, steps=(50, 15, 15, 15)), THREE),
    "MIRROR": (Mirror(avatars.STYLEGAN, pool=500, steps=100, lr=0.1), THREE),
    "PPDG-MI on GMI": (
        PPDGMI(
            avatars.WGAN,
            GMI(steps=100),
            candidates=6,
            ranking=(replace(LOOKS[0], looks=5),),
            epochs=3,
        ),
        THREE,
    ),
    "MI-Face": (MIFace(steps=400, lr=5.0), THREE),
}
BLACK_BOX: dict[str, tuple[Attack, Trials]] = {
    "RLB-MI": (RLBMI(avatars.WGAN, steps=600, hidden=64, batch=64, lr=2e-3), ONE),
    "MIRROR, black box": (
        MirrorBlackBox(avatars.STYLEGAN, pool=1000, population=20, steps=50),
        ONE,
    ),
    "Inversion network": (
        Decoding(InversionNetwork(width=32, epochs=20, batch_size=64, lr=1e-3)),
        THREE,
    ),
    "Transfer of GMI": (Transfer(Imitation(avatars.WGAN, (STUDENT,)), GMI(steps=200)), THREE),
    "BREP-MI": (BREPMI(avatars.WGAN, pool=5000, points=16, patience=10, steps=100), ONE),
    "LOKT": (LOKT(TAC, steps=100), THREE),
}

ATTACKS_AVATARS = Table(
    name="attacks-avatars",
    caption="Attacks on drawn portraits, 32x32, without a defense, at small budgets.",
    rows={
        label: cell
        for title, (attack, trials) in (WHITE_BOX | BLACK_BOX).items()
        for label, cell in versus(
            avatars.SETTING,
            attack,
            trials,
            avatars.PROTOCOL,
            {"No Def.": avatars.DEFENSES["No Def."]},
            title,
        ).items()
    },
    columns=("accuracy", "attack_acc", "attack_acc5", "trait_acc"),
    notes=(
        "Each attack takes about a minute of one CPU core, and a prior of its own two more: far "
        "less than its authors spent, so the order here need not be the order there. What each "
        "spent: mibench table attacks-avatars --budgets. What samples of its prior get: "
        "--controls. Values of GMI, KED-MI and VMI were tuned on other persons, those of the "
        "other attacks were not tuned.",
        "From GMI to MI-Face attacks see all of the target; RLB-MI, MIRROR black box, the "
        "inversion network and the transfer of GMI have its scores; BREP-MI and LOKT have labels.",
        "Reconstructions of each person: 20 of KED-MI, LOMMA on KED-MI and VMI; one, as released, "
        "of RLB-MI, MIRROR black box and BREP-MI; three of the others.",
        "GMI, LOMMA on GMI, PPDG-MI, RLB-MI, the transfer and BREP-MI share one shipped prior; "
        "VMI, PPA, IF-GMI and both forms of MIRROR another. These have seen 20,000 public "
        "persons; the other priors learn from the 500 of the table.",
        "Portraits are drawn; nobody is shown. One renderer draws private and public persons, "
        "which is the attacker's best case.",
    ),
)
