"""Numbers that are no answer: yardsticks, few seeds, weak evaluators, failed attacks."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from scipy.stats import ttest_rel

from mibench.attacks import GMI, VMI, PriorSamples
from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.evaluation import METRICS
from mibench.evaluation.significance import interval, paired
from mibench.reporting.cautions import (
    CONTROL,
    CONTROL_TITLE,
    cautions,
    control_table,
    is_above,
    p_above,
)
from mibench.reporting.contrasts import Contrast
from mibench.reporting.forms import render
from mibench.reporting.page import page
from mibench.reporting.published import Published
from mibench.reporting.results import Results, collect
from mibench.running.grid import Grid, record_stages
from mibench.running.stages import RecordStage, graph
from mibench.store import Payload, Store
from tests.made import fill, smoke

BARE, MID = "GMI / No Def.", "GMI / MID"
YARDSTICKS = {
    "evaluator_agreement", "evaluator_kappa", "false_positives", "fid_floor",
    "fid_identity_floor", "most_frequent", "trait_agreement", "trait_acc_real",
    "attack_acc_false",
}  # fmt: skip
NOTHING = "this says nothing about leakage"
FORMS = ("text", "markdown", "latex", "csv", "json")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def row(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.strip(" |").startswith(label))


def made(
    store: Path,
    accs: dict[str, Sequence[Sequence[float]]],
    controls: dict[str, Sequence[Sequence[float]]] | None = None,
    *,
    evaluator: float = 98.0,
    accuracy: float = 90.0,
) -> Results:
    """Returns a table of records with the given Attack Acc of each class, seed by seed."""
    table = smoke(*accs)
    seeds = max(map(len, accs.values()))
    rows = record_stages(table, seeds, Path())
    beside = record_stages(control_table(table), seeds, Path())
    known = [(r, v) for k, vs in accs.items() for r, v in zip(rows[k], vs, strict=False)]
    known += [
        (r, v) for k, vs in (controls or {}).items() for r, v in zip(beside[k], vs, strict=False)
    ]
    values = {stage.key: each for stage, each in known}

    def compute(stage: RecordStage, *_: object) -> Payload:
        each = list(values[stage.key])
        acc = {"mean": sum(each) / len(each), "std": 1.5, "n": 5}
        other = 7.0 + stage.cell.seeds.target
        scores = {name: {"mean": other, "std": 1.0} for name in table.columns}
        scores |= {"accuracy": {"mean": accuracy, "std": 0.0}, "attack_acc": acc}
        return {
            "scores": {k: s | {"n": 5} for k, s in scores.items()},
            "values": {k: [each] for k in scores},
            "evaluator": {"accuracy": evaluator},
            "sizes": {"reconstructions": 50, "real": 50, "dimensions": 8, "classes": 10},
            "warnings": [],
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordStage, "compute", compute)
        for stage, _ in known:
            Store(store).complete(stage)
    beside_it = Grid(control_table(table), beside, Store(store))
    return collect(Grid(table, rows, Store(store), beside_it if controls is not None else None))


# Yardsticks -------------------------------------------------------------------------------


def test_yardsticks_are_better_neither_way() -> None:
    assert {m.name for m in METRICS.values() if not m.better} == YARDSTICKS


def test_a_yardstick_has_no_arrow_and_no_test_in_any_form(tmp_path: Path) -> None:
    table = replace(smoke(BARE, MID), columns=("accuracy", "fid_floor", "fid"))
    store = Store(tmp_path)
    records = fill(table, store, seeds=3)
    results = collect(Grid(table, records, store))
    for form in ("text", "markdown", "latex"):
        text = render(results, form)
        assert "FID real" in text
        assert "FID real ↓" not in text
        assert "FID real ↑" not in text
        assert r"FID real $\uparrow$" not in text
        assert "FID real needs" not in text
        assert "A column without one is a yardstick" in text
    frame = results.summary()
    assert frame[["fid_floor_diff", "fid_floor_p"]].isna().all(axis=None)
    assert frame.loc[MID, ["fid_diff", "fid_p"]].notna().all()
    assert results.contrasts("fid_floor") == []
    columns = {c["name"]: c for c in json.loads(render(results, "json"))["columns"]}
    assert columns["fid_floor"]["better"] == ""
    assert columns["fid"]["better"] == "higher"
    told = page([(Grid(table, records, store), ["smoke"])])
    assert ">FID real<" in told
    assert ">FID ↑<" in told


def test_explain_calls_a_yardstick_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = replace(smoke(BARE, MID), columns=("accuracy", "fid_floor"))
    monkeypatch.setitem(TABLES, "mine", table)
    fill(table, Store(tmp_path), seeds=3, data=Path())
    text = call("explain", "mine", MID, "fid_floor", "--store", tmp_path).stdout
    assert "It is a yardstick: neither way is better for the defender." in text
    assert "none: a yardstick is not tested" in text
    assert "What Attack Acc says" not in text


# Few seeds --------------------------------------------------------------------------------


def test_two_values_have_no_interval_and_three_have() -> None:
    two = interval([13.0, 32.6])
    assert two.mean == pytest.approx(22.8)
    assert two.half is None
    assert two.method == "none: 2 seeds are too few, it takes 3"
    assert interval([13.0, 32.6, 20.0]).half is not None
    test = paired([13.0, 32.6], [0.0, 0.0])
    assert test.p is not None
    assert test.interval.half is None


def test_two_seeds_are_shown_as_their_values_without_a_guess_at_more(tmp_path: Path) -> None:
    results = made(tmp_path, {BARE: [[20.0] * 5, [70.0] * 5], MID: [[13.0] * 5, [32.6] * 5]})
    text = render(results, "text")
    assert "22.80 (13.00, 32.60)" in row(text, MID)
    assert "±" not in text
    assert "Mean over 2 seeds with the value of each: an interval takes 3 seeds." in text
    assert "more seeds" not in text
    (line,) = [r for r in csv.DictReader(io.StringIO(render(results, "csv"))) if r["row"] == MID]
    assert [line[f"attack_acc_{end}"] for end in ("t95", "low", "high")] == ["", "", ""]
    assert line["attack_acc_p"]
    contrast = results.entries[MID]["attack_acc"].contrast
    assert contrast is not None
    assert contrast.more is None
    told = call("explain", "smoke", MID, "attack_acc", "--store", tmp_path).stdout
    assert "none: 2 seeds are too few, it takes 3" in told
    assert "not significantly different at 5 %\n" in told


def test_of_three_seeds_two_that_are_there_show_their_values(tmp_path: Path) -> None:
    results = made(tmp_path, {BARE: [[20.0], [40.0], [30.0]], MID: [[13.0], [32.6]]})
    text = render(results, "text")
    assert "22.80 (13.00, 32.60)" in row(text, MID)
    assert "30.00 ± " in row(text, BARE)
    assert "Fewer seeds so far: GMI / MID (2). With the value of each of two" in text


# Evaluators -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("evaluator", "accuracy", "weak"),
    [
        (42.0, 42.0, "below 90 %:"),
        (89.99, 50.0, "below 90 %:"),
        (90.0, 89.0, ""),
        (94.99, 95.0, "below 95 % and not above the target's Accuracy:"),
        (92.0, 92.0, "below 95 % and not above the target's Accuracy:"),
        (92.0, 91.0, ""),
        (95.0, 99.9, ""),
    ],
)
def test_an_evaluator_is_weak_below_its_thresholds(
    evaluator: float, accuracy: float, weak: str, tmp_path: Path
) -> None:
    results = made(tmp_path, {BARE: [[12.0] * 5]}, evaluator=evaluator, accuracy=accuracy)
    reasons = cautions(results).get(BARE, [])
    assert len(reasons) == bool(weak)
    for reason in reasons:
        assert weak in reason
        assert NOTHING in reason


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_that_a_weak_evaluator_is_no_answer(form: str, tmp_path: Path) -> None:
    text = render(made(tmp_path, {BARE: [[12.0] * 5]}, evaluator=42.0), form)
    assert NOTHING in text
    assert "42.00" in text
    if form in ("text", "markdown"):
        assert "12.00 ± 1.50 ‡" in row(text, BARE)
    if form == "latex":
        assert r"12.00 $\pm$ 1.50 $\ddagger$" in row(text, BARE)
    if form == "csv":
        assert NOTHING in next(csv.DictReader(io.StringIO(text)))["caution"]
    if form == "json":
        assert NOTHING in json.loads(text)["rows"][0]["caution"]


def test_a_table_without_cautions_has_no_column_for_them(tmp_path: Path) -> None:
    results = made(tmp_path, {BARE: [[12.0] * 5]})
    assert "caution" not in results.summary()
    assert "‡" not in render(results, "text")


def test_explain_says_that_a_weak_evaluator_is_no_answer(tmp_path: Path) -> None:
    made(tmp_path, {BARE: [[12.0] * 5]}, evaluator=42.0)
    text = call("explain", "smoke", BARE, "attack_acc", "--store", tmp_path).stdout
    assert "  The evaluation classifier is right about 42.00 % of its test images" in text
    assert f"{NOTHING}.\n" in text
    assert f"{CONTROL_TITLE}: not computed; compute it with: mibench run smoke --rows" in text


# Controls ---------------------------------------------------------------------------------


def test_a_control_is_the_row_with_samples_of_its_prior_on_the_same_target() -> None:
    table = smoke()
    found = control_table(table)
    assert list(found.rows) == list(table.rows)
    for label, cell in table.rows.items():
        other = found.rows[label]
        assert other.attack == PriorSamples(cell.attack.prior)
        assert replace(other, attack=cell.attack) == cell
        stages = [
            {s.key for s in graph(r[label]) if s.kind in ("classifier", "prior", "images")}
            for r in (record_stages(t, 1, None) for t in (table, found))
        ]
        assert stages[0] == stages[1]


def test_the_controls_of_digits_controls_are_rows_of_it_and_these_have_none() -> None:
    table = TABLES["digits-controls"]
    found = control_table(table).rows
    assert found["KED-MI / MID"] == table.rows["Prior samples / MID"]
    assert not [label for label in found if label.startswith("Prior samples")]


def test_an_attack_that_keeps_snapshots_has_a_control_that_keeps_none() -> None:
    table = smoke("VMI / No Def.")
    vmi = table.rows["VMI / No Def."].attack
    assert isinstance(vmi, VMI)
    rows = {
        k: replace(
            c,
            attack=replace(vmi, snapshots=2),
            protocol=replace(c.protocol, select="evaluator"),
        )
        for k, c in table.rows.items()
    }
    (control,) = control_table(Table("t", "t", rows)).rows.values()
    assert control.protocol.select == "last"


FLAT, ABOVE = [10.0, 12.0, 8.0, 11.0, 9.0], [70.0, 60.0, 80.0, 75.0, 65.0]


@pytest.mark.parametrize(
    ("attack", "control", "caution"),
    [
        ([ABOVE], [FLAT], False),
        ([FLAT], [ABOVE], True),
        ([[10.0, 40.0, 8.0, 11.0, 9.0]], [FLAT], True),
        ([ABOVE, ABOVE], [FLAT, FLAT], False),
        ([[0.0, 100.0, 0.0, 0.0, 90.0]] * 3, [[1.0, 2.0, 1.0, 2.0, 1.0]] * 3, True),
        ([ABOVE, [x - 40 for x in ABOVE], [x - 50 for x in ABOVE]], [FLAT] * 3, False),
        ([[50.0] * 5] * 3, [[10.0] * 5] * 3, False),
        ([[12.0, 18.0, 7.0, 13.0, 14.0]], [FLAT], False),  # p 0.044, two-sided 0.087
    ],
    ids=[
        "above",
        "below",
        "one class",
        "two seeds",
        "half of the classes",
        "seeds vary",
        "agree",
        "one-sided",
    ],
)
def test_an_attack_that_finds_no_more_than_its_prior_is_no_answer(
    attack: list[list[float]], control: list[list[float]], caution: bool, tmp_path: Path
) -> None:
    results = made(tmp_path, {BARE: attack}, {BARE: control})
    assert (BARE in cautions(results)) == caution
    text = render(results, "text")
    assert (NOTHING in text) == caution
    assert CONTROL_TITLE in text.splitlines()[2]


def test_a_difference_that_all_classes_share_is_above_where_there_are_enough() -> None:
    def contrast(a: list[float], b: list[float]) -> Contrast:
        return Contrast("a", "b", (0, 1, 2), paired(a, b), None, 1, None)

    assert is_above(contrast([5.0] * 5, [1.0] * 5)) is True  # 1 in 32
    assert is_above(contrast([5.0] * 4, [1.0] * 4)) is None  # 1 in 16
    assert is_above(contrast([1.0] * 3, [1.0] * 3)) is False


def test_the_one_sided_p_is_of_an_attack_above_its_control() -> None:
    more, less = [3.0, 5.0, 4.0, 6.0], [2.0, 5.5, 3.0, 4.0]
    for a, b in ((more, less), (less, more)):
        assert p_above(paired(a, b)) == pytest.approx(
            ttest_rel(a, b, alternative="greater").pvalue
        )


@pytest.mark.parametrize("form", FORMS)
def test_every_form_shows_the_control(form: str, tmp_path: Path) -> None:
    text = render(made(tmp_path, {BARE: [FLAT]}, {BARE: [[9.0, 13.0, 8.0, 11.0, 9.5]]}), form)
    assert NOTHING in text
    if form == "csv":
        line = next(csv.DictReader(io.StringIO(text)))
        assert float(line[CONTROL]) == pytest.approx(10.1)
        assert float(line[f"{CONTROL}_diff"]) == pytest.approx(-0.1)
        assert 0 < float(line[f"{CONTROL}_p"]) < 1
    elif form == "json":
        assert json.loads(text)["rows"][0][CONTROL] == pytest.approx(10.1)
        assert json.loads(text)["columns"][-1]["name"] == CONTROL
    else:
        assert "10.10" in row(text, BARE)


def test_the_page_and_explain_show_the_control(tmp_path: Path) -> None:
    table, store = smoke(BARE), Store(tmp_path)
    records = fill(table, store, data=Path())
    others = control_table(table)
    beside = Grid(others, fill(others, store, data=Path()), store)
    text = page([(Grid(table, records, store, beside), ["smoke"])])
    assert f">{CONTROL_TITLE}<" in text
    assert " ‡</span>" in text
    assert NOTHING in text
    acc = store.load(beside.records[BARE][0])["scores"]["attack_acc"]["mean"]
    assert f'<td data-value="{acc}">' in text
    told = call("explain", "smoke", BARE, "attack_acc", "--store", tmp_path).stdout
    assert f"  {CONTROL_TITLE}: {acc:.2f} %, without an attack on the same target\n" in told
    contrast = collect(Grid(table, records, store, beside)).controls[BARE].contrast
    assert contrast is not None
    p = f"{p_above(contrast.test):.3g}"
    assert f"paired over classes, p = {p}, one-sided: not significantly above at 5 %" in told


def test_over_several_seeds_a_control_is_paired_over_classes_too(tmp_path: Path) -> None:
    table, store = smoke(BARE), Store(tmp_path)
    for each in (table, control_table(table)):
        fill(each, store, seeds=3, data=Path())
    told = call("explain", "smoke", BARE, "attack_acc", "--store", tmp_path).stdout
    assert "points, paired over classes, p = " in told.split(CONTROL_TITLE)[1]


def test_a_table_without_controls_says_how_to_get_them(tmp_path: Path) -> None:
    made(tmp_path, {BARE: [FLAT], MID: [FLAT]}, {BARE: [FLAT]})
    options = ["--rows", "GMI / No Def.", "--rows", "GMI / MID", "--store", tmp_path]
    done = call("table", "smoke", *options)
    assert done.stderr.count("\n") == 1
    command = f"mibench run smoke --rows '{BARE}' --rows '{MID}' --store {tmp_path} --controls"
    assert done.stderr.rstrip().endswith(command)
    assert CONTROL_TITLE not in done.stdout
    done = call("table", "smoke", *options, "--controls")
    assert done.stderr.startswith(f"note: 1 of 2 controls are not in {tmp_path}; compute them")
    assert f"{CONTROL_TITLE} is not computed for GMI / MID." in done.stdout
    done = call("table", "smoke", *options[:2], *options[-2:], "--controls")
    assert done.stderr == ""


def test_controls_need_attack_acc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLES, "mine", replace(smoke(BARE), columns=("accuracy",)))
    done = call("table", "mine", "--controls", "--store", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: smoke has no column attack_acc")


def test_a_dry_run_tells_of_the_controls(tmp_path: Path) -> None:
    done = call("run", "smoke", "--rows", BARE, "--controls", "--dry-run", "--store", tmp_path)
    assert f"{BARE}, samples of its prior, seed 0" in done.stdout
    assert "prior-samples on none" in done.stdout


def test_records_of_controls_are_read_back_and_none_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = smoke(BARE).rows[BARE]
    assert isinstance(bare.attack, GMI)
    longer = replace(bare, attack=replace(bare.attack, steps=60))  # the same prior
    itself = control_table(smoke(MID)).rows[MID]
    rows = {BARE: bare, "longer / No Def.": longer, MID: smoke(MID).rows[MID], "none": itself}
    table = replace(smoke(BARE), rows=rows)
    monkeypatch.setitem(TABLES, "mine", table)
    store = Store(tmp_path / "store")
    fill(table, store, data=Path())
    beside = fill(control_table(table), store, data=Path())
    done = call(
        "records", "write", "mine", "--controls", "--store", store.root,
        "-o", tmp_path / "records",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "records").iterdir())) == 5
    records = record_stages(table, 1, None)
    others = Grid(control_table(table), beside, Published(tmp_path / "records"))
    read = collect(Grid(table, records, Published(tmp_path / "records"), others))
    assert [entry.mean is not None for entry in read.controls.values()] == [True] * 3
