"""Tables, one file each. To add one: write the file, name it here."""

from mibench.benchmarks.tables.ablation import TABLE5_AVATARS, TABLE5_DIGITS
from mibench.benchmarks.tables.adaptive import AVATARS_ADAPTIVE, DIGITS_ADAPTIVE
from mibench.benchmarks.tables.attacks_avatars import ATTACKS_AVATARS
from mibench.benchmarks.tables.avatars import AVATARS
from mibench.benchmarks.tables.avatars_false import AVATARS_FALSE
from mibench.benchmarks.tables.avatars_shift import AVATARS_SHIFT
from mibench.benchmarks.tables.base import Reported, Table, versus
from mibench.benchmarks.tables.celeba import (
    TABLE1,
    TABLE1_CONTROLLED,
    TABLE2,
    TABLE2_CONTROLLED,
    TABLE5,
    TABLE5_CONTROLLED,
)
from mibench.benchmarks.tables.celeba64 import TABLE_LABELONLY, TABLE_LOMMA, TABLE_PLG, TABLE_PPA
from mibench.benchmarks.tables.celeba300 import CELEBA300
from mibench.benchmarks.tables.controls import AVATARS_CONTROLS, DIGITS_CONTROLS
from mibench.benchmarks.tables.defenses_avatars import DEFENSES_AVATARS
from mibench.benchmarks.tables.defenses_celeba import DEFENSES_CELEBA
from mibench.benchmarks.tables.digits import DIGITS
from mibench.benchmarks.tables.faces30 import FACES30, FACES30_64
from mibench.benchmarks.tables.fig1 import FIG1, FIG1_DIGITS
from mibench.benchmarks.tables.matrix_avatars import MATRIX_AVATARS
from mibench.benchmarks.tables.mnist_others import MNIST_OTHERS
from mibench.benchmarks.tables.prior_length import (
    DIGITS_PRIOR_LENGTH,
    MNIST_CURVE,
    MNIST_PRIOR_LENGTH,
)
from mibench.benchmarks.tables.quirks import SELECT_TEST, TRAIN_LABELS, UNTRAINED_CRITIC
from mibench.benchmarks.tables.smoke import SMOKE
from mibench.benchmarks.tables.sweeps import SWEEP_CELEBA, SWEEP_CIFAR10, SWEEP_MNIST
from mibench.benchmarks.tables.table3 import (
    TABLE3_CIFAR10,
    TABLE3_CIFAR10_CONTROLLED,
    TABLE3_MNIST,
    TABLE3_MNIST_CONTROLLED,
    TABLE3_MNIST_SHORT,
)
from mibench.benchmarks.tables.table4 import TABLE4, TABLE4_CONTROLLED
from mibench.benchmarks.tables.tradeoff import TRADEOFF_AVATARS, TRADEOFF_DIGITS

TABLES: dict[str, Table] = {
    t.name: t
    for t in (
        SMOKE, DIGITS, DIGITS_ADAPTIVE, DIGITS_CONTROLS,
        AVATARS, AVATARS_ADAPTIVE, AVATARS_CONTROLS, AVATARS_FALSE, AVATARS_SHIFT, ATTACKS_AVATARS,
        UNTRAINED_CRITIC, TRAIN_LABELS, SELECT_TEST, DIGITS_PRIOR_LENGTH,
        TABLE1, TABLE1_CONTROLLED, TABLE2, TABLE2_CONTROLLED,
        TABLE3_MNIST, TABLE3_MNIST_SHORT, TABLE3_MNIST_CONTROLLED,
        MNIST_PRIOR_LENGTH, MNIST_CURVE, MNIST_OTHERS,
        TABLE3_CIFAR10, TABLE3_CIFAR10_CONTROLLED,
        TABLE4, TABLE4_CONTROLLED, TABLE5, TABLE5_CONTROLLED, TABLE5_DIGITS,
        TABLE_LOMMA, TABLE_PLG, TABLE_PPA, TABLE_LABELONLY,
        FIG1, FIG1_DIGITS, CELEBA300, FACES30, FACES30_64,
        SWEEP_CELEBA, SWEEP_MNIST, SWEEP_CIFAR10,
        TRADEOFF_DIGITS, TRADEOFF_AVATARS, TABLE5_AVATARS, DEFENSES_AVATARS,
        MATRIX_AVATARS, DEFENSES_CELEBA,
    )
}  # fmt: skip

__all__ = ["TABLES", "Reported", "Table", "versus"]
