"""How often what the evaluator accepts shows another person, by the true traits."""

from mibench.benchmarks.tables.avatars import AVATARS, NOTES
from mibench.benchmarks.tables.base import Table

AVATARS_FALSE = Table(
    name="avatars-false",
    caption="Of the reconstructions that the evaluator accepts: how many show another person.",
    rows=AVATARS.rows,
    columns=("attack_acc", "attack_acc_false", "trait_agreement", "trait_acc_real"),
    notes=(
        "False by traits: of the accepted ones, those to which both regressors of traits find "
        "another person nearer. Both can err; Trait acc of real says how often the first one is "
        "right on real images. The cells are those of avatars.",
        *NOTES,
    ),
)
