"""The main job: the paper's comparison on the digits that are always there."""

from mibench.attacks import GMI, KEDMI, VMI, WGANGP, InversionGAN, StyleGAN2
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
STYLEGAN = StyleGAN2(
    z_dim=64,
    w_dim=64,
    channel_base=256,
    channel_max=64,
    num_fp16_res=0,
    kimg=32,
    batch_size=32,
    lr=2e-3,
    r1_gamma=0.3,
    path_weight=0,
    mixing=0.5,
    ema_kimg=1,
    pipeline="none",
)
JOINT = VMI(
    STYLEGAN,
    space="w",
    flow="joint",
    couplings=2,
    hidden=128,
    steps=150,
    batch=16,
    optimizer="adam",
    lr=5e-3,
    lambda_kl=5e-3,
    max_norm=5,
)
ATTACKS = {
    "GMI": (GMI(WGAN, steps=300), Trials(classes=5, samples=20)),
    "KED-MI": (KEDMI(INVERSION_GAN, steps=600), Trials(classes=5, samples=100)),
    "VMI": (JOINT, Trials(classes=5, samples=100)),
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
        "VMI is the variant with one flow per class over all styles (space w, flow joint).",
        "MID answers with noise at test time too, so its Accuracy varies with the draw.",
        "COCO is the Frobenius form and HSIC the normalised form of the released code.",
    ),
)
