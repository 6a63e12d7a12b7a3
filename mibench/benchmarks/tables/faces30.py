"""Thirty real faces beside the drawn portraits: the same defenses and attacks, two evaluators.

The data are those of ``celeba300``; the private identities are its first thirty by name.
"""

from collections.abc import Mapping
from dataclasses import replace

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Setting, Trials
from mibench.benchmarks.tables import avatars, celeba300
from mibench.benchmarks.tables.base import Table, versus
from mibench.data import Folder
from mibench.roles import Attack

EMBEDDING = celeba300.SETTING.evaluators[0]
SMALL = avatars.SETTING.evaluators[0]
EVALUATORS = (EMBEDDING, replace(SMALL, recipe=replace(SMALL.recipe, epochs=40, milestones=(30,))))
KED = replace(avatars.KED, prior=replace(avatars.INVERSION_GAN, epochs=2))
THREE, TEN = Trials(classes=30, samples=3), Trials(classes=30, samples=10)
WGAN = WGANGP(
    z_dim=50, generator_width=24, discriminator_width=16, lr=8e-4, epochs=4, critic_steps=2
)


def faces30(name: str, size: int, attacks: Mapping[str, tuple[Attack, Trials]]) -> Table:
    """Returns the table of attacks at a size, judged by the embedding and by the small network."""
    task = Folder(folder="celeba300", num_classes=30, size=size)
    setting = Setting(task, avatars.SETTING.network, EVALUATORS)
    return Table(
        name=name,
        caption=f"Privacy and utility on 30 CelebA identities, {size}x{size}.",
        rows={
            label: cell
            for title, (attack, trials) in attacks.items()
            for label, cell in versus(
                setting, attack, trials, avatars.PROTOCOL, avatars.DEFENSES, title
            ).items()
        },
        columns=("accuracy", "attack_acc", "attack_acc5", "attack_acc_second", "fid"),
        notes=(
            "Judged by a face embedding trained on other data (MobileFaceNet); (2): by a network "
            "trained on the target's own images.",
            "Targets, weights and attacks are those of avatars; public are 13,159 other faces.",
            *avatars.NOTES,
        ),
    )


FACES30 = faces30("faces30", 32, {"GMI": (GMI(WGAN, steps=200), THREE), "KED-MI": (KED, TEN)})
FACES30_64 = faces30("faces30-64", 64, {"KED-MI": (KED, TEN)})
