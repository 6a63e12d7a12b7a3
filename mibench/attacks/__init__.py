"""Attacks, one file each. To add one: write the file, name it here."""

from mibench.attacks.bases import BlackBox, WhiteBox
from mibench.attacks.controls import AdversarialNoise, OtherClass, PriorSamples
from mibench.attacks.descent import descend, rounds
from mibench.attacks.gmi import GMI
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.losses import LOSSES
from mibench.attacks.priors.gan import WGANGP, InversionGAN
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.views import VIEWS
from mibench.attacks.vmi import VMI
from mibench.roles import Attack, PriorSpec

CONTROLS: dict[str, type[Attack]] = {
    a.name: a for a in (PriorSamples, OtherClass, AdversarialNoise)
}
"""Attacks that find nothing; no field adapts them."""
ATTACKS: dict[str, type[Attack]] = {a.name: a for a in (GMI, KEDMI, VMI)} | CONTROLS
PRIORS: dict[str, type[PriorSpec]] = {p.name: p for p in (WGANGP, InversionGAN, StyleGAN2)}

__all__ = [
    "ATTACKS", "CONTROLS", "GMI", "KEDMI", "LOSSES", "PRIORS", "VIEWS", "VMI", "WGANGP",
    "AdversarialNoise", "BlackBox", "Goal", "InversionGAN", "OtherClass", "PriorSamples", "Rows",
    "StyleGAN2", "WhiteBox", "descend", "rounds",
]  # fmt: skip
