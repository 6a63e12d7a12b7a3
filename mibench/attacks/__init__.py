"""Attacks, one file each. To add one: write the file, name it here."""

from mibench.attacks.controls import AdversarialNoise, OtherClass, PriorSamples
from mibench.attacks.gan import WGANGP, InversionGAN
from mibench.attacks.gmi import GMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.stylegan import StyleGAN2
from mibench.attacks.vmi import VMI
from mibench.types import Attack, PriorSpec

ATTACKS: dict[str, type[Attack]] = {
    a.name: a for a in (GMI, KEDMI, VMI, PriorSamples, OtherClass, AdversarialNoise)
}
PRIORS: dict[str, type[PriorSpec]] = {p.name: p for p in (WGANGP, InversionGAN, StyleGAN2)}

__all__ = [
    "ATTACKS",
    "GMI",
    "KEDMI",
    "PRIORS",
    "VMI",
    "WGANGP",
    "AdversarialNoise",
    "InversionGAN",
    "OtherClass",
    "PriorSamples",
    "StyleGAN2",
]
