"""Four defenses against GMI and KED-MI on drawn portraits, where the true traits are known."""

from mibench.attacks import GMI, KEDMI, WGANGP, InversionGAN
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables.base import Table, versus
from mibench.data import Avatars
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import MCNN, SCNN

SETTING = Setting(
    Avatars(),
    MCNN(widths=(32, 64, 128)),
    (
        Evaluator(
            SCNN(widths=(32, 64, 128, 256), kernels=(7, 5, 5, 3), paddings=(1, 0, 0, 1)),
            Recipe(epochs=14, milestones=(10,), augment=("crop",), select="last"),
        ),
    ),
)
RECIPE = Recipe(epochs=40)
DEFENSES = {
    "No Def.": (RECIPE, NoDefense()),
    "MID": (RECIPE, MID(lambda_=0.02)),
    "BiDO-COCO": (RECIPE, BiDO("coco_frobenius", lambda_x=1, lambda_y=50)),
    "BiDO-HSIC": (RECIPE, BiDO("nhsic", lambda_x=0.05, lambda_y=0.5)),
}
WGAN = WGANGP(
    z_dim=50, generator_width=24, discriminator_width=16, lr=8e-4, epochs=16, critic_steps=2
)
INVERSION_GAN = InversionGAN(
    z_dim=50,
    generator_width=24,
    discriminator_width=16,
    lr=6e-4,
    epochs=16,
    critic_steps=1,
    mbd=16,
    mbd_kernels=8,
)
PERSONS = SETTING.task.num_classes
ATTACKS = {
    "GMI": (GMI(WGAN, steps=200), Trials(classes=PERSONS, samples=3)),
    "KED-MI": (KEDMI(INVERSION_GAN, steps=500), Trials(classes=PERSONS, samples=20)),
}

AVATARS = Table(
    name="avatars",
    caption="Privacy and utility on drawn portraits, 32x32: 30 private persons, 500 public ones.",
    rows={
        label: cell
        for title, (attack, trials) in ATTACKS.items()
        for label, cell in versus(
            SETTING, attack, trials, Protocol(real=16), DEFENSES, title
        ).items()
    },
    columns=(
        "accuracy",
        "attack_acc",
        "attack_acc5",
        "fid",
        "trait_leakage",
        "trait_leakage_second",
        "trait_acc",
        "trait_rank",
        "trait_agreement",
        "attack_acc_false",
    ),
    notes=(
        "Portraits are drawn; nobody is shown. One renderer draws private and public persons, "
        "which is the attacker's best case.",
        "What decides the attacks' lengths was tuned on other persons (setting.task.cast=99).",
        "MID answers with noise at test time too, so its Accuracy varies with the draw.",
        "COCO is the Frobenius form and HSIC the normalised form of the released code.",
    ),
)
