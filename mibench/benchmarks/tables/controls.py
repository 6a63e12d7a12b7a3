"""How often evaluators say yes to nothing: KED-MI beside its controls."""

from dataclasses import replace

from mibench.attacks import AdversarialNoise, OtherClass, PriorSamples
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables import avatars, digits
from mibench.benchmarks.tables.base import Table, Trained, versus
from mibench.evaluation import Protocol
from mibench.networks import MCNN, MLP, SCNN
from mibench.roles import Attack, NetworkSpec

COLUMNS = (
    "accuracy", "confidence", "attack_acc", "false_positives", "attack_acc_corrected",
    "attack_acc_mean", "attack_acc_vote", "attack_acc_all", "evaluator_agreement",
    "evaluator_kappa",
)  # fmt: skip


def controls(
    name: str,
    setting: Setting,
    further: tuple[NetworkSpec, ...],
    attack: Attack,
    trials: Trials,
    protocol: Protocol,
    defenses: Trained,
    columns: tuple[str, ...] = COLUMNS,
) -> Table:
    """Returns the table of KED-MI and its controls, judged by the evaluator and ``further``."""
    recipe = setting.evaluators[0].recipe
    panel = replace(
        setting,
        evaluators=(*setting.evaluators, *(Evaluator(network, recipe) for network in further)),
    )
    samples = PriorSamples(attack.prior)
    attacks: dict[str, Attack] = {
        "KED-MI": attack,
        "Prior samples": samples,
        "Other class": OtherClass(attack.prior, attack),
        "Target's noise": AdversarialNoise(attack.prior),
    }
    return Table(
        name=name,
        caption="What four evaluators accept of KED-MI and of controls that find nothing.",
        rows={
            label: replace(cell, control=None if attack is samples else samples)
            for title, attack in attacks.items()
            for label, cell in versus(panel, attack, trials, protocol, defenses, title).items()
        },
        columns=columns,
        notes=(
            "Prior samples are draws from KED-MI's prior, which has seen the target's labels of "
            "public images. Other class: KED-MI's reconstructions of the next class. Target's "
            "noise: such draws, moved by at most a tenth of the range towards what the target "
            "takes for the class.",
            "False positives: what the first evaluator accepts of the prior's samples for the "
            "same target. Corrected is (acc - f) / (1 - f), f their share, taken as known.",
            "Evaluators: two SCNN, an MCNN like the target's, and a perceptron, of different "
            "seeds.",
        ),
    )


DIGITS_CONTROLS = controls(
    "digits-controls",
    digits.SETTING,
    (
        SCNN(widths=(48, 96), kernels=(5, 3), paddings=(2, 1)),
        MCNN(widths=(32, 64, 128), kernels=(3, 3, 3), paddings=(1, 0, 0)),
        MLP(width=256, depth=2),
    ),
    *digits.ATTACKS["KED-MI"],
    Protocol(),
    digits.DEFENSES,
)
AVATARS_CONTROLS = controls(
    "avatars-controls",
    avatars.SETTING,
    (
        SCNN(widths=(48, 96, 192), kernels=(5, 3, 3), paddings=(2, 1, 0)),
        MCNN(widths=(32, 64, 128)),
        MLP(width=256, depth=2),
    ),
    avatars.KED,
    avatars.TWENTY,
    avatars.PROTOCOL,
    avatars.DEFENSES,
    (
        *COLUMNS,
        "most_frequent",
        "trait_leakage",
        "trait_leakage_second",
        "trait_acc",
        "trait_acc_second",
        "trait_rank",
        "trait_agreement",
        "trait_acc_real",
        "attack_acc_false",
    ),
)
