"""Commands that read a store read a folder of records as well, and say what records lack."""

import csv
import functools
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.evaluation import METRICS
from mibench.reporting import published, records, verify
from mibench.reporting.notes import footnotes
from mibench.reporting.published import Published
from mibench.reporting.verify import check
from mibench.running.grid import Grid
from mibench.running.stages import graph
from mibench.store import Store
from tests.made import fill, smoke

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/command.txt"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module", autouse=True)
def _each_file_is_checked_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "check", functools.cache(check))
        yield


CONTROLLED = [p for p in PUBLISHED if (p / f"{p.name}-controls.md").exists()]


@pytest.mark.parametrize("place", CONTROLLED, ids=lambda p: p.name)
def test_a_published_table_with_its_controls_is_read_from_its_records(place: Path) -> None:
    *_, seeds = shlex.split((place / "command.txt").read_text())
    told = call(
        "table", place.name, "--records", place / "records", "--seeds", seeds, "--controls",
        "--format", "markdown",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert told.stdout == (place / f"{place.name}-controls.md").read_text()
    assert "Attack Acc of prior samples" in told.stdout


@pytest.mark.parametrize("place", PUBLISHED, ids=lambda p: p.name)
def test_a_published_table_is_read_from_its_records_with_all_their_seeds(place: Path) -> None:
    told = call("table", place.name, "--records", place / "records", "--format", "csv")
    assert told.exit_code == 0, told.output
    text = (place / f"{place.name}.csv").read_bytes()
    assert told.stdout.encode() == text
    *_, last = (r for r in csv.DictReader(io.StringIO(text.decode())) if r["seeds"] != "0")
    metric = TABLES[place.name].columns[-1]
    done = call("explain", place.name, last["row"], metric, "--records", place / "records")
    assert done.exit_code == 0, done.output
    mean = f"{float(last[metric]):.2f}" if last[metric] else "The value of no seed"
    assert mean in done.stdout
    assert f"the mean of {last['seeds']} seed" in done.stdout or not last[metric]
    assert "fill with" not in done.stdout
    assert done.stderr == ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two rows and two seeds, and their record files."""
    root = tmp_path_factory.mktemp("readers")
    store = Store(root / "store")
    table = smoke("GMI / No Def.", "GMI / MID")
    records.write(Grid(table, fill(table, store, seeds=2, data=Path()), store), root / "files")
    return root


def test_records_stand_for_the_store_that_they_were_written_from(made: Path) -> None:
    rows = ("--rows", "GMI / No Def.", "--rows", "GMI / MID")
    from_store = ("--store", made / "store", "--data", made, "--seeds", 2)
    for command in (("explain", "smoke", "GMI / MID", "fid"), ("table", "smoke", "--budgets"),
                    ("table", "smoke", "--format", "json")):  # fmt: skip
        told = call(*command, *rows, "--records", made / "files")
        assert told.exit_code == 0, told.output
        stored = call(*command, *rows, *from_store).stdout.replace("done\n", "recorded\n")
        stored = re.sub(r"\n\nWhat Attack Acc says about leakage\n.*", "", stored)
        assert re.sub(r"(  record/.*: )done\n", r"\1recorded\n", told.stdout) == stored
    fewer = call("table", "smoke", *rows, "--records", made / "files", "--seeds", 1)
    assert "One seed carries no interval" in fewer.stdout


def test_explain_says_by_which_version_of_a_metric_a_record_was_scored(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("explain", "smoke", "GMI / MID", "fid", "--records", made / "files")
    old = METRICS["fid"]
    assert f"Metric fid, version {old.version}; python" in call(*command).stdout
    monkeypatch.setitem(METRICS, "fid", replace(old, version=old.version + 1))
    told = call(*command).stdout
    assert f"version {old.version} (this mibench has version {old.version + 1}); python" in told
    (path,) = (made / "files").glob("gmi-mid-seed0-*.json")
    assert f"  record/{json.loads(path.read_text())['key']}  record gmi on mid" in told


def test_a_copy_of_a_record_is_one_and_another_of_the_same_cell_is_refused(
    made: Path, tmp_path: Path
) -> None:
    first, *_ = sorted((made / "files").glob("gmi-mid-seed0-*.json"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / first.name).write_bytes(first.read_bytes())
    assert Published(tmp_path).tables() == ["smoke"]
    record = json.loads(first.read_text())
    record["payload"]["scores"]["accuracy"]["mean"] += 1
    sound = verify.Verdict(tmp_path / "b" / first.name, record, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            published, "check", lambda path: sound if path.parent.name == "b" else check(path)
        )
        with pytest.raises(ValueError, match="tells other things"):
            Published(tmp_path).results(TABLES["smoke"])
        assert Published(tmp_path).seeds(TABLES["digits"]) == 0


def test_stages_have_the_keys_that_the_records_tell_of(made: Path) -> None:
    done = Published(made / "files")
    table = smoke("GMI / No Def.", "GMI / MID", "VMI / No Def.")
    for label, stages in done.stages(table, 2).items():
        states = {done.state(s) for s in graph(stages)}
        there = label != "VMI / No Def."
        assert states == ({"done", "recorded"} if there else {"missing", "recorded"} & states)
        assert all((made / "store" / s.kind / s.key).is_dir() == there for s in stages)
        if there:
            assert all(done.meta(s)["device"] == "cpu made" for s in graph(stages))
    assert done.seeds(table) == 2
    assert done.seeds(smoke("VMI / No Def.")) == 0
    with pytest.raises(KeyError, match="no payload of prior"):
        done.load(stages[0].evidence[0].inversion.prior)


def test_a_page_and_the_tradeoff_are_drawn_from_records(made: Path, tmp_path: Path) -> None:
    arguments = ("smoke", "--records", made / "files", "-o", tmp_path)
    done = call("report", *arguments)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "index.html").read_text()
    assert "Where only records are there, images, values class by class and curves" in page
    assert page.count("cpu made") == 28  # of every stage of two rows and seeds
    assert "<h3>Reconstructions" not in page
    assert "mibench run smoke --seeds 2 --rows" in page
    assert call("figure", "4", *arguments).exit_code == 0
    assert (tmp_path / "smoke-tradeoff-figure.png").is_file()


@pytest.mark.parametrize(
    ("command", "lacking"),
    [(("figure", "row", "smoke", "GMI / MID"), "no images"),
     (("figure", "3", "smoke"), "no images"),
     (("figure", "1", "smoke"), "no curves of training")],
)  # fmt: skip
def test_what_records_do_not_hold_is_said_in_one_sentence(
    command: tuple[str, ...], lacking: str, made: Path, tmp_path: Path
) -> None:
    done = call(*command, "--records", made / "files", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert lacking in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_records_of_another_table_of_none_and_beside_a_store_are_refused(
    made: Path, tmp_path: Path
) -> None:
    for arguments, sentence in {
        ("digits", "--records", made / "files"): "as it is now; they were written for smoke",
        ("smoke", "--records", tmp_path): "there is no record file in",
        ("smoke", "--records", tmp_path / "x"): "no file or folder",
        ("smoke", "--records", made / "files", "--store", made / "store"): "in place of --store",
    }.items():
        done = call("table", *arguments)
        assert done.exit_code == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_row_without_a_record_is_refused_with_no_command_to_fill_records(made: Path) -> None:
    done = call("explain", "smoke", "VMI / MID", "fid", "--records", made / "files")
    assert done.exit_code == 2
    assert done.stderr.strip() == f"Error: no record of VMI / MID in {made / 'files'}"


@pytest.mark.parametrize("name", ["attack_acc", "ATTACK_ACC", "Attack Acc", "attack acc"])
def test_explain_takes_a_columns_name_and_title_in_any_case(name: str, made: Path) -> None:
    done = call("explain", "smoke", "GMI / MID", name, "--records", made / "files")
    assert done.stdout.startswith("Attack Acc of GMI / MID in smoke\n")


def test_lists_of_numbers_are_checked_as_the_schema_says(made: Path) -> None:
    """Whole lists are looked at, and lists with something else in them one by one."""
    from jsonschema import Draft202012Validator

    full, quick = (
        v(records.schema("record")) for v in (Draft202012Validator, verify._validator())
    )
    whole = verify._read(next((made / "files").glob("*.json")))
    assert quick.is_valid(whole)
    values, index = whole["payload"]["values"]["attack_acc"], whole["payload"]["index"][0]
    for place in (values[0], index["pass"]):
        kept = place[0]
        for strange in (True, "1", [1], None, 1.5, -1, 10**6, 10**6 + 1):
            place[0] = strange
            assert quick.is_valid(whole) == full.is_valid(whole), strange
        place[0] = kept


def test_controls_that_records_lack_are_said_to_be_lacking() -> None:
    done = call("table", "digits", "--records", str(ROOT / "results/digits/records"), "--controls")
    assert done.exit_code == 0, done.output
    assert "is of samples of a prior, so nothing shows whether a low Attack Acc" in done.stderr


LENGTH = TABLES["digits-prior-length"]


def test_a_record_without_a_column_is_not_called_damaged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    records = Published(ROOT / "results/digits-prior-length/records")
    wider = replace(LENGTH, columns=(*LENGTH.columns, "kid"))
    holes = records.results(wider).holes
    assert list(holes) == list(LENGTH.rows)
    assert all(why.endswith(" has no column kid") for why in holes.values())
    told = capsys.readouterr().err
    assert ".json.gz has no column kid: it is left out" in told
    assert "damaged" not in told


def test_notes_name_the_seeds_that_are_there_and_not_those_asked_for() -> None:
    records = Published(ROOT / "results/digits-select-test/records")
    results = records.results(TABLES["digits-select-test"], 8)
    for short in (False, True):
        notes = "\n".join(footnotes(results, short=short))
        assert "Mean over 3 seeds ±" in notes
        assert "Fewer seeds so far: " in notes
        assert "8 seeds" not in notes
        assert ("With 3 seeds a true difference" in notes) is not short
