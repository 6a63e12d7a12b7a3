"""The main job: the paper's comparison on the digits that are always there."""

from mibench.attacks import GMI, KEDMI, WGANGP, InversionGAN
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables.base import Table, versus
from mibench.data import Digits
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import MCNN, SCNN

SETTING = Setting(
    Digits(),
    MCNN(widths=(32, 64, 128), kernels=(3, 3, 3), paddings=(1, 0, 0)),
    (
        Evaluator(
            SCNN(widths=(32, 64, 128), kernels=(3, 3, 3), paddings=(1, 1, 0)),
            Recipe(epochs=40, milestones=(30,), augment=("crop",), select="last"),
        ),
    ),
)
RECIPE = Recipe(epochs=20)
DEFENSES = {
    "No Def.": (RECIPE, NoDefense()),
    "MID": (RECIPE, MID(lambda_=0.02)),
    "BiDO-COCO": (RECIPE, BiDO("coco_frobenius", lambda_x=1, lambda_y=50)),
    "BiDO-HSIC": (RECIPE, BiDO("nhsic", lambda_x=0.05, lambda_y=0.5)),
}
WGAN = WGANGP(z_dim=50, generator_width=48, discriminator_width=32, lr=4e-4, epochs=60)
INVERSION_GAN = InversionGAN(
    z_dim=50,
    generator_width=48,
    discriminator_width=32,
    lr=4e-4,
    epochs=60,
    critic_steps=3,
    mbd=16,
    mbd_kernels=8,
)
ATTACKS = {
    "GMI": (GMI(WGAN, steps=300), Trials(classes=5, samples=20)),
    "KED-MI": (KEDMI(INVERSION_GAN, steps=600), Trials(classes=5, samples=100)),
}

DIGITS = Table(
    name="digits",
    caption="Privacy and utility on 16x16 digits: 0-4 private, 5-9 public.",
    rows={
        label: cell
        for title, (attack, trials) in ATTACKS.items()
        for label, cell in versus(SETTING, attack, trials, Protocol(), DEFENSES, title).items()
    },
    notes=(
        "MID answers with noise at test time too, so its Accuracy varies with the draw.",
        "COCO is the Frobenius form and HSIC the normalised form of the released code.",
    ),
)
