"""The difference of a row from its defense's undefended twin, with records made by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from mibench.benchmarks.tables import Table
from mibench.defenses import DPSGD, MID, Rounding, TrapMID
from mibench.evaluation.significance import holm, paired
from mibench.reporting.contrasts import twins, with_twin
from mibench.reporting.explain import Number
from mibench.reporting.forms import render
from mibench.reporting.notes import footnotes
from mibench.reporting.page.rows import _in_words
from mibench.reporting.results import Results, collect
from mibench.running.grid import Grid, record_stages
from tests.test_contrasts import TABLE, Made, payload

BARE = TABLE.rows["GMI / No Def."]
DEFENSES = {
    "GMI / No Def.": BARE.defense,
    "GMI / anything": MID(lambda_=0, ratio=0.25),
    "GMI / MID": MID(lambda_=0.1, ratio=0.25),
    "GMI / MID (1)": MID(lambda_=1, ratio=0.25),
    "GMI / wide": MID(lambda_=1, ratio=0.5),
    "GMI / BiDO-HSIC": TABLE.rows["GMI / BiDO-HSIC"].defense,
}
TWINS = replace(TABLE, rows={k: replace(BARE, defense=d) for k, d in DEFENSES.items()})
VALUES = {
    "GMI / No Def.": [50.0, 52.0, 51.0],
    "GMI / anything": [48.0, 49.0, 50.0],
    "GMI / MID": [30.0, 31.0, 31.5],
    "GMI / MID (1)": [50.0, 47.0, 51.0],
    "GMI / wide": [10.0, 12.0, 11.5],
    "GMI / BiDO-HSIC": [40.0, 41.0, 42.5],
}


def made(values: Mapping[str, Sequence[float]] = VALUES, table: Table = TWINS) -> Results:
    records = record_stages(table, 3, None)
    payloads = {
        records[label][seed].key: payload({"accuracy": 100 - value, "attack_acc": value})
        | {"warnings": []}
        for label, row in values.items()
        for seed, value in enumerate(row)
    }
    return collect(Grid(table, records, Made(payloads)))


def test_a_twin_is_known_by_what_it_is_and_by_all_else_being_equal() -> None:
    assert twins(TWINS) == {"GMI / MID": "GMI / anything", "GMI / MID (1)": "GMI / anything"}
    for change in (
        {"recipe": replace(BARE.recipe, epochs=9)},
        {"trials": replace(BARE.trials, samples=7)},
        {"attack": TABLE.rows["KED-MI / No Def."].attack},
    ):
        twin = replace(TWINS.rows["GMI / anything"], **change)
        moved = replace(TWINS, rows=dict(TWINS.rows) | {"GMI / anything": twin})
        assert twins(moved) == {}
    assert twins(TABLE) == {}  # the twin of BiDO is no defense, and has a row of its own


def test_what_a_release_hides_is_compared_with_the_twin_of_what_it_trains() -> None:
    assert Rounding(2, inner=MID(lambda_=1, ratio=0.25)).twin() == DEFENSES["GMI / anything"]
    assert DPSGD(noise=3).twin() == DPSGD(noise=0.5, clip=2).twin()  # all share one row


def test_what_changes_nothing_in_a_twin_does_not_part_a_row_from_it() -> None:
    defenses = {
        "GMI / No Def.": BARE.defense,
        "GMI / traps (0)": TrapMID(beta=0, alpha=0.1),
        "GMI / traps": TrapMID(rate=0.02),
        "GMI / plain traps": TrapMID(augment=False),
        "GMI / noise (0)": DPSGD(delta=1e-4).twin(),
        "GMI / noise": DPSGD(chunk=8, strict=False),
        "GMI / other groups": DPSGD(groups=4, strict=False),
    }
    found = {"GMI / traps": "GMI / traps (0)", "GMI / noise": "GMI / noise (0)"}
    table = replace(TABLE, rows={k: replace(BARE, defense=d) for k, d in defenses.items()})
    assert twins(table) == found
    equal = replace(BARE, defense=defenses["GMI / traps"].twin())
    rows = {
        "GMI / equal": equal,
        **table.rows,
        "GMI / last": replace(BARE, defense=TrapMID(beta=0)),
    }
    assert twins(replace(table, rows=rows)) == found | {"GMI / traps": "GMI / equal"}


def test_rows_with_a_twin_are_tested_and_corrected_together() -> None:
    results = made()
    raw = [paired(VALUES[k], VALUES["GMI / anything"]).p for k in ("GMI / MID", "GMI / MID (1)")]
    contrasts = [results.entries[k]["attack_acc"].twin for k in ("GMI / MID", "GMI / MID (1)")]
    assert [c.p for c in contrasts if c] == pytest.approx(holm(raw))
    assert [c.tests for c in contrasts if c] == [2, 2]
    assert results.entries["GMI / wide"]["attack_acc"].twin is None
    assert results.entries["GMI / anything"]["attack_acc"].twin is None
    none = results.entries["GMI / MID"]["attack_acc"].contrast
    assert none is not None
    assert none.other == "GMI / No Def."
    values = {k: dict(enumerate(v)) for k, v in VALUES.items()}
    found = with_twin(TWINS, "attack_acc", values)
    assert found["GMI / MID"] == results.entries["GMI / MID"]["attack_acc"].twin


def test_a_footnote_of_each_column_has_the_differences() -> None:
    results = made()
    p = [
        c.p for k in ("GMI / MID", "GMI / MID (1)") if (c := results.entries[k]["attack_acc"].twin)
    ]
    text = f"GMI / MID -18.17 (p = {p[0]:.2g}), GMI / MID (1) +0.33 (p = {p[1]:.2g})"
    assert f"Attack Acc less that of the twin: {text}." in footnotes(results)
    (note,) = (n for n in footnotes(results) if n.startswith("A twin has the same recipe"))
    assert ". Accuracy less that of the twin: MID +18.17 (p" in note  # a target's, without attack
    alone = TWINS.only(["GMI / No Def.", "GMI / MID"])
    assert "twin" not in " ".join(footnotes(made({k: VALUES[k] for k in alone.rows}, alone)))


def test_the_csv_the_page_and_explain_have_it() -> None:
    results = made()
    frame = results.summary()
    contrast = results.entries["GMI / MID"]["attack_acc"].twin
    assert contrast is not None
    row = frame.loc["GMI / MID"]
    assert row["attack_acc_twin_diff"] == pytest.approx(contrast.test.diff)
    assert row["attack_acc_twin_p"] == pytest.approx(contrast.p)
    assert row["attack_acc_diff"] != row["attack_acc_twin_diff"]
    assert frame.loc["GMI / wide", ["attack_acc_twin_diff", "attack_acc_twin_p"]].isna().all()
    assert "twin" not in render(made({}, TABLE), "csv")
    assert results.grid is not None
    number = Number(results.grid, results, "GMI / MID", "attack_acc", "")
    lines = list(number._comparisons())
    assert any(
        line.startswith("  with its twin, GMI / anything: -18.17 points over 3 seeds")
        for line in lines
    )
    words = _in_words(results.entries["GMI / MID"]["attack_acc"], number.metric)
    assert f"-18.17 against anything, p = {contrast.p:.2g} after Holm's correction" in words
