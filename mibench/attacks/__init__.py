"""Attacks, one file each. To add one: write the file, name it here."""

from mibench.attacks.bases import BlackBox, WhiteBox
from mibench.attacks.brepmi import BREPMI
from mibench.attacks.controls import AdversarialNoise, OtherClass, PriorSamples
from mibench.attacks.decoding import Decoding
from mibench.attacks.descent import descend, rounds
from mibench.attacks.genetic import MirrorBlackBox
from mibench.attacks.gmi import GMI
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.ifgmi import IFGMI
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.lokt import LOKT
from mibench.attacks.lomma import lomma_gmi, lomma_kedmi
from mibench.attacks.losses import Confidence, CrossEntropy, LogitMatching, MaxMargin, Poincare
from mibench.attacks.miface import MIFace
from mibench.attacks.mirror import Mirror
from mibench.attacks.plgmi import PLGMI
from mibench.attacks.ppa import PPA
from mibench.attacks.ppdgmi import PPDGMI
from mibench.attacks.priors.conditional import PseudoLabelGAN
from mibench.attacks.priors.framed import Framed
from mibench.attacks.priors.gan import WGANGP, InversionGAN
from mibench.attacks.priors.imitation import Imitation
from mibench.attacks.priors.pixels import Pixels
from mibench.attacks.priors.plg import PLGGAN
from mibench.attacks.priors.scores import InversionNetwork
from mibench.attacks.priors.shipped import Shipped
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.attacks.priors.tacgan import TACGAN
from mibench.attacks.rlbmi import RLBMI
from mibench.attacks.students import Augmented, Student
from mibench.attacks.transfer import Averaging, Transfer
from mibench.attacks.views import VIEWS
from mibench.attacks.vmi import VMI
from mibench.roles import Attack, IdentityLoss, PriorSpec

CONTROLS: dict[str, type[Attack]] = {
    a.name: a for a in (PriorSamples, OtherClass, AdversarialNoise)
}
"""Attacks that find nothing; no field adapts them."""
WHITE_BOX = (GMI, KEDMI, VMI, PLGMI, PPA, IFGMI, Mirror, MIFace, PPDGMI)
BLACK_BOX = (Transfer, BREPMI, MirrorBlackBox, Decoding, LOKT, RLBMI)
ATTACKS: dict[str, type[Attack]] = {a.name: a for a in (*WHITE_BOX, *BLACK_BOX)} | CONTROLS
"""``Averaging`` is none of them: it needs to be told around which attack."""
PRIORS: dict[str, type[PriorSpec]] = {
    p.name: p
    for p in (
        WGANGP, InversionGAN, StyleGAN2, PseudoLabelGAN, PLGGAN, Imitation, Pixels,
        InversionNetwork, TACGAN,
    )
}  # fmt: skip
"""``Shipped`` and ``Framed`` are none of them: they need to be told which weights."""
LOSSES: dict[str, type[IdentityLoss]] = {
    i.name: i for i in (CrossEntropy, MaxMargin, LogitMatching, Poincare, Confidence, Augmented)
}

__all__ = [
    "ATTACKS", "BREPMI", "CONTROLS", "GMI", "IFGMI", "KEDMI", "LOKT", "LOSSES", "PLGGAN", "PLGMI",
    "PPA", "PPDGMI", "PRIORS", "RLBMI", "TACGAN", "VIEWS", "VMI", "WGANGP", "AdversarialNoise",
    "Augmented", "Averaging", "BlackBox", "Decoding", "Framed", "Goal", "Imitation",
    "InversionGAN", "InversionNetwork", "MIFace", "Mirror", "MirrorBlackBox", "OtherClass",
    "Pixels", "PriorSamples", "PseudoLabelGAN", "Rows", "Shipped", "Student", "StyleGAN2",
    "Transfer", "WhiteBox", "descend", "lomma_gmi", "lomma_kedmi", "rounds",
]  # fmt: skip
