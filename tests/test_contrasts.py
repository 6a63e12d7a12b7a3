"""What a table says of differences, with records made by hand."""

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mibench.benchmarks.cell import Evaluator
from mibench.benchmarks.tables import TABLES, Table
from mibench.data.synthetic import Blobs
from mibench.evaluation.significance import (
    holm,
    identity_interval,
    interval,
    paired,
    seeds_needed,
    smallest_difference,
)
from mibench.reporting.contrasts import between, reference, with_none
from mibench.reporting.explain import Number
from mibench.reporting.forms import render
from mibench.reporting.matrix import matrix
from mibench.reporting.notes import footnotes
from mibench.reporting.results import Results, collect
from mibench.running.grid import Grid, record_stages
from mibench.store import Payload, Stage, Store

ATTACKS, DEFENSES = ("GMI", "KED-MI"), ("No Def.", "MID", "BiDO-HSIC")
TABLE = replace(
    TABLES["smoke"].only([f"{a} / {d}" for a in ATTACKS for d in DEFENSES]),
    columns=("accuracy", "attack_acc"),
)
NONE = [50.0, 52.0, 51.0, 49.0]
LOWER = [30.0, 31.0, 31.5, 28.0]  # 20 below
HIGHER = [70.0, 71.0, 71.5, 68.0]
NOISY = [55.0, 40.0, 60.0, 48.0]
ACCURACIES: dict[str, list[float]] = {
    "No Def.": [99, 98, 99.5, 98.5],
    "MID": [90, 88.0, 91, 89],
    "BiDO-HSIC": [100] * 4,
}
ACCS = {
    "GMI / No Def.": NONE, "GMI / MID": LOWER, "GMI / BiDO-HSIC": HIGHER,
    "KED-MI / No Def.": NONE, "KED-MI / MID": NOISY, "KED-MI / BiDO-HSIC": NONE,
}  # fmt: skip


class Made(Store):
    """A store that knows the payloads it is given, and nothing on any disk."""

    def __init__(self, payloads: Mapping[str, Payload]) -> None:
        super().__init__(Path("nowhere"))
        self.payloads = payloads

    def state(self, stage: Stage) -> str:
        return "done" if stage.key in self.payloads else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        return {s.key: self.state(s) for s in stages}

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        return self.payloads[stage.key], {}


def payload(scores: Mapping[str, float], values: Sequence[float] = ()) -> Payload:
    return {
        "scores": {name: {"mean": v, "std": 1.0, "n": 1} for name, v in scores.items()},
        "values": {name: [list(values)] for name in scores},
        "evaluator": {"accuracy": 97.0},
        "sizes": {"reconstructions": 50, "real": 50, "dimensions": 8, "classes": 10},
    }


def made(
    accs: Mapping[str, Sequence[float | None]] = ACCS,
    table: Table = TABLE,
    accuracies: Mapping[str, Sequence[float]] = {},
) -> Results:
    records = record_stages(table, 4, None)
    of = {label: accuracies.get(label, ACCURACIES[label.split(" / ")[1]]) for label in accs}
    payloads = {
        records[label][seed].key: payload({"accuracy": of[label][seed], "attack_acc": value})
        for label, values in accs.items()
        for seed, value in enumerate(values)
        if value is not None
    }
    return collect(Grid(table, records, Made(payloads)))


@pytest.mark.parametrize(
    ("rows", "who"),
    [
        (("GMI / No Def.", "GMI / MID", "GMI / BiDO-COCO", "GMI / BiDO-HSIC"), "GMI: "),
        (("GMI / MID",), "GMI / MID: "),
        (tuple(TABLE.rows), ""),
    ],
)
def test_a_warning_names_its_rows_unless_it_is_of_all(rows: tuple[str, ...], who: str) -> None:
    records = record_stages(TABLE, 1, None)
    payloads = {}
    for label, (record,) in records.items():
        told = payload(dict.fromkeys(TABLE.columns, 50.0))
        payloads[record.key] = told | {"warnings": ["Mind this."] * (label in rows)}
    assert collect(Grid(TABLE, records, Made(payloads))).warnings == (f"{who}Mind this.",)


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ("GMI / MID", "97.00 % for GMI / No Def., GMI / BiDO-HSIC; 96.00 % for GMI / MID"),
        ("", "Evaluation classifier: 97.00 % test accuracy."),
    ],
)
def test_a_note_says_which_rows_another_evaluator_judged(other: str, note: str) -> None:
    table = TABLE.only(["GMI"])
    records = record_stages(table, 1, None)
    payloads = {}
    for label, (record,) in records.items():
        payloads[record.key] = payload(dict.fromkeys(TABLE.columns, 50.0))
        payloads[record.key]["evaluator"] = {"accuracy": 97.0 - (label == other)}
    results = collect(Grid(table, records, Made(payloads)))
    assert note in "\n".join(footnotes(results))
    assert results.evaluator == (None if other else 97.0)


@pytest.mark.parametrize(
    ("size", "there"),
    [({"reconstructions": 0}, 1), ({"reconstructions": -1}, 0), ({"real": 0}, 0),
     ({"dimensions": 0}, 0), ({"classes": 0}, 0), ({"classes": 2.5}, 0)],
)  # fmt: skip
def test_a_row_of_which_nothing_succeeded_stays_and_nonsense_is_left_out(
    size: dict[str, float], there: int
) -> None:
    """FID of the successful reconstructions rests on none where none hit."""
    records = record_stages(TABLE, 1, None)
    told = payload({"accuracy": 99.0, "attack_acc": 0.0})
    told["sizes"] |= size
    results = collect(Grid(TABLE, records, Made({records["GMI / MID"][0].key: told})))
    assert results.found["GMI / MID"] == there


def contrast_p(results: Results, label: str, name: str = "attack_acc") -> float | None:
    contrast = results.entries[label][name].contrast
    assert contrast is not None
    return contrast.p


# Who is compared with whom --------------------------------------------------------------------


def test_a_row_is_compared_with_no_defense_of_its_own_attack() -> None:
    assert reference(TABLE, "GMI / MID") == "GMI / No Def."
    assert reference(TABLE, "KED-MI / MID") == "KED-MI / No Def."
    assert reference(TABLE, "GMI / No Def.") is None
    assert reference(TABLE.only(["MID"]), "GMI / MID") is None
    longer = replace(TABLE, rows={**TABLE.rows, **TABLE.only(["GMI / No Def."]).modified(
        ["attack.steps=7"]).rows})  # fmt: skip
    assert reference(longer, "GMI / MID") is None


def test_of_several_rows_without_a_defense_the_one_with_the_same_recipe_counts() -> None:
    bare = TABLE.rows["GMI / No Def."]
    other = replace(bare, recipe=replace(bare.recipe, epochs=9))
    rows = {"GMI / other": other, **TABLE.rows}
    assert reference(replace(TABLE, rows=rows), "GMI / MID") == "GMI / No Def."
    mid = replace(TABLE.rows["GMI / MID"], recipe=other.recipe)
    assert reference(replace(TABLE, rows={**rows, "GMI / MID": mid}), "GMI / MID") == "GMI / other"


def test_an_other_setting_is_not_compared() -> None:
    cell = TABLE.rows["GMI / MID"]
    setting = replace(cell.setting, evaluators=(Evaluator(cell.setting.network, cell.recipe),))
    moved = replace(TABLE, rows={**TABLE.rows, "GMI / MID": replace(cell, setting=setting)})
    assert reference(moved, "GMI / MID") is None


def test_all_rows_of_a_column_are_corrected_together() -> None:
    results = made()
    tested = ["GMI / MID", "GMI / BiDO-HSIC", "KED-MI / MID"]
    raw = [paired(ACCS[k], NONE).p for k in tested]
    assert [contrast_p(results, k) for k in tested] == pytest.approx(holm(raw))
    contrast = results.entries["GMI / MID"]["attack_acc"].contrast
    assert contrast is not None
    assert (contrast.tests, contrast.seeds, contrast.test.diff) == (3, (0, 1, 2, 3), -20.375)


def test_differences_that_agree_are_not_tested_and_the_footnote_says_so() -> None:
    results = made()
    assert contrast_p(results, "KED-MI / BiDO-HSIC") is None
    note = "Differences agree, which leaves no test: Attack Acc of KED-MI / BiDO-HSIC."
    assert note in footnotes(results)
    assert "Seeds agree, which leaves no interval: Accuracy of BiDO-HSIC." in footnotes(results)


def test_what_is_measured_on_the_target_is_asked_once_for_all_attacks() -> None:
    results = made()
    raw = [paired(ACCURACIES[d], ACCURACIES["No Def."]).p for d in ("MID", "BiDO-HSIC")]
    for attack in ATTACKS:
        got = [contrast_p(results, f"{attack} / {d}", "accuracy") for d in ("MID", "BiDO-HSIC")]
        assert got == pytest.approx(holm(raw))


def test_a_target_of_another_kind_of_machine_is_another_target() -> None:
    """On another kind of machine the same seed trains a target to another accuracy."""
    bare, mid = [97.0, 98.5, 99, 98], [94, 95.5, 96, 95]
    results = made(accuracies={"KED-MI / No Def.": bare, "KED-MI / MID": mid})
    own = {"GMI / MID": ("MID", "No Def."), "GMI / BiDO-HSIC": ("BiDO-HSIC", "No Def.")}
    raw = [paired(ACCURACIES[a], ACCURACIES[b]).p for a, b in own.values()]
    raw.append(paired(ACCURACIES["BiDO-HSIC"], bare).p)
    assert [
        contrast_p(results, k, "accuracy") for k in (*own, "KED-MI / BiDO-HSIC")
    ] == pytest.approx(holm(raw))
    assert contrast_p(results, "KED-MI / MID", "accuracy") is None
    (note,) = [n for n in footnotes(results) if n.startswith("Differences agree")]
    assert "Accuracy of KED-MI / MID" in note
    assert "Accuracy of MID" not in note
    both = made(accuracies={f"{a} / {d}": v for a in ATTACKS for d, v in
                            (("No Def.", bare), ("MID", mid))})  # fmt: skip
    assert any("no test: Accuracy of MID," in note for note in footnotes(both))


def test_a_target_that_fewer_seeds_of_an_attack_have_met_is_tested_once() -> None:
    values = {
        label: dict(enumerate(ACCURACIES[label.split(" / ")[1]][: 4 if "KED" in label else n]))
        for label, n in zip(TABLE.rows, (4, 3, 1, 4, 4, 4), strict=True)
    }
    found = with_none(TABLE, "accuracy", values)
    for defense in ("MID", "BiDO-HSIC"):
        few, all_seeds = found[f"GMI / {defense}"], found[f"KED-MI / {defense}"]
        assert replace(few, row=all_seeds.row, other=all_seeds.other) == all_seeds
        assert (all_seeds.tests, all_seeds.seeds) == (2, (0, 1, 2, 3))
    assert with_none(TABLE, "attack_acc", values)["GMI / MID"].seeds == (0, 1, 2)


def test_rows_are_paired_at_the_seeds_that_both_have() -> None:
    results = made({**ACCS, "GMI / MID": [30.0, None, 31.5, 28.0]})
    contrast = results.entries["GMI / MID"]["attack_acc"].contrast
    assert contrast is not None
    assert contrast.seeds == (0, 2, 3)
    assert contrast.test == paired([30, 31.5, 28], [50, 51, 49])
    assert "Fewer seeds so far: GMI / MID (3)." in footnotes(results)
    assert made({**ACCS, "GMI / MID": []}).entries["GMI / MID"]["attack_acc"].contrast is None


def test_defenses_under_one_attack_are_compared_with_each_other() -> None:
    results = made()
    found = results.contrasts("attack_acc")
    assert [(c.row, c.other) for c in found] == [
        ("GMI / MID", "GMI / BiDO-HSIC"), ("KED-MI / MID", "KED-MI / BiDO-HSIC"),
    ]  # fmt: skip
    raw = [paired(LOWER, HIGHER).p, paired(NOISY, NONE).p]
    assert [c.p for c in found] == pytest.approx(holm(raw))


def test_a_seed_whose_value_is_no_number_does_not_count() -> None:
    nan = made({**ACCS, "GMI / MID": [30.0, float("nan"), 31.5, 28.0]})
    assert nan.entries["GMI / MID"]["attack_acc"].values == {0: 30, 2: 31.5, 3: 28}
    assert made({**ACCS, "GMI / MID": [float("nan")] * 4}).entries["GMI / MID"][
        "attack_acc"
    ].mean is None  # fmt: skip


def test_a_metric_that_is_undefined_at_some_seeds_says_at_how_many_it_is_not() -> None:
    results = made({**ACCS, "GMI / MID": [30.0, float("nan"), 31.5, 28.0]})
    text = render(results, "text")
    assert "* 29.83 ± 4.36 (3/4)" in row(text, "GMI / MID")
    assert text.count("(3/4)") == 1
    frame = results.summary()
    assert list(frame["attack_acc_seeds"]) == [4, 3, 4, 4, 4, 4]
    assert "accuracy_seeds" not in frame
    for short in (False, True):
        (note,) = [n for n in footnotes(results, short=short) if n.startswith("(n/N)")]
        assert note.startswith("(n/N) in Attack Acc: at n of the row's N seeds there is a value")
        assert note.endswith("n is attack_acc_seeds.")
    assert "attack_acc_seeds" not in made().summary()
    assert not [n for n in footnotes(made()) if n.startswith("(n/N)")]


# What is printed ------------------------------------------------------------------------------


def row(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if label in line and "±" in line)


@pytest.mark.parametrize(
    ("form", "label", "better", "worse"),
    [
        ("text", "GMI / MID", "   * 30.12 ± 2.46", "   † 70.12 ± 2.46"),
        ("markdown", "GMI / MID", "| **30.12 ± 2.46** |", "| † 70.12 ± 2.46 |"),
        ("latex", "GMI / MID", r"& \textbf{30.12 ± 2.46} \\", r"& $\dagger$ 70.12 ± 2.46 \\"),
    ],
)
def test_better_is_bold_worse_has_a_dagger_and_the_rest_nothing(
    form: str, label: str, better: str, worse: str
) -> None:
    text = render(made(), form).replace(r"$\pm$", "±")
    assert row(text, label).endswith(better)
    assert row(text, "GMI / BiDO-HSIC").endswith(worse)
    assert "50.75 ± 13.83" in row(text, "KED-MI / MID")
    for mark in ("* 50.75", "*50.75", "† 50.75", "$ 50.75", "{50.75"):
        assert mark not in text
    dagger = r"$\dagger$" if form == "latex" else "†"
    assert f"{dagger} 89.50" in row(text, label)  # a lower accuracy is worse
    assert f"{'*' if form == 'text' else 'Bold:'} better, {dagger} worse for the defender" in text


def test_a_table_says_what_difference_its_seeds_would_find() -> None:
    results = made({**ACCS, "KED-MI / MID": [45.0, 52.0, 40.0, 48.0]})
    contrast = results.entries["KED-MI / MID"]["attack_acc"].contrast
    assert contrast is not None
    diffs = [-5.0, 0.0, -11.0, -1.0]
    assert contrast.more == seeds_needed(diffs, 0.05 / 3) != seeds_needed(diffs)
    assert contrast.smallest == smallest_difference(diffs)
    (note,) = (note for note in footnotes(results) if "four times in five" in note)
    assert note.startswith("With 4 seeds a true difference from No Def. of this size")
    assert note.endswith(f", KED-MI {contrast.smallest:.3g}.")
    each = [
        smallest_difference([a - b for a, b in zip(ACCS[f"GMI / {d}"], NONE, strict=True)])
        for d in DEFENSES[1:]
    ]
    assert f"; Attack Acc GMI {statistics.median(v for v in each if v):.3g}, KED-MI" in note


def test_the_csv_has_plain_numbers_that_pandas_reads_back() -> None:
    results = made()
    text = render(results, "csv")
    assert text == render(made(), "csv")
    read = pd.read_csv(io.StringIO(text), index_col="row")
    pd.testing.assert_frame_equal(read, results.summary(), rtol=1e-9, check_dtype=False)
    mid = read.loc["GMI / MID"]
    span = interval(LOWER)
    assert [mid["attack_acc_low"], mid["attack_acc_high"]] == pytest.approx([span.low, span.high])
    assert mid["attack_acc_t95"] == pytest.approx(span.half)
    assert mid["attack_acc_diff"] == -20.375
    assert mid["attack_acc_p"] == pytest.approx(contrast_p(results, "GMI / MID"))
    assert mid["seeds"] == 4
    assert pd.isna(read.loc["GMI / No Def.", "attack_acc_p"])


def test_ends_of_a_percentage_are_cut_off_and_half_the_width_is_not() -> None:
    low = [1.0, 0.0, 6.0, 0.0]
    frame = made({**ACCS, "GMI / MID": low}).summary()
    assert frame.loc["GMI / MID", "attack_acc_low"] == 0
    assert frame.loc["GMI / MID", "attack_acc_t95"] == pytest.approx(interval(low).half)


def of_twenty(**trials: int) -> Table:
    """Returns a table of one row, in which 20 classes are attacked twice each."""
    cell = TABLE.rows["GMI / No Def."]
    faces = replace(cell, setting=replace(cell.setting, task=Blobs(num_classes=20)))
    trials = {"classes": 20, "samples": 2, **trials}
    rows = {"GMI / No Def.": replace(faces, trials=replace(cell.trials, **trials))}
    return replace(TABLE, rows=rows, columns=("accuracy", "attack_acc"))


@pytest.mark.parametrize(
    ("block", "spread", "there"),
    [(15, "block", False), (10, "block", True), (20, "block", True), (15, "pass", True)],
)
def test_a_mean_over_blocks_of_unequal_size_has_no_interval_over_identities(
    block: int, spread: str, there: bool
) -> None:
    table = of_twenty(block=block).modified([f"protocol.spread={spread}"])
    records = record_stages(table, 1, None)
    told = payload({"accuracy": 99.0, "attack_acc": 9.0}, [float(c) for c in range(40)])
    grid = Grid(table, records, Made({records["GMI / No Def."][0].key: told}))
    results = collect(grid)
    assert (results.entries["GMI / No Def."]["attack_acc"].identities is not None) == there
    assert ("attack_acc_id_low" in results.summary()) == there
    shown = "".join(Number(grid, results, "GMI / No Def.", "attack_acc", "")._values())
    assert ("because the mean is over blocks of unequal size" in shown) != there
    if not there:
        with pytest.raises(ValueError, match=r"mean over blocks of unequal size.*--protocol"):
            matrix(grid)


def test_the_bootstrap_takes_each_images_identity_and_only_where_there_are_twenty() -> None:
    assert not [c for c in made().summary() if "_id_" in c]
    table = of_twenty()
    records = record_stages(table, 1, None)
    means = [float(c) for c in range(20)]
    # Pass by pass, as reconstructions come: the two images of an identity are 20 apart.
    images = [c - 1 for c in means] + [c + 1 for c in means]
    key = records["GMI / No Def."][0].key
    results = collect(
        Grid(table, records, Made({key: payload({"accuracy": 99.0, "attack_acc": 9.5}, images)}))
    )
    entry = results.entries["GMI / No Def."]
    assert entry["accuracy"].identities is None
    assert entry["attack_acc"].identities == identity_interval([means])
    frame = results.summary()
    assert frame.loc["GMI / No Def.", "attack_acc_id_low"] == identity_interval([means]).low
    assert "accuracy_id_low" not in frame


def test_one_seed_prints_the_spread_and_says_it_carries_no_interval() -> None:
    records = record_stages(TABLE, 1, None)
    payloads = {
        records[k][0].key: payload({"accuracy": 99.0, "attack_acc": v[0]}) for k, v in ACCS.items()
    }
    results = collect(Grid(TABLE, records, Made(payloads)))
    assert "30.00 ± 1.00" in row(render(results, "text"), "GMI / MID")
    assert "*" not in render(results, "text")
    assert "One seed carries no interval" in footnotes(results)[0]
    assert results.summary()[["attack_acc_low", "attack_acc_p"]].isna().all(axis=None)


def test_functions_of_contrasts_take_any_values() -> None:
    values = {k: dict(enumerate(v)) for k, v in ACCS.items()}
    assert with_none(TABLE, "attack_acc", values).keys() == {k for k in ACCS if "No Def." not in k}
    assert len(between(TABLE, "attack_acc", values)) == 2
