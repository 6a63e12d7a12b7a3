"""Numbers of the paper stand beside the measured ones as they are printed there."""

import re
from pathlib import Path

import pytest

from mibench.benchmarks.tables import TABLES
from mibench.reporting.results import collect
from mibench.reporting.sheet import Look, sheet, show_reported
from mibench.running.grid import Grid
from mibench.store import Store

TABLE1 = TABLES["table1"]


def test_table_1_repeats_what_is_printed_of_its_fids_and_acc5() -> None:
    told = {
        label: {name: value for name, value in row.items() if name in ("attack_acc5", "fid")}
        for label, row in TABLE1.reported.items()
    }
    assert {label: row for label, row in told.items() if row} == {
        "GMI / No Def.": {"attack_acc5": (35.93, 4.88), "fid": (128.81, None)},
        "GMI / MID (a)": {"attack_acc5": (20.33, None)},
        "GMI / MID (b)": {"attack_acc5": (27.93, None)},
        "GMI / MID (c)": {"attack_acc5": (35.27, None)},
        "GMI / BiDO-COCO (b)": {"fid": (136.49, None)},
        "GMI / BiDO-HSIC (b)": {"fid": (136.49, None)},
        "GMI / BiDO-HSIC (c)": {"fid": (134.63, None)},
    }
    assert all({"accuracy", "attack_acc"} <= row.keys() for row in TABLE1.reported.values())


def test_deviations_stand_where_they_are_known() -> None:
    known = {
        ("table1", "GMI / No Def.", "attack_acc"): (16.73, 3.32),
        ("table2", "KED-MI / No Def.", "attack_acc"): (75.93, 3.65),
        ("table2", "KED-MI / No Def.", "attack_acc5"): (93.80, 2.51),
        ("table4", "VMI / No Def.", "attack_acc"): (36.90, 22.70),
    }
    for (table, row, column), value in known.items():
        assert TABLES[table].reported[row][column] == value


def test_a_note_says_which_fid_the_papers_text_contradicts() -> None:
    (note,) = (note for note in TABLE1.notes if "FID" in note and "contradicts" in note)
    printed = {value for row in TABLE1.reported.values() for value in row.get("fid", ())}
    assert "143.63 in the text, 134.63 in the table" in note
    assert "BiDO-HSIC (c)" in note
    assert 134.63 in printed
    assert 143.63 not in printed


@pytest.mark.parametrize("name", ["table1", "table2", "table3-mnist", "table4", "table5"])
def test_every_reported_number_has_a_column_to_stand_beside(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    results = collect(Grid.plan(table, 1, None, Store(tmp_path)))
    made = sheet([results], Look(), "*")
    shown = [number for row in made.body for number in row[1:] if re.search(r"\d", number)]
    assert sum("(reported)" in title for title in made.head) >= 2
    told = [show_reported(value) for row in table.reported.values() for value in row.values()]
    assert sorted(shown) == sorted(told)


def test_reported_numbers_keep_the_decimals_that_were_printed() -> None:
    assert show_reported((12.4, None)) == "12.40"
    assert show_reported((59, 1.5)) == "59.00 ± 1.50"
    assert show_reported((0.9295, 0.0)) == "0.9295 ± 0.00"
    assert show_reported(None) == "--"
