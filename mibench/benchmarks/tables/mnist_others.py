"""GMI and VMI on the MNIST targets of Table 3, at a budget for a CPU."""

from dataclasses import replace

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Trials
from mibench.benchmarks.tables.base import Table, versus
from mibench.benchmarks.tables.digits import JOINT, STYLEGAN
from mibench.benchmarks.tables.table3 import KDD22, MEASURES, MNIST_DEFENSES, ON_MNIST

SHORT_GMI = GMI(WGANGP(epochs=3), steps=1000, lr=0.01)
SHORT_VMI = replace(JOINT, prior=replace(STYLEGAN, channel_base=512, kimg=64))
ATTACKS = {
    "GMI": (SHORT_GMI, Trials(classes=5, samples=5, repeats=5)),
    "VMI": (SHORT_VMI, Trials(classes=5, samples=100, repeats=5)),
}

MNIST_OTHERS = Table(
    name="mnist-gmi-vmi-short",
    caption="GMI and VMI on the MNIST targets of Table 3, at a CPU's budget.",
    rows={
        label: cell
        for title, (attack, trials) in ATTACKS.items()
        for label, cell in versus(ON_MNIST, attack, trials, KDD22, MNIST_DEFENSES, title).items()
    },
    notes=(
        "Table 3 has neither. GMI's GAN and critic are trained for 3 epochs, latents for 1,000 "
        "steps at the released rate for MNIST, 0.01; all five starts count. VMI is the variant "
        "of digits, one flow per class over all styles, with a StyleGAN2 twice as wide and "
        "trained twice as long.",
        "As released: weights are selected on the test images, FID is of images stretched one by "
        "one, and the recipes differ between rows (SGD for No Def. and MID, Adam for BiDO).",
        MEASURES,
    ),
)
