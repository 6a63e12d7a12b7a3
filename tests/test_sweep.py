"""The figure of Attack Acc against the number in which attacks differ."""

import copy
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


def at(value: Any, name: str = "steps") -> Any:
    """Returns a cell whose attack has such steps, or such a value elsewhere, of whatever type."""
    attack, cell = copy.copy(CELL.attack), copy.copy(CELL)
    object.__setattr__(attack, name, value)
    object.__setattr__(cell, "attack", attack)
    return cell


def labelled(rows: dict[str, Any]) -> Table:
    return Table("made", "Made.", rows)


def test_rows_of_one_line_differ_in_one_number_of_their_attack() -> None:
    rows = {"GMI, long / No Def.": at(20), "GMI, short / No Def.": at(3)}
    alone = {"GMI / MID": replace(CELL, defense=TABLES["smoke"].rows["GMI / MID"].defense)}
    same = {"GMI, again / No Def.": at(20)}
    path, lines = sweep.varied(labelled(rows | alone))
    assert path == "attack.steps"
    assert [list(line.items()) for line in lines] == [
        [("GMI, short / No Def.", 3.0), ("GMI, long / No Def.", 20.0)]
    ]
    assert len(sweep.varied(labelled(rows | same))[1][0]) == 3


@pytest.mark.parametrize(
    "rows",
    [
        {"one": at(1)},
        {"one": at(1), "other": at(1)},
        {"one": at(1), "other": replace(at(1), recipe=replace(CELL.recipe, epochs=7))},
        {str(v): at(v, "momentum") for v in (True, None, "auto", 5)},
    ],
    ids=["one row", "equal cells", "no number of the attack", "one number among other values"],
)
def test_rows_that_differ_in_no_number_are_refused(rows: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no two rows of made differ in one number"):
        sweep.varied(labelled(rows))


def test_rows_that_differ_in_several_numbers_are_refused() -> None:
    longer = replace(CELL.attack.prior, epochs=CELL.attack.prior.epochs + 1)
    prior = replace(CELL, attack=replace(CELL.attack, steps=1, prior=longer))
    with pytest.raises(
        ValueError, match=r"attack.prior.epochs and attack.steps: choose, with --rows"
    ):
        sweep.varied(labelled({"short": at(1), "long": at(20), "prior": prior}))


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([["A, 1 step / X", "A, 2 steps / X"]], ["A / X"]),
        ([["A, 1 step, b / X", "A, 2 steps, b / X"]], ["A, b / X"]),
        ([["A 1 / X", "A 2 / X"]], ["A 1 / X … A 2 / X"]),
        ([["A / X (1)", "A / X (2)"]], ["A / X (1) … A / X (2)"]),
        ([["short", "long"]], ["short … long"]),
        (
            [["A, 1 / X", "A, 2 / X"], ["A, 1 s / X", "A, 2 s / X"]],
            ["A, 1 / X … A, 2 / X", "A, 1 s / X … A, 2 s / X"],
        ),
    ],
)
def test_no_two_lines_have_one_name(lines: list[list[str]], names: list[str]) -> None:
    assert sweep._names(lines) == names


def test_of_one_seed_the_interval_is_over_its_attacks() -> None:
    name, points = sweep.points(mibench.load(CURVE))
    assert name == "attack.prior.epochs"
    point = next(p for p in points if p.row == "KED-MI, 30 epochs / BiDO-COCO")
    shown = run("explain", "table3-mnist-curve", point.row, "attack_acc", "--records", str(CURVE))
    assert f"{point.low:.2f} to {point.high:.2f} %" in shown.stdout
    assert f"{point.attack_acc:.2f} %" in shown.stdout
    assert (point.line, point.at) == ("KED-MI / BiDO-COCO", 30)
    assert (point.over, point.n) == ("attacks", 5)
    published = next(p for p in points if p.row == "KED-MI, 100 epochs / BiDO-COCO")
    assert (published.attack_acc, published.over, published.reported) == (None, "", 7.76)


def test_of_several_seeds_the_interval_is_over_them() -> None:
    results = mibench.load(SEEDS)
    _, points = sweep.points(results)
    assert {(p.over, p.n) for p in points} == {("seeds", 3)}
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
    assert "no two rows of digits differ in one number of their attack alone" in done.stderr


def test_of_two_seeds_there_is_no_interval() -> None:
    _, points = sweep.points(mibench.load(SEEDS, seeds=2))
    assert {(p.over, p.n, p.low, p.high) for p in points} == {("", 2, None, None)}


def test_the_picture_shows_means_intervals_and_what_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(sweep, "save", lambda figure, *_: drawn.append(figure))
    _, points = sweep.points(mibench.load(CURVE))
    sweep.draw("A caption.", "attack.prior.epochs", points, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "3", "10", "30", "100"]
    told = "Bars: 95 % intervals over the attacks of one seed: one target, one prior."
    assert axes.get_title().split("\n") == ["A caption.", told]
    bars = {bar.get_label(): bar for bar in axes.containers}
    line, _, (segments,) = bars["KED-MI / BiDO-COCO"]
    own = [p for p in points if p.line == "KED-MI / BiDO-COCO"]
    shown = [(p.at, p.attack_acc) for p in own if p.attack_acc is not None]
    assert [tuple(xy) for xy in line.get_xydata() if xy[1] == xy[1]] == shown
    ends = [y for part in segments.get_segments() if len(part) for y in part[:, 1]]
    assert ends == pytest.approx([y for p in own if p.low is not None for y in (p.low, p.high)])
    hollow = {k.get_label(): k for k in axes.lines if k.get_label().endswith("as reported")}
    assert hollow["KED-MI / BiDO-COCO, as reported"].get_xydata().tolist() == [[100, 7.76]]
    near = [replace(point, at=point.at / 100 + 1) for point in points]
    sweep.draw("A caption.", "attack.lr", near, tmp_path / "b.png")
    assert drawn[1].axes[0].get_xscale() == "linear"


def test_nothing_to_draw_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "none"), "-o", str(tmp_path))
    done = run("figure", "sweep", "digits-prior-length", *store)
    assert done.exit_code == 2
    assert "mibench run digits-prior-length" in done.stderr
    results = mibench.load(SEEDS)
    with pytest.raises(ValueError, match="no column attack_acc, which this figure draws"):
        sweep.points(replace(results, table=replace(results.table, columns=("fid",))))


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)
