"""What is published follows, byte for byte, from records that hold."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.reporting.published import Published, files_of
from mibench.reporting.records import digest, packed, schema

ROOT = Path(__file__).parents[1]
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/command.txt"))
FIGURES = sorted((ROOT / "results").glob("*/*-matrix-figure.csv"))
SWEEPS = sorted((ROOT / "results").glob("*/*-sweep-figure.csv"))
INCLUDE = re.compile(r"\.\./(results/[^\s)`]+)")


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def rebuilt(place: Path) -> dict[str, str]:
    _, _, table, *_, seeds = shlex.split((place / "command.txt").read_text())
    return files_of(TABLES[table], int(seeds), Published(place / "records"))


def check_folder(place: Path) -> None:
    done = call("records", "check", place)
    assert done.exit_code == 0, done.output
    for name, text in rebuilt(place).items():
        assert (place / name).read_bytes() == text.encode(), name
    for path in (place / "records").glob("*"):
        record = json.loads(gzip.decompress(path.read_bytes()))
        Draft202012Validator(schema("record")).validate(record)
    table = json.loads((place / f"{place.name}.json").read_text())
    Draft202012Validator(schema("table")).validate(table)


@pytest.mark.parametrize("place", PUBLISHED, ids=lambda p: p.name)
def test_a_published_table_is_what_its_records_say(place: Path) -> None:
    check_folder(place)
    assert sum(f.stat().st_size for f in place.rglob("*")) < 12 * 2**20


def test_all_that_is_published_can_be_cloned_quickly() -> None:
    assert sum(f.stat().st_size for f in (ROOT / "results").rglob("*")) < 30 * 2**20


def redraw(kind: str, figure: Path, out: Path) -> None:
    records, table = figure.parent / "records", figure.name.removesuffix(f"-{kind}-figure.csv")
    done = call("figure", kind, table, "--records", records, "-o", out)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda p: p.name)
def test_a_published_matrix_is_what_its_records_say(figure: Path, tmp_path: Path) -> None:
    redraw("matrix", figure, tmp_path)
    for path in (figure, figure.with_suffix(".md")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("figure", SWEEPS, ids=lambda p: p.name)
def test_a_published_sweep_is_what_its_records_say(figure: Path, tmp_path: Path) -> None:
    redraw("sweep", figure, tmp_path)
    assert (tmp_path / figure.name).read_bytes() == figure.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("by-key", ["--by-key"]), ("compare", [])])
def test_what_two_kinds_of_machines_give_is_what_their_records_say(
    name: str, options: list[str]
) -> None:
    results = ROOT / "results"
    done = call("compare", results / "avatars", results / "two-kinds", *options)
    assert done.exit_code == 0, done.output
    assert (results / "two-kinds" / f"{name}.txt").read_text() == done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one row of ``smoke`` published, beside what the run itself wrote."""
    place = tmp_path_factory.mktemp("published")
    run = call("run", "smoke", "--rows", "GMI / No Def.", "--store", place / "store",
               "--data", place, "--out", place / "out", "--quiet",
               "--executor", "serial")  # fmt: skip
    assert run.exit_code == 0, run.output
    done = call("records", "publish", "smoke", "--store", place / "store", "--data", place,
                "-o", place / "results")  # fmt: skip
    assert done.exit_code == 0, done.output
    return place


def test_a_table_made_of_records_has_the_bytes_of_one_made_of_the_store(made: Path) -> None:
    check_folder(made / "results" / "smoke")
    for form, suffix in (("csv", "csv"), ("latex", "tex"), ("markdown", "md"), ("json", "json")):
        told = call("table", "smoke", "--format", form, "--store", made / "store", "--data", made)
        assert (made / f"results/smoke/smoke.{suffix}").read_text() == told.stdout


def test_publishing_anew_leaves_no_record_twice(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "smoke" / "records"
    place.mkdir(parents=True)
    (packed_,) = (made / "results/smoke/records").iterdir()
    plain = place / packed_.name.removesuffix(".gz")
    plain.write_bytes(gzip.decompress(packed_.read_bytes()))
    done = call("records", "publish", "smoke", "--store", made / "store", "--data", made,
                "-o", tmp_path)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [path.name for path in place.iterdir()] == [packed_.name]


def publish(made: Path, out: Path, *more: str) -> Result:
    return call("records", "publish", "smoke", "--store", made / "store", "--data", made,
                "-o", out, *more)  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_records_that_tell_other_values_are_replaced_aloud_or_kept(
    keep: bool, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "results/smoke", tmp_path / "smoke")
    (path,) = (tmp_path / "smoke/records").iterdir()
    again = publish(made, tmp_path)
    assert (again.exit_code, again.stderr) == (0, "")
    record = json.loads(gzip.decompress(path.read_bytes()))
    record["payload"]["warnings"] = ["computed on another kind of machine"]
    path.write_bytes(packed(json.dumps(record | {"sha256": digest(record)})))
    other = path.read_bytes()
    done = publish(made, tmp_path, *["--keep"] * keep)
    assert done.exit_code == 0, done.output
    assert ("1 records in" in done.stderr) is not keep
    assert (path.read_bytes() == other) is keep
    check_folder(tmp_path / "smoke")


def test_a_cell_s_record_of_another_version_is_replaced_too(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "results/smoke", tmp_path / "smoke")
    (path,) = (tmp_path / "smoke/records").iterdir()
    old = path.rename(path.with_name("older-" + path.name))
    done = publish(made, tmp_path)
    assert done.exit_code == 0, done.output
    assert path.exists()
    assert not old.exists()
    assert f"are replaced, such as {old}\n" in done.stderr
    check_folder(tmp_path / "smoke")


def test_publishing_removes_no_file_below_its_folder(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "results/smoke", tmp_path / "smoke")
    (path,) = (tmp_path / "smoke/records").iterdir()
    old = path.rename(path.with_name("older-" + path.name))
    copy = path.parent / "backup" / "copy.json.gz"
    copy.parent.mkdir()
    shutil.copy(old, copy)
    done = publish(made, tmp_path)
    assert done.exit_code == 0, done.output
    assert sorted(path.parent.rglob("*.gz")) == [copy, path]


def test_records_write_says_which_published_records_it_replaces(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "results/smoke", tmp_path / "smoke")
    (path,) = (tmp_path / "smoke/records").iterdir()
    done = call("records", "write", "smoke", "--store", made / "store", "--data", made,
                "-o", path.parent)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"are replaced, such as {path}\n" in done.stderr


def test_a_damaged_record_is_found_before_any_is_written(made: Path, tmp_path: Path) -> None:
    place = tmp_path / "smoke/records"
    place.mkdir(parents=True)
    (place / "damaged.json").write_text("{}")
    done = publish(made, tmp_path)
    assert done.exit_code == 2
    assert "damaged.json" in done.stderr
    assert len(list(place.iterdir())) == 1


def test_without_a_store_the_same_files_are_made_of_the_records(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "results/smoke/records", tmp_path / "smoke/records")
    done = call("records", "publish", "smoke", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    for path in (made / "results/smoke").iterdir():
        if path.is_file():
            assert (tmp_path / "smoke" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("what", ["edited", "absent"])
def test_records_that_do_not_hold_are_refused(what: str, made: Path, tmp_path: Path) -> None:
    place = tmp_path / "smoke/records"
    if what != "absent":
        shutil.copytree(made / "results/smoke/records", place)
        path = next(place.glob("*.json.gz"))
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(packed(re.sub(r'"mean": [1-9]', '"mean": 7', text, count=1)))
    done = call("records", "publish", "smoke", "-o", tmp_path)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("page", ["results.md", "findings.md"])
def test_a_page_includes_only_tables_that_are_published(page: str) -> None:
    path = ROOT / "docs" / page
    checked = {*PUBLISHED, *(figure.parent for figure in FIGURES), ROOT / "results" / "two-kinds"}
    for name in INCLUDE.findall(path.read_text() if path.exists() else ""):
        assert (ROOT / name).is_file(), f"{page} includes {name}"
        assert (ROOT / name).parent in checked


def test_publish_does_not_make_a_table_of_fewer_seeds_than_there_are_records_of(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "results" / "digits-prior-length", tmp_path / "digits-prior-length")
    table = tmp_path / "digits-prior-length" / "digits-prior-length.md"
    before = table.read_bytes()
    done = call("records", "publish", "digits-prior-length", "-o", tmp_path)
    assert done.exit_code == 2
    assert "records of 3 seeds: publish them with --seeds 3" in done.output
    assert table.read_bytes() == before
    assert (
        call("records", "publish", "digits-prior-length", "--seeds", 3, "-o", tmp_path).exit_code
        == 0
    )
    assert table.read_bytes() == before
