"""Every defense against every attack, as small as can be."""

from mibench.attacks import GMI, KEDMI, VMI, WGANGP, InversionGAN, StyleGAN2
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables.base import Table, versus
from mibench.data import Digits
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import MCNN, SCNN

SETTING = Setting(
    Digits(size=8),
    MCNN(widths=(8, 16, 32), kernels=(3, 3, 1), paddings=(1, 1, 0)),
    (
        Evaluator(
            SCNN(widths=(16, 32, 64), kernels=(3, 3, 1), paddings=(1, 1, 0)),
            Recipe(epochs=8, select="last"),
        ),
    ),
)
RECIPE = Recipe(epochs=5, lr=2e-3)
DEFENSES = {
    "No Def.": (RECIPE, NoDefense()),
    "MID": (RECIPE, MID(lambda_=0.02)),
    "BiDO-COCO": (RECIPE, BiDO("coco_frobenius", lambda_x=1, lambda_y=50)),
    "BiDO-HSIC": (RECIPE, BiDO("nhsic", lambda_x=0.05, lambda_y=0.5)),
}
WGAN = WGANGP(z_dim=16, generator_width=16, discriminator_width=16, lr=1e-3, epochs=10)
INVERSION_GAN = InversionGAN(
    z_dim=16, generator_width=16, discriminator_width=16, lr=1e-3, epochs=10, mbd=8, mbd_kernels=4
)
STYLEGAN = StyleGAN2(
    z_dim=16, w_dim=16, channel_base=64, channel_max=16, num_fp16_res=0, kimg=3.2, batch_size=32
)
ATTACKS = {
    "GMI": GMI(WGAN, steps=50),
    "KED-MI": KEDMI(INVERSION_GAN, steps=50),
    "VMI": VMI(STYLEGAN, couplings=2, hidden=16, steps=30, batch=8, optimizer="adam", lr=0.01),
}

SMOKE = Table(
    name="smoke",
    caption="Smoke test on 8x8 digits: it shows that everything runs, not who wins.",
    rows={
        label: cell
        for title, attack in ATTACKS.items()
        for label, cell in versus(
            SETTING, attack, Trials(classes=5, samples=10), Protocol(real=40), DEFENSES, title
        ).items()
    },
)
