"""The figure of Attack Acc against the number in which attacks differ."""

import csv
import io
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mibench
from mibench.benchmarks.tables import TABLES
from mibench.benchmarks.tables.base import Table
from mibench.cli import main
from mibench.reporting import sweep

RESULTS = Path(__file__).parents[1] / "results"
CURVE = RESULTS / "table3-mnist-curve" / "records"
SEEDS = RESULTS / "digits-prior-length" / "records"
CELL: Any = TABLES["smoke"].rows["GMI / No Def."]


def made(**steps: int) -> Table:
    rows = {
        label.replace("_", ", ") + " / No Def.": replace(
            CELL, attack=replace(CELL.attack, steps=n)
        )
        for label, n in steps.items()
    }
    return Table("made", "Made.", rows)


def test_rows_of_one_line_differ_in_one_number() -> None:
    path, lines = sweep.varied(made(GMI_short=1, GMI_long=20))
    assert path == "attack.steps"
    assert lines == {
        "GMI, short / No Def.": ("GMI / No Def.", 1.0),
        "GMI, long / No Def.": ("GMI / No Def.", 20.0),
    }


def test_a_row_without_another_on_its_line_is_left_out() -> None:
    table = made(GMI_short=1, GMI_long=20)
    other = replace(CELL, defense=TABLES["smoke"].rows["GMI / MID"].defense)
    _, lines = sweep.varied(replace(table, rows={**table.rows, "GMI / MID": other}))
    assert "GMI / MID" not in lines
    assert len(lines) == 2


def test_rows_that_differ_in_no_number_or_in_several_are_refused() -> None:
    with pytest.raises(ValueError, match=r"made .* differ in no number"):
        sweep.varied(made(GMI_one=1))
    table = made(GMI_short=1, GMI_long=20)
    prior = replace(CELL.attack.prior, epochs=CELL.attack.prior.epochs + 1)
    longer = replace(CELL, attack=replace(CELL.attack, steps=1, prior=prior))
    both = replace(table, rows={**table.rows, "GMI, prior / No Def.": longer})
    with pytest.raises(
        ValueError, match=r"several numbers \(attack.prior.epochs and attack.steps\)"
    ):
        sweep.varied(both)


def test_of_one_seed_the_interval_is_over_its_attacks() -> None:
    name, points = sweep.points(mibench.load(CURVE))
    assert name == "attack.prior.epochs"
    point = next(p for p in points if p.row == "KED-MI, 30 epochs / BiDO-COCO")
    shown = run("explain", "table3-mnist-curve", point.row, "attack_acc", "--records", str(CURVE))
    assert f"{point.low:.2f} to {point.high:.2f} %" in shown.stdout
    assert f"{point.attack_acc:.2f} %" in shown.stdout
    assert (point.line, point.at, point.over) == ("KED-MI / BiDO-COCO", 30, "attacks")
    published = next(p for p in points if p.row == "KED-MI, 100 epochs / BiDO-COCO")
    assert (published.attack_acc, published.over, published.reported) == (None, "", 7.76)
    own = [p.at for p in points if p.line == point.line]
    assert own == sorted(own)


def test_of_several_seeds_the_interval_is_over_them() -> None:
    results = mibench.load(SEEDS)
    _, points = sweep.points(results)
    assert {p.over for p in points} == {"seeds"}
    for point in points:
        entry = results.entries[point.row]["attack_acc"]
        assert point.attack_acc == pytest.approx(entry.mean)
        assert entry.interval is not None
        assert (point.low, point.high) == tuple(astuple(entry.interval.clipped(0, 100))[1:3])


def test_the_command_writes_pictures_and_a_csv(tmp_path: Path) -> None:
    done = run(
        "figure", "sweep", "table3-mnist-curve", "--records", str(CURVE), "-o", str(tmp_path)
    )
    assert done.exit_code == 0, done.output
    stem = tmp_path / "table3-mnist-curve-sweep-figure"
    paths = [stem.with_suffix(suffix) for suffix in (".pdf", ".png", ".csv")]
    assert done.stdout.split() == list(map(str, paths))
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    lines = list(csv.DictReader(io.StringIO(paths[2].read_text())))
    assert len(lines) == len(TABLES["table3-mnist-curve"].rows)


def test_a_table_of_other_rows_is_refused(tmp_path: Path) -> None:
    records = RESULTS / "digits" / "records"
    done = run("figure", "sweep", "digits", "--records", str(records), "-o", str(tmp_path))
    assert done.exit_code == 2
    assert "rows of digits that differ in one number of their attack alone" in done.stderr


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)
