"""GMI and VMI beside KED-MI on the MNIST targets of Table 3, at a budget for a CPU."""

from dataclasses import replace

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Trials
from mibench.benchmarks.tables.base import Table, versus
from mibench.benchmarks.tables.digits import JOINT, STYLEGAN
from mibench.benchmarks.tables.table3 import AS_RELEASED, KDD22, MNIST_DEFENSES, ON_MNIST

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
        "No paper reports these. GMI's GAN is trained for 3 epochs, its latents for 1,000 steps "
        "from five starts; VMI is the small variant of digits, one flow per class over all "
        "styles of a small StyleGAN2.",
        *AS_RELEASED,
    ),
)
