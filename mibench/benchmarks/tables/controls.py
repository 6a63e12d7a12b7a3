"""How often evaluators say yes to nothing: KED-MI beside its controls, on the digits."""

from dataclasses import replace

from mibench.attacks import AdversarialNoise, OtherClass, PriorSamples
from mibench.benchmarks.cell import Evaluator
from mibench.benchmarks.tables.base import Table, versus
from mibench.benchmarks.tables.digits import ATTACKS, DEFENSES, INVERSION_GAN, SETTING
from mibench.evaluation import Protocol
from mibench.networks import MCNN, MLP, SCNN

FIRST = SETTING.evaluators[0]
PANEL = replace(
    SETTING,
    evaluators=(
        FIRST,
        Evaluator(SCNN(widths=(48, 96), kernels=(5, 3), paddings=(2, 1)), FIRST.recipe),
        Evaluator(MCNN(widths=(32, 64, 128), kernels=(3, 3, 3), paddings=(1, 0, 0)), FIRST.recipe),
        Evaluator(MLP(width=256, depth=2), FIRST.recipe),
    ),
)
KED, TRIALS = ATTACKS["KED-MI"]
CONTROL = PriorSamples(INVERSION_GAN)
ROWS = {
    "KED-MI": KED,
    "Prior samples": CONTROL,
    "Other class": OtherClass(INVERSION_GAN, KED),
    "Target's noise": AdversarialNoise(INVERSION_GAN),
}

DIGITS_CONTROLS = Table(
    name="digits-controls",
    caption="What four evaluators accept of KED-MI and of controls that find nothing.",
    rows={
        label: replace(cell, control=None if attack is CONTROL else CONTROL)
        for title, attack in ROWS.items()
        for label, cell in versus(PANEL, attack, TRIALS, Protocol(), DEFENSES, title).items()
    },
    columns=(
        "accuracy", "confidence", "attack_acc", "false_positives", "attack_acc_corrected",
        "attack_acc_mean", "attack_acc_vote", "attack_acc_all", "evaluator_agreement",
        "evaluator_kappa",
    ),
    notes=(
        "Prior samples are draws from KED-MI's prior, which has seen the target's labels of "
        "public images. Other class: KED-MI's reconstructions of the next class. Target's noise: "
        "such draws, moved by at most a tenth of the range towards what the target takes for "
        "the class.",
        "False positives: what the first evaluator accepts of the prior's samples for the same "
        "target. Corrected is (acc - f) / (1 - f), f their share, taken as known.",
        "Evaluators: two SCNN, an MCNN like the target's, and a perceptron, of different seeds.",
    ),
)  # fmt: skip
