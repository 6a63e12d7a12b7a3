"""Tables as people want them: chosen columns, looks, and several side by side, without a run."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mibench.cli import main
from mibench.evaluation import METRICS
from mibench.reporting.columns import Scored
from mibench.reporting.results import collect
from mibench.reporting.sheet import Look, sheet
from mibench.running.grid import Grid, record_stages
from mibench.store import Store
from tests.made import SMOKE, commit, fill, smoke

RESULTS = Path(__file__).parents[1] / "results"
BOTH = "digits+digits-controls"
ROWS = [word for row in smoke().rows for word in ("--rows", row)]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in arguments])


def table(name: str, *options: object, root: Path = RESULTS / "digits") -> str:
    done = call("table", name, "--records", root, *options)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published records of two tables, of the first two seeds."""
    root = tmp_path_factory.mktemp("both")
    for name in BOTH.split("+"):
        for path in (RESULTS / name / "records").glob("*-seed[01]-*.json.gz"):
            shutil.copy(path, root)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fill(smoke(), Store(tmp_path / "store"), data=tmp_path)
    return tmp_path / "store"


def stored(root: Path, *options: object) -> Result:
    return call("table", "smoke", *ROWS, "--store", root, "--data", root.parent, *options)


def test_tables_side_by_side_share_rows_and_need_no_run(both: Path) -> None:
    columns = ["--columns", "attack_acc,accuracy", "--decimals", "1", "--notes", "none"]
    lines = table(BOTH, *columns, "--format", "markdown", root=both).splitlines()
    assert lines[0].startswith("**digits: Privacy and utility")
    assert " digits-controls: What four evaluators" in lines[0]
    assert lines[2] == (
        "|  | digits: Attack Acc ↓ | digits: Accuracy ↑ | digits-controls: Attack Acc ↓ | "
        "digits-controls: Accuracy ↑ |"
    )
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines[4:]}
    assert len(rows) == len(lines[4:]) == 24
    for text in rows["KED-MI / MID"]:
        mean, values = text.split("(")
        assert all(len(n.strip(" ),").split(".")[1]) == 1 for n in (mean, *values.split(",")))
    assert [text.strip() for text in rows["GMI / MID"][2:]] == ["", ""]
    attacks = [label.split(" / ")[0] for label in rows]
    assert attacks == sorted(attacks, key=attacks.index)  # each in one piece


def test_rows_of_an_attack_stand_together(tmp_path: Path) -> None:
    rows = {"one": ("GMI / No Def.", "VMI / No Def."), "two": ("GMI / MID",)}
    tables = [
        collect(Grid.plan(replace(smoke(*labels), name=name), 1, tmp_path, Store(tmp_path)))
        for name, labels in rows.items()
    ]
    made = sheet(tables, Look(), "*")
    assert [row[0] for row in made.body] == ["GMI / No Def.", "GMI / MID", "VMI / No Def."]
    assert made.breaks == {2}
    assert (made.transposed.breaks, made.transposed.parts) == (frozenset(), ())


def test_latex_names_each_table_over_its_columns(both: Path) -> None:
    text = table(BOTH, "--columns", "accuracy,attack_acc", "--format", "latex", root=both)
    lines = text.splitlines()
    over = lines.index(r" & \multicolumn{2}{c}{digits} & \multicolumn{2}{c}{digits-controls} \\")
    assert lines[over + 1] == r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}"
    assert lines[over + 2].startswith(r" & Accuracy $\uparrow$ & Attack Acc $\downarrow$ & Acc")
    assert lines[over - 2] == r"\begin{tabular}{lrrrr}"


def test_a_note_that_holds_for_every_table_stands_once(both: Path) -> None:
    text = table(BOTH, "--columns", "accuracy", root=both)
    assert text.count("Mean over 2 seeds") == 1
    assert "\ndigits-controls: " in text


def test_csv_of_several_tables_says_which(both: Path) -> None:
    text = table(BOTH, "--columns", "accuracy", "--format", "csv", root=both)
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["table"] for line in lines} == set(BOTH.split("+"))
    assert len(lines) == 12 + 16


def test_columns_come_in_the_order_given_and_the_rest_goes() -> None:
    head = next(csv.reader(io.StringIO(table("digits", "--columns", "fid,accuracy",
                                             "--format", "csv"))))  # fmt: skip
    assert [name for name in head if name in METRICS] == ["fid", "accuracy"]


def test_without_options_a_table_is_the_published_one() -> None:
    for form, suffix in (("latex", "tex"), ("markdown", "md"), ("csv", "csv"), ("json", "json")):
        published = (RESULTS / "digits" / f"digits.{suffix}").read_text()
        assert table("digits", "--format", form) == published


def test_a_look_changes_caption_decimals_label_and_notes() -> None:
    look = ["--caption", "Digits & more", "--label", "tab:digits", "--decimals", "0"]
    text = table("digits", *look, "--notes", "none", "--format", "latex")
    assert "\\caption{Digits \\& more}\n\\label{tab:digits}\n\\begin{tabular}" in text
    assert "GMI / No Def. & 99 $\\pm$ 1 & 42 $\\pm$ 18 & " in text
    assert "footnotesize" not in text
    assert "Mean over" not in text


def test_short_notes_say_what_numbers_arrows_and_marks_mean() -> None:
    full, short = (table("digits", "--notes", kind) for kind in ("full", "short"))
    notes = short.partition("KED-MI")[2].splitlines()[-3:]
    assert notes[0].startswith(
        "Mean over 5 seeds ± half the width of its 95 % confidence interval"
    )
    assert notes[1].startswith("* better, † worse for the defender")
    assert notes[2] == "Arrows point to what is better for the defender."
    assert "is found four times in five" in full
    assert "is found four times in five" not in short
    assert "Evaluation classifier" not in short


def test_a_transposed_table_has_a_row_for_each_metric() -> None:
    text = table("digits", "--columns", "accuracy,fid", "--transpose", "--format", "markdown",
                 "--notes", "none")  # fmt: skip
    lines = [line.split("|")[1:-1] for line in text.splitlines()[2:]]
    assert [text.strip() for text in lines[0][:3]] == ["", "GMI / No Def.", "GMI / MID"]
    assert [line[0].strip() for line in lines[2:]] == ["Accuracy ↑", "FID ↑"]
    assert lines[3][1].strip() == "235.88 ± 9.57"
    assert {len(line) for line in lines} == {13}
    latex = table("digits", "--columns", "accuracy", "--transpose", "--format", "latex")
    assert latex.count(r"\midrule") == 1
    assert r"\begin{tabular}{l" + 12 * "r" + "}" in latex


def test_a_column_of_no_run_is_scored_from_stored_evidence(store: Path) -> None:
    before = sorted(store.rglob("*"))
    done = stored(store, "--columns", "knn_distance,accuracy", "--format", "csv")
    assert done.exit_code == 0, done.output
    assert sorted(store.rglob("*")) == before
    lines = list(csv.DictReader(io.StringIO(done.stdout)))
    grid = Grid.plan(smoke(), 1, store.parent, Store(store))
    for line in lines:
        (record,) = grid.records[line["row"]]
        assert "knn_distance" not in Store(store).load(record)["scores"]
        assert float(line["knn_distance"]) > 0
        assert line["accuracy"]


def test_what_is_scored_is_the_record_that_a_run_would_write(store: Path) -> None:
    columns = (*SMOKE.columns, "knn_distance")
    records = record_stages(smoke(), 1, store.parent)
    wider = {
        label: [type(r)(r.cell, r.evidence, (*r.metrics, ("knn_distance", 1))) for r in own]
        for label, own in records.items()
    }
    (record,) = wider["GMI / MID"]
    assert [name for name, _ in record.metrics] == list(columns)
    payload, meta = Scored(store).read(record)
    assert Scored(store).state(record) == "done"
    assert Store(store).state(record) == "missing"
    commit([record], Store(store))
    assert Store(store).load(record) == payload
    assert meta["precisions"] == ["float32"]


def test_a_row_without_evidence_has_no_record(store: Path) -> None:
    (record,) = record_stages(smoke(), 1, store.parent)["GMI / MID"]
    for stage in (record, record.evidence[0]):
        shutil.rmtree(Store(store).path(stage))
    assert Scored(store).state(record) == "missing"
    done = stored(store, "--columns", "accuracy,knn_distance")
    assert done.exit_code == 0
    (line,) = [line for line in done.stdout.splitlines() if "GMI / MID" in line]
    assert line.split()[-2:] == ["--", "--"]


def test_features_that_no_evidence_has_are_one_sentence(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.running.grid.inception_digest", lambda _: "0" * 64)
    done = stored(store, "--columns", "accuracy,fid_inception")
    assert done.exit_code == 2
    assert "does not give fid_inception" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("digits --columns accurcy", "unknown metric 'accurcy' (did you mean 'accuracy'?)"),
        ("digits --columns fid,fid", "'fid' is named twice"),
        ("digits --columns ssim", "those of digits have no ssim, only accuracy"),
        ("digits --decimals 1 --format csv", "--decimals goes with --format text"),
        ("digits --transpose --format json", "--transpose goes with --format text"),
        ("digits --label a", "--label goes with --format latex"),
        ("digits --label a}b --format latex", "--label takes letters"),
        ("digits+digits", "digits is named twice"),
        ("digits+digit", "unknown table 'digit' (did you mean 'digits'?)"),
        ("digits --budgets --columns fid", "--budgets prints text"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(words: str, sentence: str) -> None:
    done = call("table", *words.split(), "--records", RESULTS / "digits")
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_several_tables_are_no_json(both: Path) -> None:
    done = call("table", BOTH, "--records", both, "--format", "json")
    assert done.exit_code == 2
    assert "json holds one table" in done.stderr


def test_a_table_of_which_nothing_is_there_is_a_note_beside_one_that_is(store: Path) -> None:
    places = ["--store", store, "--data", store.parent, "--rows", "GMI / MID"]
    done = call("table", "smoke+digits", *places, "--columns", "accuracy")
    assert done.exit_code == 0, done.output
    assert "note: nothing of digits is in" in done.stderr
    assert call("table", "digits+avatars", *places).exit_code == 2
