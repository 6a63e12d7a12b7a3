"""KED-MI against defenses, plain and adapted to them, on the digits and on drawn portraits."""

from dataclasses import replace

from mibench.attacks.kedmi import KEDMI
from mibench.attacks.losses import LogitMatching, MaxMargin
from mibench.attacks.priors.gan import InversionGAN
from mibench.attacks.views import Crop, Noise, Plain, Shift
from mibench.benchmarks.cell import Setting, Trials
from mibench.benchmarks.row import Row
from mibench.benchmarks.tables import avatars, digits
from mibench.benchmarks.tables.base import Table, Trained, versus
from mibench.evaluation import Protocol

VIEWS = (Plain(), Shift(pixels=1), Crop(scale=0.9), Noise(std=0.1))
DRAWS = (Plain(draws=8),)


def adaptive(
    name: str,
    caption: str,
    setting: Setting,
    plain: KEDMI,
    trials: Trials,
    protocol: Protocol,
    defenses: Trained,
    notes: tuple[str, ...],
) -> Table:
    """Returns the table of KED-MI as it is and adapted, against every defense."""
    prior = plain.prior
    assert isinstance(prior, InversionGAN)
    attacks = {
        "KED-MI": plain,
        "KED-MI, max-margin": replace(plain, identity=MaxMargin()),
        "KED-MI, matching": replace(plain, identity=LogitMatching()),
        "KED-MI, views": replace(plain, prior=replace(prior, views=VIEWS), views=VIEWS),
        "KED-MI, 8 draws": replace(plain, prior=replace(prior, views=DRAWS), views=DRAWS),
        "KED-MI, 4x steps": replace(plain, steps=4 * plain.steps),
    }
    return Table(
        name=name,
        caption=f"Attacks adapted to the defense on {caption}.",
        rows={
            label: cell
            for title, attack in attacks.items()
            for label, cell in versus(setting, attack, trials, protocol, defenses, title).items()
            if title != "KED-MI, 8 draws"
            or Row.of(label).defended == "MID"  # the others answer without noise
        },
        worst=True,
        notes=(
            "max-margin and matching: the identity loss. views: gradients and the prior's soft "
            "labels averaged over the image, a shift, a crop and noise. 8 draws: over MID's own "
            f"noise. 4x steps: four times the queries; mibench table {name} --budgets says what "
            "each spent.",
            *notes,
        ),
    )


DIGITS_ADAPTIVE = adaptive(
    "digits-adaptive",
    "16x16 digits: 0-4 private, 5-9 public",
    digits.SETTING,
    KEDMI(digits.INVERSION_GAN, steps=600),
    Trials(classes=5, samples=100),
    Protocol(),
    digits.DEFENSES,
    digits.DIGITS.notes[2:],
)
AVATARS_ADAPTIVE = adaptive(
    "avatars-adaptive",
    "drawn portraits, 32x32: 30 private persons, 500 public ones",
    avatars.SETTING,
    avatars.KED,
    avatars.TWENTY,
    avatars.PROTOCOL,
    avatars.DEFENSES,
    avatars.NOTES,
)
