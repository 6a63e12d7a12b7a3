"""Rows whose Attack Acc says nothing: a weak evaluator, or an attack no better than its control.

The thresholds are decisions; ``docs/statistics.md`` gives their reasons.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from mibench.attacks import PriorSamples
from mibench.benchmarks.tables.base import Table
from mibench.evaluation.significance import LEVEL, Test
from mibench.reporting.contrasts import Contrast

if TYPE_CHECKING:
    from mibench.reporting.results import Results

LOW = 90.0
"""Test accuracy in percent below which an evaluator is weak."""
HIGH = 95.0
"""Test accuracy in percent below which an evaluator must be better than the target."""
CONTROL = "attack_acc_control"
"""Column of the Attack Acc that samples of the row's prior get."""
CONTROL_TITLE = "Attack Acc of prior samples"


def control_table(table: Table) -> Table:
    """Returns the controls of a table under the labels of its rows.

    A row's control is its cell with samples of the attack's prior in place of the attack. Rows
    that attack with such samples have none.

    Raises:
        ValueError: If Attack Acc, with which the control is compared, is no column of the table.
    """
    if "attack_acc" not in table.columns:
        raise ValueError(
            f"{table.name} has no column attack_acc, with which controls are compared: leave out "
            "--controls"
        )
    rows = {
        label: replace(
            cell,
            attack=PriorSamples(cell.attack.prior),
            protocol=replace(cell.protocol, select="last"),
            control=None,
        )
        for label, cell in table.rows.items()
        if not isinstance(cell.attack, PriorSamples)
    }
    return Table(table.name, table.caption, rows, columns=("attack_acc",))


def is_above(contrast: Contrast) -> bool | None:
    """Returns whether an attack's Attack Acc is significantly above its control's, one-sided.

    Args:
        contrast: The attack's row minus its control, class by class, averaged over seeds.

    Returns:
        None where there are too few classes for a test.
    """
    test = contrast.test
    if test.diff <= 0:
        return False
    if test.p is None:  # differences that all agree, of which none is below: a test of signs
        return True if 2.0**-test.interval.n <= LEVEL else None
    return p_above(test) <= LEVEL


def p_above(test: Test) -> float:
    """Returns the p value of the one-sided test: that the difference is above 0."""
    assert test.p is not None
    return test.p / 2 if test.diff > 0 else 1 - test.p / 2


def cautions(results: "Results") -> dict[str, list[str]]:
    """Returns label → why its Attack Acc says nothing about leakage, of rows where that is so."""
    rows = (label for label, n in results.found.items() if n)
    return {label: reasons for label in rows if (reasons := list(_reasons(results, label)))}


def _reasons(results: "Results", label: str) -> Iterator[str]:
    yield from weaknesses(results, label)
    control = results.controls.get(label)
    if control and control.contrast and is_above(control.contrast) is False:
        yield (
            "Attack Acc is not significantly above that of samples of the prior, so nothing shows "
            "that the attack worked: this says nothing about leakage"
        )


def weaknesses(results: "Results", label: str) -> Iterator[str]:
    """Yields why the evaluation classifier of a row is too weak to judge, if it is."""
    judges = [acc for acc, labels in results.evaluators.items() if label in labels]
    evaluator = min(judges, default=100.0)  # unknown where no record names it
    accuracy = results.entries[label].get("accuracy")
    is_weak = evaluator < LOW
    is_worse = accuracy is not None and accuracy.mean is not None and evaluator <= accuracy.mean
    if is_weak or (is_worse and evaluator < HIGH):
        than = f"{LOW:g} %" if is_weak else f"{HIGH:g} % and not above the target's Accuracy"
        yield (
            f"the evaluation classifier is right about {evaluator:.2f} % of its test images, "
            f"below {than}: a low Attack Acc may be its error, and a high one its "
            "mistake: this says nothing about leakage"
        )
