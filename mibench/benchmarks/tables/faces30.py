"""Thirty real faces beside the drawn portraits: the same defenses and attacks, two evaluators.

The data are those of ``celeba300``; the private identities are its first thirty by name.
"""

from dataclasses import replace

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Setting, Trials
from mibench.benchmarks.tables import avatars, celeba300
from mibench.benchmarks.tables.base import Table, versus
from mibench.data import Folder

EMBEDDING = celeba300.SETTING.evaluators[0]
SMALL = avatars.SETTING.evaluators[0]
KED = replace(avatars.KED, prior=replace(avatars.INVERSION_GAN, epochs=2))
THREE, TEN = Trials(classes=30, samples=3), Trials(classes=30, samples=10)
WGAN = WGANGP(
    z_dim=50, generator_width=24, discriminator_width=16, lr=8e-4, epochs=4, critic_steps=2
)


def setting(size: int, *evaluators: int) -> Setting:
    """Returns the task at a size, judged by the evaluators in that order: 0 is the embedding."""
    panel = (EMBEDDING, replace(SMALL, recipe=replace(SMALL.recipe, epochs=40, milestones=(30,))))
    return Setting(
        Folder(folder="celeba300", num_classes=30, size=size),
        avatars.SETTING.network,
        tuple(panel[i] for i in evaluators),
    )


BY_EMBEDDING = setting(32, 0, 1)
ROWS = {
    "GMI": (BY_EMBEDDING, GMI(WGAN, steps=200), THREE),
    "KED-MI": (BY_EMBEDDING, KED, TEN),
    "KED-MI, small evaluator": (setting(32, 1, 0), KED, TEN),
    "KED-MI, 64x64": (setting(64, 0), KED, TEN),
}

FACES30 = Table(
    name="faces30",
    caption="Privacy and utility on 30 CelebA identities, 32x32 unless the row says otherwise.",
    rows={
        label: cell
        for title, (where, attack, trials) in ROWS.items()
        for label, cell in versus(
            where, attack, trials, avatars.PROTOCOL, avatars.DEFENSES, title
        ).items()
    },
    columns=("accuracy", "attack_acc", "attack_acc5", "fid"),
    notes=(
        "Judged by a face embedding trained on other data (MobileFaceNet); small evaluator: by a "
        "network trained on the target's own images.",
        "Targets, weights and attacks are those of avatars; public are 13,159 other faces.",
        *avatars.NOTES,
    ),
)
