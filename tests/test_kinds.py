"""Whether tables say which rows were computed on another kind of machine."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mibench.benchmarks.tables import TABLES
from mibench.machine import each, in_words, kind
from mibench.reporting.kinds import apart_note, kinds, kinds_note
from mibench.reporting.matrix import matrix
from mibench.reporting.matrix_forms import remarks
from mibench.reporting.notes import footnotes
from mibench.reporting.published import Published
from mibench.reporting.records import digest, packed
from mibench.reporting.results import collect
from mibench.reporting.verify import check
from mibench.running.grid import Grid
from mibench.store import Store
from tests.made import fill, smoke

NAME = "digits-prior-length"
TABLE = TABLES[NAME]
SOURCE = Path(__file__).parents[1] / "results" / NAME / "records"
META = {"device": "cpu x86_64 AVX2", "threads": 1, "versions": {"torch": "2.9.0"}}
MACHINE = {"processor": "Abacus", "aten": "AVX2", "mkl": "m", "onednn": "o", "build": "b"}
SAID = "Not all was computed on one kind of machine"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SOURCE, tmp_path / "records"))


def computed(
    folder: Path, pattern: str, kind_of_stage: str, *, begun: dict[str, Any] | None = None
) -> None:
    """Makes records say that stages of a kind were computed, or begun, on another machine."""
    paths = list(folder.glob(pattern))
    assert paths
    for path in paths:
        record: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        own = [name for name in record["runs"] if name.startswith(kind_of_stage)]
        for name in own:
            other = META | {"machine": MACHINE} if begun is None else {"earlier": [begun]}
            record["runs"][name] |= other
        path.write_bytes(packed(json.dumps(record | {"sha256": digest(record)})))


def grid(folder: Path) -> Grid:
    return Published(folder).grid(TABLE, 3)


def test_a_kind_is_named_by_what_decides_bits() -> None:
    assert kind(META | {"machine": MACHINE}) == "Abacus (cpu x86_64 AVX2, torch 2.9.0)"
    more = META | {"machine": MACHINE | {"switches": "MKL_CBWR=AVX2"}, "threads": 4}
    assert kind(more) == "Abacus (cpu x86_64 AVX2, torch 2.9.0, 4 threads, MKL_CBWR=AVX2)"
    assert kind(META) == "a machine that is not recorded (cpu x86_64 AVX2)"


def test_nothing_is_said_of_one_kind(records: Path) -> None:
    assert not any(SAID in note for note in footnotes(collect(grid(records))))
    assert kinds_note({"a": {0: frozenset({"A"})}, "b": {0: frozenset()}}, ["a", "b"]) == ""


@pytest.mark.parametrize("kind_of_stage", ["classifier", "prior", "inversion"])
@pytest.mark.parametrize("short", [False, True])
def test_rows_of_another_kind_are_named(kind_of_stage: str, short: bool, records: Path) -> None:
    computed(records, "ked-mi-15-epochs-*", kind_of_stage)
    (note,) = [n for n in footnotes(collect(grid(records)), short=short) if SAID in n]
    assert "KED-MI, 15 epochs / No Def. on" in note or "KED-MI, 15 epochs on" in note
    assert "Abacus (cpu x86_64 AVX2, torch 2.9.0)" in note
    assert "; the others on a machine that is not recorded" in note
    assert note in remarks(matrix(grid(records)))


def test_a_row_that_is_compared_with_one_of_another_kind_is_named() -> None:
    a, b = ({seed: frozenset({kind}) for seed in range(2)} for kind in "ab")
    found = {"K / none": a, "K / MID": b, "K / BiDO": a, "K / LoFt": {0: a[0], 1: b[1]}}
    pairs = [(label, "K / none") for label in found if label != "K / none"]
    note = apart_note(found, pairs)
    assert note.startswith("Computed on another kind of machine than the row that they are")
    assert note.endswith("in common there: K / MID, K / LoFt.")
    assert apart_note(found, [("K / BiDO", "K / none")]) == ""
    assert (
        apart_note({"K / MID": {0: frozenset()}, "K / none": a}, [("K / MID", "K / none")]) == ""
    )


def test_a_table_says_which_rows_are_compared_with_another_kind(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    source = SOURCE.parents[1] / "digits" / "records"
    for path in (p for d in ("no-def", "mid") for p in source.glob(f"gmi-{d}-seed[01]-*")):
        shutil.copy(path, folder)
    digits = TABLES["digits"].only(["GMI / No Def.", "GMI / MID"])
    computed(folder, "gmi-mid-*", "classifier")
    own = Published(folder).grid(digits, 2)
    for notes in (footnotes(collect(own)), footnotes(collect(own), short=True)):
        (note,) = [n for n in notes if n.startswith("Computed on another kind of machine")]
        assert note.endswith(": GMI / MID.")
    assert note in remarks(matrix(own))


def test_seeds_of_one_row_may_be_of_two_kinds(records: Path) -> None:
    computed(records, "*-seed1-*", "inversion")
    (note,) = [n for n in footnotes(collect(grid(records))) if SAID in n]
    assert "KED-MI, 15 epochs" in note or "all on Abacus" in note
    assert " and a machine that is not recorded" in note


def test_a_stage_that_was_begun_elsewhere_is_of_two_kinds(records: Path) -> None:
    begun = {"device": "cpu x86_64 AVX2", "threads": 2, "machine": MACHINE}
    computed(records, "ked-mi-15-epochs-*", "inversion", begun=begun)
    (note,) = [n for n in footnotes(collect(grid(records))) if SAID in n]
    assert re.search(r"15 epochs( / No Def\.)? on Abacus \(.*, 2 threads\) and a machine", note)


def test_all_machines_of_a_stage_are_told() -> None:
    meta = META | {"machine": MACHINE, "earlier": [{"device": "GPU"}]}
    assert [kind(m) for m in each(meta)] == [
        "Abacus (cpu x86_64 AVX2, torch 2.9.0)", "a machine that is not recorded (GPU)",
    ]  # fmt: skip
    told = in_words(meta)
    assert told.startswith(
        in_words(META | {"machine": MACHINE}) + "; and, before it was resumed, "
    )
    assert "on GPU, CPU threads 1" in told


@pytest.mark.parametrize(
    "begun", [3, {}, {"device": 3}, {"device": "x", "threads": "y"}, {"device": "x", "machine": 3}]
)
def test_nonsense_on_earlier_machines_is_refused(begun: Any, records: Path) -> None:
    path = next(records.glob("*-seed0-*"))
    computed(records, path.name, "inversion", begun=begun)
    assert ".earlier.0" in check(path).problem


def test_scores_computed_elsewhere_are_not_named(records: Path) -> None:
    computed(records, "ked-mi-15-epochs-*", "record")
    assert not any(SAID in note for note in footnotes(collect(grid(records))))


def test_a_store_says_the_same(tmp_path: Path) -> None:
    table, store = smoke(), Store(tmp_path / "store")
    own = Grid(table, fill(table, store, data=tmp_path), store)
    record = next(iter(own.records.values()))[0]
    one = {0: frozenset({kind(store.meta(record))})}
    assert kinds(own) == dict.fromkeys(table.rows, one)
    assert kinds_note(kinds(own), table.rows) == ""


def test_a_strangers_machine_is_named_in_plain_characters() -> None:
    strange = "A\n|x|<script>\x1b[31m\u202e" + "y" * 500
    told = kind(META | {"machine": MACHINE | {"processor": strange}})
    assert told.startswith("A??x??script??")
    assert len(told) == 200
    assert kind(META | {"machine": {"aten": "AVX2"}}).startswith("unknown processor (cpu")
