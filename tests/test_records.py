"""Record files: whole ones pass, and each kind of damage or forgery is named."""

import copy
import gzip
import json
import os
import random
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner, Result

from mibench.cli import main
from mibench.reporting import records, verify
from mibench.reporting.canvas import new_figure, save
from mibench.reporting.compare import compare, in_text
from mibench.reporting.figures import _current
from mibench.reporting.forms import render
from mibench.reporting.page import leaderboard
from mibench.reporting.page.leaderboard import _number
from mibench.reporting.records import digest
from mibench.reporting.results import collect
from mibench.reporting.runs import Run, differences, runs
from mibench.reporting.verify import check
from mibench.running.grid import Grid
from mibench.spec import fingerprint
from mibench.store import Store, put
from tests.made import fill, smoke

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two rows and two seeds, and their record files."""
    root = tmp_path_factory.mktemp("records")
    table = smoke("GMI / No Def.", "GMI / MID")
    store = Store(root / "store")
    stages = fill(table, store, seeds=2, data=Path())
    records.write(Grid(table, stages, store), root / "files")
    return root


@pytest.fixture
def record(folder: Path) -> dict[str, Any]:
    path = next((folder / "files").glob("gmi-mid-seed0-*"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def judged(record: dict[str, Any], path: Path) -> str:
    """Returns what is wrong with a record, its sha256 computed anew."""
    record["sha256"] = digest(record)
    path.write_text(json.dumps(record))
    return check(path).problem


def test_what_is_written_is_sound_and_all_its_scores_follow_from_its_values(folder: Path) -> None:
    paths = records.find([folder / "files"])
    assert len(paths) == 4
    for path in paths:
        verdict = check(path)
        assert verdict.problem == ""
        assert verdict.record is not None
        assert verdict.recomputed == len(verdict.record["payload"]["scores"]) == 4
        jsonschema.validate(verdict.record, records.schema("record"))


def test_a_record_file_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    table = smoke("GMI / No Def.", "GMI / MID")
    store = Store(folder / "store")
    again = records.write(
        Grid(table, fill(table, store, seeds=2, data=Path()), store), tmp_path / "again"
    )
    for path in again:
        assert path.read_bytes() == (folder / "files" / path.name).read_bytes()


def test_the_schemas_are_schemas_and_are_not_empty(record: dict[str, Any]) -> None:
    for name in ("record", "table"):
        jsonschema.Draft202012Validator.check_schema(records.schema(name))
    del record["payload"]["scores"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, records.schema("record"))


def _set(path: str, value: Any) -> Change:
    def change(record: dict[str, Any]) -> None:
        *steps, last = path.split(".")
        at: Any = record
        for step in steps:
            at = at[int(step)] if isinstance(at, list) else at[step]
        at[int(last) if isinstance(at, list) else last] = value

    return change


def _rekey(record: dict[str, Any]) -> None:
    """Another defense in the last stage and the cell, all keys of it made anew."""
    stage = record["stages"][-1]
    for cell in (stage["identity"]["cell"], record["payload"]["cell"]):
        cell["defense"] = {"is": "none", "version": 1}
    stage["key"] = record["key"] = fingerprint(stage["identity"])


def _metrics(value: object) -> Change:
    """Other metrics in the last stage, its key made anew."""

    def change(record: dict[str, Any]) -> None:
        stage = record["stages"][-1]
        stage["identity"]["metrics"] = value
        record["runs"].clear()
        stage["key"] = record["key"] = fingerprint(stage["identity"])

    return change


def _enlarge(record: dict[str, Any]) -> None:
    for values in record["payload"]["values"]["attack_acc"]:
        values[:] = [1e308] * len(values)


FORGERIES: dict[str, tuple[Change, str]] = {
    "a score": (_set("payload.scores.attack_acc.mean", 1.5), "its attack_acc says mean 1.5"),
    "a spread": (_set("payload.scores.attack_acc.std", 0.1), "its attack_acc says std 0.1"),
    "a count": (_set("payload.scores.attack_acc.n", 7), "its attack_acc says n 7"),
    "fid": (_set("payload.scores.fid.mean", 9e9), "its fid says mean"),
    "fewer repeats": (_set("payload.values.fid", []), "fid has values of 0 attacks"),
    "another cell": (_set("payload.cell.recipe.epochs", 50), "its cell is not the one"),
    "an identity": (_set("stages.1.identity.seed", 9), "is not the key of its identity"),
    "a key": (_set("key", "0" * 16), "its key is 0000000000000000, but the last"),
    "a name": (_set("payload.stages.0", "images/0123456789abcdef"), "names other stages"),
    "a foreign run": (
        _set("runs.images/0123456789abcdef", {"seconds": 1, "device": "x", "versions": {}}),
        "it tells of a run of images/0123456789abcdef",
    ),
    "no score": (lambda r: r["payload"]["scores"].pop("fid"), "not those of its metrics"),
    "another defense": (_rekey, "defense is not the cell's defense"),
    "no list of metrics": (_metrics(None), "it is no record of mibench (TypeError: "),
    "values whose mean is infinite": (_enlarge, "of Attack Acc are too large to average"),
    "no cell": (lambda r: r["payload"].pop("cell"), "'cell' is a required property"),
    "a text for a number": (
        _set("payload.scores.fid.mean", "12"),
        "payload.scores.fid.mean: '12' is not of type",
    ),
    "another format": (_set("format", "mibench-record/9"), "'mibench-record/1' was expected"),
    "no index": (lambda r: r["payload"].pop("index"), "'index' is a required property"),
    "one thing more": (_set("comment", "x"), "Additional properties are not allowed"),
    "an unknown spread": (_set("payload.cell.protocol.spread", "x"), "its cell is not the one"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_its_sha256_made_anew_is_found(
    name: str, record: dict[str, Any], tmp_path: Path
) -> None:
    change, sentence = FORGERIES[name]
    assert judged(copy.deepcopy(record), tmp_path / "good.json") == ""
    change(record)
    assert sentence in judged(record, tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("least", "left", "problem"),
    [
        (0, 1, "its index is of 1 attacks"), (5, 1, ""), (5, 3, "its index is of 3 attacks"),
        (9, 1, "whose FID is below the least, 9"), (float("nan"), 1, "nan, which is none"),
        ("x", 1, "'x', which is none"), (-1, 2, "-1, which is none"), (True, 2, "which is none"),
    ],
)  # fmt: skip
def test_repeats_are_left_out_by_the_protocols_least_fid_alone(
    least: Any, left: int, problem: str
) -> None:
    cell = {"protocol": {"least_fid": least}, "trials": {"repeats": 2}}
    payload = {"cell": cell, "values": {"fid": [7.5] * left}}
    with pytest.raises(ValueError, match=problem) if problem else nullcontext():
        verify._check_counted(payload, left)


def test_an_empty_folder_under_a_records_name_is_a_hole_and_no_end_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, store = smoke("GMI / No Def.", "GMI / MID"), Store(tmp_path / "store")
    made = fill(table, store, data=Path())
    path = store.path(made["GMI / MID"][0])
    shutil.rmtree(path)
    path.mkdir()
    results = collect(Grid(table, made, store))
    assert results.found == {"GMI / No Def.": 1, "GMI / MID": 0}
    assert f"record {path.name} is missing: run the table again" in capsys.readouterr().err


def test_compare_passes_over_what_a_crash_in_a_commit_left(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (done,) = fill(smoke("GMI / MID"), store, data=Path())["GMI / MID"]
    path = store.path(done)
    shutil.copytree(path, path.with_suffix(".partial.0123abcd"))
    found, refused = runs(store.root)
    assert (len(found), refused) == (1, [])


def test_a_missing_stage_is_found(record: dict[str, Any], tmp_path: Path) -> None:
    assert record["stages"][0]["identity"]["kind"] == "images"
    del record["stages"][0]
    assert "which it does not tell of" in judged(record, tmp_path / "bad.json")


def test_values_made_up_together_with_scores_and_hashes_are_not_found(
    record: dict[str, Any], tmp_path: Path
) -> None:
    """The limit that the documentation states: no hash can tell this."""
    values = record["payload"]["values"]["attack_acc"]
    record["payload"]["values"]["attack_acc"] = [[100.0] * len(v) for v in values]
    record["payload"]["scores"]["attack_acc"] |= {"mean": 100.0, "std": 0.0}
    assert judged(record, tmp_path / "forged.json") == ""


def test_a_number_beyond_what_can_be_computed_with_is_named(
    record: dict[str, Any], tmp_path: Path
) -> None:
    record["payload"]["values"]["fid"] = [1e308 for _ in record["payload"]["values"]["fid"]]
    record["payload"]["scores"]["fid"]["mean"] = 1e308
    assert "beyond what can be computed with" in judged(record, tmp_path / "bad.json")


def test_any_changed_character_is_found(folder: Path, tmp_path: Path) -> None:
    text = next((folder / "files").glob("gmi-mid-seed0-*")).read_text()
    rng = random.Random(0)
    path = tmp_path / "r.json"
    for _ in range(60):
        at = rng.randrange(len(text))
        other = rng.choice([c for c in '0123456789abcdef{}[],"' if c != text[at]])
        if text[at].isspace():
            continue
        path.write_text(text[:at] + other + text[at + 1 :])
        assert check(path).problem, (at, text[at - 20 : at + 20], other)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_found(share: float, folder: Path, tmp_path: Path) -> None:
    data = next((folder / "files").glob("gmi-mid-seed0-*")).read_bytes()
    path = tmp_path / "r.json"
    path.write_bytes(data[: int(share * len(data))])
    assert "cut short or damaged" in check(path).problem


STRANGE = {
    "no text": (b"\xff\xfe\x00\x01", "it is not text"),
    "a list": (b"[1]", "which is a JSON object"),
    "NaN": (b'{"a": NaN}', "NaN is no number of JSON"),
    "twice": (b'{"a": 1, "a": 2}', "names one thing twice"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "empty": (b"{}", "is a required property"),
    "long number": (b'{"a": ' + b"9" * 5000 + b"}", ""),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, sentence = STRANGE[name]
    (tmp_path / "r.json").write_bytes(data)
    verdict = check(tmp_path / "r.json")
    assert verdict.record is None
    assert verdict.problem
    assert sentence in verdict.problem
    assert "\n" not in verdict.problem


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LARGEST", 2**20)
    (tmp_path / "r.json").write_bytes(b" " * (2**20 + 1))
    assert "more than 1 MiB" in check(tmp_path / "r.json").problem
    (tmp_path / "r.json.gz").write_bytes(records.packed(" " * (2**20 + 1)))
    assert "more than 1 MiB" in check(tmp_path / "r.json.gz").problem


def test_a_packed_record_is_read_as_the_other(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "r.json.gz"
    path.write_bytes(records.packed(json.dumps(record)))
    assert path.read_bytes()[4:8] == bytes(4), "it holds the time"
    assert check(path).record == record
    assert records.find([tmp_path]) == records.find([path]) == [path]


@pytest.mark.parametrize("what", ["cut", "flipped", "garbled", "none", "empty", "twice"])
def test_a_packed_record_that_is_damaged_is_refused(
    what: str, record: dict[str, Any], tmp_path: Path
) -> None:
    data = records.packed(json.dumps(record))
    middle = len(data) // 2
    damaged = {
        "cut": data[:-9],
        "flipped": data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :],
        "garbled": data[:10] + b"\xff" * 20 + data[-8:],
        "none": b"{}",
        "empty": b"",
        "twice": data + data,
    }[what]
    (tmp_path / "r.json.gz").write_bytes(damaged)
    verdict = check(tmp_path / "r.json.gz")
    assert verdict.record is None
    assert "damaged" in verdict.problem


def renew(record: dict[str, Any]) -> None:
    """Computes all keys anew, from the first stage to the last."""
    new: dict[str, str] = {}
    for stage in record["stages"]:
        text = json.dumps(stage["identity"])
        for old, key in new.items():
            text = text.replace(old, key)
        stage["identity"] = json.loads(text)
        new[stage["key"]] = stage["key"] = fingerprint(stage["identity"])
    record["key"] = record["stages"][-1]["key"]
    text = json.dumps([record["payload"]["stages"], record["runs"]])
    for old, key in new.items():
        text = text.replace(old, key)
    record["payload"]["stages"], record["runs"] = json.loads(text)


def test_scores_cannot_be_passed_off_as_those_of_another_attack(
    record: dict[str, Any], tmp_path: Path
) -> None:
    """Keys and sha256 made anew in all stages: the cell alone then says otherwise."""
    for cell in (record["payload"]["cell"], record["stages"][-1]["identity"]["cell"]):
        cell["attack"]["steps"] = 9999
    renew(record)
    assert "attack is not the cell's attack" in judged(record, tmp_path / "bad.json")


def test_a_seed_that_no_table_has_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    for cell in (record["payload"]["cell"], record["stages"][-1]["identity"]["cell"]):
        cell["seeds"]["target"] = 3_000_000
    renew(record)
    assert "its seed is 3000000, and a table's are 0 to 9999" in judged(
        record, tmp_path / "r.json"
    )


def test_a_pipe_is_not_waited_at(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.json")
    done = call("records", "check", str(pipe))
    assert done.exit_code == 1
    assert f"bad  {pipe}: it cannot be read: it is no plain file" in done.stdout


def test_verify_names_what_is_bad_and_exits_with_1(folder: Path, tmp_path: Path) -> None:
    good = call("records", "check", str(folder / "files"))
    assert good.exit_code == 0
    assert good.stdout.count("ok ") == 4
    assert "4 of 4 scores" in good.stdout
    total = "4 record files: 4 sound, 0 not sound; 16 of 16 scores computed again"
    assert good.stdout.splitlines()[-1] == total
    (tmp_path / "cut.json").write_text("{")
    bad = call("records", "check", str(folder / "files"), str(tmp_path / "cut.json"))
    assert bad.exit_code == 1
    assert f"bad  {tmp_path / 'cut.json'}: " in bad.stdout
    assert bad.stdout.splitlines()[-1].startswith("5 record files: 4 sound, 1 not sound; 16 of")
    assert bad.stderr == "Error: 1 of 5 record files are not sound\n"
    assert json.loads(call("records", "check", "--schema").stdout) == records.schema("record")
    missing = call("records", "check", str(tmp_path / "nosuch.json"))
    assert missing.exit_code == 2


def test_a_files_name_cannot_forge_a_line(folder: Path, tmp_path: Path) -> None:
    first, *_ = records.find([folder / "files"])
    shutil.copy(first, tmp_path / first.name)
    (tmp_path / "x\nok   y\x1b[31m.json").write_text("{")
    places = str(tmp_path), str(tmp_path / "out")
    for done in (
        call("records", "check", places[0]),
        call("compare", places[0], places[0]),
        call("records", "board", places[0], "-o", places[1]),
    ):
        assert "x\\nok   y\\x1b[31m.json: it is no JSON" in done.output
        assert "\x1b" not in done.output


def test_a_named_file_that_is_no_record_file_is_told(folder: Path, tmp_path: Path) -> None:
    first, *_ = records.find([folder / "files"])
    (other := tmp_path / "a.JSON").write_text("{}")
    done = call("records", "check", str(first), str(other))
    assert done.exit_code == 2
    assert f"no record file, whose name ends in .json or .json.gz: {other};" in done.stderr


def test_verdicts_are_told_as_they_come(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def noted(path: Path) -> verify.Verdict:
        events.append("check")
        return check(path)

    monkeypatch.setattr(verify, "check", noted)
    monkeypatch.setattr(click, "echo", lambda text, **_: events.append(text.split()[0]))
    call("records", "check", str(folder / "files"))
    assert events == ["check", "ok"] * 4 + ["4"]


def test_tables_and_other_files_beside_records_are_passed_over(
    folder: Path, tmp_path: Path
) -> None:
    table = smoke("GMI / MID")
    store = Store(folder / "store")
    results = collect(Grid(table, fill(table, store, data=Path()), store))
    (tmp_path / "smoke.json").write_text(render(results, "json"))
    (tmp_path / "smoke.csv").write_text(render(results, "csv"))
    first, *_ = records.find([folder / "files"])
    assert records.find([tmp_path, tmp_path / "smoke.csv", first]) == [first]


def test_record_writes_what_verify_accepts(folder: Path, tmp_path: Path) -> None:
    rows = ["--rows", "GMI / MID", "--seeds", "2", "--store", str(folder / "store")]
    done = call("records", "write", "smoke", *rows, "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert len(done.stdout.split()) == 2
    assert call("records", "check", *done.stdout.split()).exit_code == 0
    nothing = call(
        "records", "write", "smoke", "--store", str(tmp_path / "no"), "-o", str(tmp_path / "o")
    )
    assert nothing.exit_code == 2
    assert "nothing of smoke" in nothing.stderr
    assert not (tmp_path / "o").exists()


def test_the_leaderboard_leaves_out_and_names_what_is_not_sound(
    folder: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    record["payload"]["scores"]["attack_acc"]["mean"] = 0.125
    record["row"] = "GMI / forged"
    bad = tmp_path / "<b>bad.json"
    bad.write_text(json.dumps(record))
    out = tmp_path / "page.html"
    done = call("records", "board", str(folder / "files"), str(bad), "-o", str(out))
    assert done.exit_code == 0, done.output
    assert "differs from its sha256" in done.stderr
    text = out.read_text()
    assert "forged" not in text
    assert "0.125" not in text
    assert "&lt;b&gt;bad.json" in text
    assert "<b>bad" not in text
    assert text.count('<th scope="row" data-value="GMI / MID">') == 1  # two seeds, one row
    assert "4 record files" in text
    cut = tmp_path / "cut.json"
    cut.write_text("{")
    with pytest.raises(ValueError, match="no sound record file among the 1"):
        leaderboard([check(cut)], tmp_path)


def test_the_leaderboard_takes_one_record_of_a_cell_and_its_seeds(
    folder: Path, tmp_path: Path
) -> None:
    table = replace(smoke("GMI / MID"), columns=("attack_acc",))
    store = Store(tmp_path / "store")
    others = records.write(Grid(table, fill(table, store, seeds=3, data=Path()), store), tmp_path)
    shutil.copytree(folder / "files", tmp_path / "files")
    found = [check(path) for path in records.find([tmp_path / "files", *others])]
    text = leaderboard(found, tmp_path)
    row = re.search(r'data-value="GMI / MID">.*?</tr>', text, re.DOTALL)
    assert row is not None
    assert row[0].endswith('<td data-value="3">3</td></tr>')  # the third seed is of the others
    for seed, path in enumerate(others[:2]):
        first = next((tmp_path / "files").glob(f"gmi-mid-seed{seed}-*")).name
        why = f"it has the cell and the seeds of files/{first}, which was taken"
        assert f"<code>{path.name}</code>: {why}" in text
    assert text.count("which was taken") == 2
    copies = [check(path) for path in records.find([folder / "files"])]
    assert "Left out" not in leaderboard(found[:4] + copies, tmp_path)


def test_the_leaderboard_says_at_how_many_seeds_a_metric_has_a_value() -> None:
    scores = [{"mean": v, "std": 2.0} for v in (50.0, None, 60.0, 70.0)]
    assert _number(scores)["text"] == "60.00 ± 24.84 (3/4)"
    assert _number(scores[:2])["text"] == "50.00 (1/2)"


def run(label: str | None, seed: int, score: float, **fields: Any) -> Run:
    seeds = {"target": seed, "prior": seed, "attack": seed}
    cell = {
        "setting": {"task": {"is": "t"}}, "attack": {"is": "a", **fields},
        "defense": {"is": "d"}, "seeds": seeds,
    }  # fmt: skip
    return Run(label, cell, {"attack_acc": score})


def test_equal_seeds_are_compared_in_pairs() -> None:
    a = [run("x", s, v) for s, v in enumerate((10.0, 20.0, 60.0))]
    b = [run("x", s, v) for s, v in enumerate((11.0, 22.0, 63.0))]
    [found] = compare(a, b).rows["x"]
    assert found.paired
    assert (found.a, found.b) == (30, 32)
    assert found.half == pytest.approx(4.302652729911275 / 3**0.5)  # of 1, 2, 3


def test_of_seeds_that_differ_those_of_both_sides_are_paired() -> None:
    a = [run("x", s, v) for s, v in enumerate((10.0, 20.0, 60.0, 1000.0))]
    b = [run("x", s, v) for s, v in enumerate((11.0, 22.0, 63.0))] + [run("x", 9, 500.0)]
    [found] = compare(a, b).rows["x"]
    assert (found.paired, found.seeds, found.a, found.b) == (True, (3, 3), 30, 32)
    assert found.half == pytest.approx(4.302652729911275 / 3**0.5)


def test_other_seeds_are_compared_by_welchs_interval() -> None:
    a = [run("x", s, v) for s, v in enumerate((10.0, 20.0, 30.0))]
    b = [run("x", s + 5, v) for s, v in enumerate((40.0, 41.0, 42.0))]
    [found] = compare(a, b).rows["x"]
    assert not found.paired
    error = ((100 + 1) / 3) ** 0.5
    freedom = (101 / 3) ** 2 / ((100 / 3) ** 2 / 2 + (1 / 3) ** 2 / 2)
    from scipy.stats import t

    assert found.half == pytest.approx(t.ppf(0.975, freedom) * error)


def test_one_seed_has_no_interval_and_fields_that_differ_are_named() -> None:
    told = compare([run("x", 0, 1.0, steps=3)], [run("x", 0, 2.0, steps=4, more={"p": 1})])
    assert told.rows["x"][0].half is None
    assert list(told.fields["x"]) == [("attack.steps", 3, 4), ("attack.more", None, {"p": 1})]
    assert list(differences({"a": [1, 2]}, {"a": [1, 3]})) == [("a.1", 2, 3)]


def test_rows_of_one_side_are_told_and_unnamed_ones_pair_by_their_cells() -> None:
    told = compare([run("x", 0, 1.0), run("y", 0, 1.0)], [run("x", 0, 1.0), run("z", 0, 1.0)])
    assert told.only == (["y"], ["z"])
    mixed = compare([run("x", 0, 1.0)], [run(None, 0, 3.0)])
    assert [d.b - d.a for d in mixed.rows["t: a / d"]] == [2]


def test_cells_of_one_label_are_paired_with_themselves() -> None:
    digits = [run("x", s, v, on="digits") for s, v in enumerate((1.0, 2.0))]
    avatars = [run("x", s, v, on="avatars") for s, v in enumerate((7.0, 9.0))]
    both = [*avatars, *digits]
    for a, b, lack in ((both, digits, 0), (digits, both, 1)):
        told = compare(a, b)
        ((label, [found]),) = told.rows.items()
        assert (found.a, found.b, told.fields[label]) == (1.5, 1.5, [])
        assert (len(told.only[lack]), len(told.only[1 - lack])) == (1, 0)
        assert told.only[lack] != [label]
    assert list(compare(avatars, digits).rows) == ["x"]  # one on each side: how they differ


def test_records_of_one_cell_and_seed_are_joined_and_scores_that_differ_are_told() -> None:
    """As two tables leave them that share a cell and have other columns."""
    poor = [run("x", s, 50.0 + s) for s in range(3)]
    rich = [replace(r, scores={**r.scores, "fid": 100.0 + r.seed[0]}) for r in poor]
    for a in (poor + rich, rich + poor):
        told = compare(a, rich)
        assert [(d.metric, d.seeds) for d in told.rows["x"]] == [
            ("attack_acc", (3, 3)), ("fid", (3, 3)),
        ]  # fmt: skip
        assert told.unclear == []
    other = replace(poor[0], scores={"attack_acc": 49.0})
    told = compare([*poor, *rich, other, poor[0]], rich)
    assert [(d.metric, d.seeds) for d in told.rows["x"]] == [
        ("attack_acc", (2, 2)), ("fid", (3, 3)),
    ]  # fmt: skip
    said = "two records of it differ: A, x, seeds 0, 0, 0: attack_acc is 50.0, 49.0"
    assert said in in_text(told)


def test_compare_reads_stores_and_files(folder: Path) -> None:
    same = call("compare", str(folder / "files"), str(folder / "files"))
    assert same.exit_code == 0, same.output
    assert "The specs of all rows are the same." in same.stdout
    assert "GMI / MID" in same.stdout
    mixed = call("compare", str(folder / "store"), str(folder / "files"))
    assert mixed.exit_code == 0, mixed.output
    assert "+0.00" in mixed.stdout
    assert "Only in" not in mixed.stdout


def test_a_packed_table_beside_records_is_passed_over(folder: Path, tmp_path: Path) -> None:
    table = smoke("GMI / MID")
    store = Store(folder / "store")
    text = render(collect(Grid(table, fill(table, store, data=Path()), store)), "json")
    (tmp_path / "smoke.json.gz").write_bytes(gzip.compress(text.encode()))
    assert records.find([tmp_path]) == []


def test_a_file_is_written_in_one_form(folder: Path, tmp_path: Path) -> None:
    table = smoke("GMI / MID")
    store = Store(folder / "store")
    grid = Grid(table, fill(table, store, data=Path()), store)
    for compact in (False, True, False):
        assert records.write(grid, tmp_path, compact=compact) == list(tmp_path.iterdir())


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Lets no file grow beyond ``most`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_file_and_is_told_with_its_name(
    folder: Path, tmp_path: Path
) -> None:
    rows = ["--rows", "GMI / MID", "--store", str(folder / "store"), "-o", str(tmp_path)]
    (path,) = map(Path, call("records", "write", "smoke", *rows).stdout.split())
    path.write_text("old\n")
    path.chmod(0o640)
    with full_disk(200):
        done = call("records", "write", "smoke", *rows)
        picture = tmp_path / "picture.png"
        with pytest.raises(OSError, match=re.escape(str(picture))):
            save(new_figure((2, 2)), picture)
    assert done.exit_code == 2
    assert done.stderr == f"Error: File too large: {path}\n"
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
    put(path, "new\n")
    assert path.read_text() == "new\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").symlink_to("a")
    put(tmp_path / "b", "new")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "a").read_text() == "new"


def test_what_a_kill_left_of_a_file_is_gone_once_it_is_written(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_text("half")
    put(tmp_path / "a", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "whole"


def test_what_is_no_plain_file_is_written_to_and_stays(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    put(pipe, "new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_picture_cut_short_is_not_current(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save(new_figure((2, 2)), path, "stamp")
    assert _current(path, "stamp")
    path.write_bytes(path.read_bytes()[:-9])
    assert not _current(path, "stamp")


@pytest.mark.parametrize("content", ["", "[]", '{"seconds": "x"}'])
def test_a_damaged_meta_below_a_record_is_one_sentence_that_says_what_to_do(
    content: str, folder: Path, tmp_path: Path
) -> None:
    store = str(shutil.copytree(folder / "store", tmp_path / "store"))
    for path in (tmp_path / "store").glob("inversion/*/meta.json"):
        path.write_text(content)
    table = ["smoke", "--rows", "GMI / MID", "--store", store]
    for command in (
        ["table", *table, "--budgets"], ["run", *table, "--dry-run"],
        ["report", *table, "-o", str(tmp_path / "out")],
        ["compare", "--by-key", store, str(folder / "files")],
    ):  # fmt: skip
        done = call(*command)
        assert done.exit_code == 2, (command, done.output, done.exception)
        assert len(done.stderr.splitlines()) == 1
        assert (
            f"meta.json is damaged: `mibench store check --repair --store {store}`" in done.stderr
        )


def test_a_command_that_only_reads_says_what_to_do_about_a_damaged_stage(
    folder: Path, tmp_path: Path
) -> None:
    store = str(shutil.copytree(folder / "store", tmp_path / "store"))
    for path in (tmp_path / "store").glob("classifier/*/payload.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    done = call("report", "smoke", "--rows", "GMI / MID", "--store", store, "-o", str(tmp_path))
    assert done.exit_code == 2
    assert re.fullmatch(
        r"Error: .*/payload\.safetensors is damaged: `mibench store check --repair`, with the "
        r"same --store, moves the stage aside\n",
        done.stderr,
    )


def contradicting(record: dict[str, Any], place: Path) -> None:
    """Writes two sound records of one key that tell different things."""
    (place / "a.json").write_text(json.dumps(record))
    forged = json.loads(json.dumps(record))
    forged["payload"]["evaluator"]["accuracy"] = 12.5
    (place / "b.json").write_text(json.dumps(forged | {"sha256": records.digest(forged)}))
    assert check(place / "b.json").record is not None


@pytest.mark.parametrize("command", [["compare"], ["compare", "--by-key"], ["records", "board"]])
def test_of_two_records_of_a_key_that_differ_the_first_is_taken_and_the_other_named(
    command: list[str], record: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    contradicting(record, tmp_path / "r")
    last = [tmp_path / "r" / "a.json"] if "compare" in command else ["-o", tmp_path / "o"]
    done = call(*command, str(tmp_path / "r"), *map(str, last))
    assert done.exit_code == 0, done.output
    assert f"left out {tmp_path / 'r' / 'b.json'}: it tells other things" in done.stderr
    assert str(tmp_path / "r" / "a.json") in done.stderr


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("/proc/self/mem")
    assert "cannot be read" in check(tmp_path / "x.json").problem
    done = call("records", "check", str(tmp_path))
    assert done.exit_code == 1
    assert f"bad  {tmp_path / 'x.json'}: it cannot be read" in done.stdout
