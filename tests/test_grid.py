"""Rows by name, and tables in a store: what is there and what may be shown."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables import TABLES
from mibench.running.grid import Grid, record_stages
from mibench.store import Store
from tests.made import fill, smoke

ROOT = Path(__file__).parent.parent / "mibench"


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("GMI / MID", Row("GMI", "MID")),
        ("GMI / MID (a)", Row("GMI", "MID", "a")),
        ("A / B / C", Row("A / B", "C")),
        ("MID", Row("", "MID")),
        ("GMI / MID ()", Row("GMI", "MID ()")),
        ("GMI / MID (a) b", Row("GMI", "MID (a) b")),
        ("GMI / MID (a (b))", Row("GMI", "MID", "a (b)")),
    ],
)
def test_a_label_is_the_text_of_its_row(label: str, row: Row) -> None:
    assert Row.of(label) == row
    assert str(row) == label
    assert row.defended == label.split(" / ")[-1]


def test_every_label_of_every_table_is_the_text_of_its_row() -> None:
    labels = [label for table in TABLES.values() for label in table.rows]
    assert [str(Row.of(label)) for label in labels] == labels


def test_labels_are_parsed_in_one_place() -> None:
    parsing = re.compile(r"""partition\(\s*["'] ?/ |split\(\s*["'] ?(/|\()|BETWEEN""")
    wrong = [
        f"{path.name}: {line.strip()}"
        for path in ROOT.rglob("*.py")
        if path.name != "row.py"
        for line in path.read_text().splitlines()
        if parsing.search(line)
    ]
    assert not wrong


def test_a_grid_says_what_is_done_and_what_is_missing(tmp_path: Path) -> None:
    table, store = smoke("GMI / No Def.", "GMI / MID", "KED-MI / MID"), Store(tmp_path)
    fill(smoke("GMI / MID"), store, seeds=2, data=Path())
    fill(smoke("GMI / No Def."), store, data=Path())
    grid = Grid.plan(table, 2, Path(), store)
    there = {label: list(done) for label, done in grid.done.items()}
    assert there == {"GMI / No Def.": [0], "GMI / MID": [0, 1], "KED-MI / MID": []}
    assert list(grid.first) == ["GMI / No Def.", "GMI / MID"]
    assert grid.missing == [("GMI / No Def.", 1), ("KED-MI / MID", 0), ("KED-MI / MID", 1)]
    assert grid.seeds == 2
    assert len(grid.last) == 6
    assert grid.only(["GMI / MID"]).records.keys() == {"GMI / MID"}
    assert len(grid.finished([grid.last[0]] * 2)) == 1
    shutil.rmtree(store.path(grid.records["GMI / MID"][0]))
    assert list(grid.first) == ["GMI / No Def."]  # seed 1 alone does not stand for the first


def test_targets_and_priors_stand_once_at_the_first_row_that_has_them(tmp_path: Path) -> None:
    table, store = smoke("GMI / No Def.", "GMI / MID", "KED-MI / MID"), Store(tmp_path)
    assert Grid.plan(table, 1, Path(), store).targets() == {}
    fill(table, store, data=Path())
    grid = Grid.plan(table, 2, Path(), store)
    assert list(grid.targets()) == ["GMI / No Def.", "GMI / MID"]
    assert list(grid.priors()) == ["GMI / No Def.", "KED-MI / MID"]  # GMI's sees no target
    assert grid.targets()["GMI / MID"].seed == 0


def test_private_images_of_people_are_shown_only_if_asked_for(tmp_path: Path) -> None:
    faces, digits = (
        Grid(t, record_stages(t, 1, None), Store(tmp_path))
        for t in (TABLES["table1"].only(["*No Def."]), smoke("GMI / MID"))
    )
    assert (faces.faces, faces.private(), faces.private(with_private=True)) == (True, False, True)
    assert (digits.faces, digits.private()) == (False, True)
    mixed = replace(digits, records={**digits.records, **faces.records})
    assert not mixed.private()
