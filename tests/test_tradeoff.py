"""The comparison at equal utility, against figures made by hand."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.reporting import tradeoff
from mibench.reporting.figures import draw_curves
from mibench.reporting.tradeoff import Curve as Swept
from mibench.reporting.tradeoff import (
    Line,
    Point,
    Tradeoff,
    compare,
    front,
    hypervolume,
    interpolate,
    matched,
)
from mibench.running.grid import Grid, record_stages
from mibench.store import Payload, Stage, Store

SWEEP = [(100.0, 60.0), (90.0, 40.0), (60.0, 10.0)]
PERCENT = st.floats(0, 100).map(lambda v: round(v, 3))
POINTS = st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=8)


# One seed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "attack"), [(100, 60), (95, 50), (90, 40), (75, 25), (69, 19), (60, 10)]
)
def test_attack_acc_is_linear_between_neighbouring_points(accuracy: float, attack: float) -> None:
    assert interpolate(SWEEP, accuracy) == pytest.approx(attack)


@pytest.mark.parametrize("accuracy", [100.01, 59.99, 0])
def test_nothing_is_extrapolated(accuracy: float) -> None:
    assert math.isnan(interpolate(SWEEP, accuracy))


def test_points_of_equal_accuracy_count_as_their_mean() -> None:
    twice = [(100.0, 60.0), (90.0, 30.0), (90.0, 50.0), (60.0, 10.0)]
    for accuracy in (95, 90, 75):
        assert interpolate(twice, accuracy) == pytest.approx(interpolate(SWEEP, accuracy))


def test_one_point_is_known_at_its_own_accuracy_alone() -> None:
    assert interpolate([(97.0, 33.0)], 97) == 33
    assert math.isnan(interpolate([(97.0, 33.0)], 96.9))


@given(POINTS, PERCENT)
def test_the_order_of_a_sweep_does_not_matter(points: list[Point], accuracy: float) -> None:
    there, back = interpolate(points, accuracy), interpolate(points[::-1], accuracy)
    assert there == pytest.approx(back, nan_ok=True)
    assert hypervolume(points, 20) == hypervolume(points[::-1], 20)


@given(POINTS, PERCENT)
def test_what_is_interpolated_lies_between_the_points(points: list[Point], at: float) -> None:
    found = interpolate(points, at)
    inside = min(x for x, _ in points) <= at <= max(x for x, _ in points)
    assert math.isnan(found) != inside
    if inside:
        low, high = min(y for _, y in points), max(y for _, y in points)
        assert low - 1e-9 <= found <= high + 1e-9


def test_the_front_leaves_out_what_another_point_beats() -> None:
    beaten = [(90.0, 41.0), (89.0, 40.0), (60.0, 10.0), (100.0, 70.0)]
    assert front([*beaten, *SWEEP]) == SWEEP


@given(POINTS)
def test_the_front_is_what_the_definition_says(points: list[Point]) -> None:
    def beats(a: Point, b: Point) -> bool:
        return a != b and a[0] >= b[0] and a[1] <= b[1]

    kept = {p for p in points if not any(beats(q, p) for q in points)}
    assert set(front(points)) == kept
    assert len(front(points)) == len(kept)


def test_the_area_by_hand() -> None:
    # (100, 60): 80 x 40; (90, 40): 70 x 20 more; (60, 10): 40 x 30 more; of 80 x 100.
    assert hypervolume(SWEEP, 20) == pytest.approx(100 * (3200 + 1400 + 1200) / 8000)


@pytest.mark.parametrize(
    ("points", "area"),
    [([(100, 0)], 100), ([(20, 0)], 0), ([(10, 0)], 0), ([(100, 100)], 0), ([(60, 50)], 25)],
)
def test_areas_at_the_ends(points: list[Point], area: float) -> None:
    assert hypervolume(points, 20) == pytest.approx(area)


def test_a_point_below_chance_hides_no_other() -> None:
    assert hypervolume([*SWEEP, (15.0, 0.0)], 20) == hypervolume(SWEEP, 20)


@given(POINTS, st.tuples(PERCENT, PERCENT))
def test_a_further_point_never_shrinks_the_area(points: list[Point], more: Point) -> None:
    before, after = hypervolume(points, 20), hypervolume([*points, more], 20)
    assert -1e-9 <= before <= after + 1e-9 <= 100 + 2e-9


# Over seeds ---------------------------------------------------------------------------------


def curve(name: str, *seeds: list[Point]) -> Swept:
    labels = tuple(f"{name} {i}" for i in range(len(seeds[0])))
    return Swept(name, labels, {i: tuple(points) for i, points in enumerate(seeds)})


def line(lines: list[Line], level: str, of: str, versus: str = "") -> Line:
    (found,) = [x for x in lines if (x.level, x.curve, x.versus) == (level, of, versus)]
    return found


def test_only_seeds_that_reach_an_accuracy_count_and_their_number_is_told() -> None:
    a = curve("a", [(100, 60), (90, 40)], [(100, 70), (97, 64)], [(100, 50), (80, 30)])
    b = curve("b", [(100, 30), (90, 20)], [(100, 40), (90, 20)], [(94, 10), (80, 10)])
    lines = matched([a, b], [0, 1, 2])
    mine = line(lines, "95", "a").interval
    assert mine is not None
    assert mine.mean == pytest.approx((50 + 45) / 2)
    assert mine.n == 2
    both = line(lines, "95", "b", "a").interval
    assert both is not None
    assert both.mean == pytest.approx(25 - 50)
    assert (both.n, both.half) == (1, None)
    assert not [x for x in lines if x.level == "60"]


def test_no_defense_is_compared_at_its_own_accuracy_seed_by_seed() -> None:
    none = curve("none", [(98, 80)], [(96, 70)], [(95, 75)])
    swept = curve("a", [(100, 60), (90, 40)], [(100, 60), (90, 40)], [(100, 60), (90, 40)])
    lines = matched([none, swept], [0, 1, 2])
    less = line(lines, "as none", "a", "none")
    assert less.interval is not None
    assert less.interval.mean == pytest.approx(((56 - 80) + (52 - 70) + (50 - 75)) / 3)
    assert less.p is not None
    own = line(lines, "as none", "none").interval
    assert own is not None
    assert own.mean == 75
    assert line(lines, "99", "none").interval is None


def test_p_values_are_corrected_over_all_levels_together() -> None:
    a = curve("a", [(100, 60), (90, 60)], [(100, 61), (90, 61)], [(100, 62), (90, 61.5)])
    b = curve("b", [(100, 50), (90, 49)], [(100, 50), (90, 50)], [(100, 51), (90, 51)])
    tests = [x for x in matched([a, b], [0, 1, 2]) if x.versus]
    assert len(tests) == 4  # at 99, 98, 95 and 90
    least = min(x.p for x in tests if x.p is not None)
    assert min(x.p_holm for x in tests if x.p_holm is not None) == pytest.approx(4 * least)


class Made(Store):
    """A store whose records are made by hand: label → seed → point; None is not there."""

    def __init__(self, scores: Mapping[str, Point | None]) -> None:
        super().__init__(Path("nowhere"))
        self.scores = scores

    def state(self, stage: Stage) -> str:
        return "done" if self.scores[stage.key] else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        return {s.key: self.state(s) for s in stages}

    def load(self, stage: Stage) -> Payload:
        x, y = self.scores[stage.key] or (0, 0)
        return {"scores": {"accuracy": {"mean": x}, "attack_acc": {"mean": y}}}


TABLE = TABLES["tradeoff-digits"]


def found(table: Table = TABLE, *, gap: bool = False) -> Tradeoff:
    records = record_stages(table, 3, None)
    scores: dict[str, Point | None] = {}
    for i, stages in enumerate(records.values()):
        for seed, stage in enumerate(stages):
            scores[stage.key] = (
                100 - 4 * ((i + 3) % 4) - 0.5 * seed,
                70 - 4 * i + (seed * (i + 1)) % 5,
            )
    if gap:
        scores[records["KED-MI / MID (1)"][2].key] = None
    return compare(Grid(table, records, Made(scores)))


def test_a_seed_counts_once_all_its_rows_are_there_and_gaps_are_named() -> None:
    assert found().seeds == (0, 1, 2)
    assert found().missing == ()
    short = found(gap=True)
    assert short.seeds == (0, 1)
    assert short.missing == ("KED-MI / MID (1), seed 2",)
    assert all(set(c.points) == {0, 1} for c in short.curves)
    assert "Not in the store: KED-MI / MID (1), seed 2." in tradeoff.text(short)


def test_chance_is_that_of_the_private_classes() -> None:
    assert found().chance == 20


def test_every_pair_of_curves_is_compared_in_area() -> None:
    lines = [x for x in found().lines if x.quantity == "hypervolume"]
    assert len([x for x in lines if not x.versus]) == 4
    assert len([x for x in lines if x.versus]) == 6
    own = {x.curve: x.interval for x in lines if not x.versus}
    for x in lines:
        a, b = own[x.curve], own.get(x.versus)
        if b is not None:
            assert a is not None
            assert x.interval is not None
            assert x.interval.mean == pytest.approx(a.mean - b.mean)
            unfair = "No Def." in (x.curve, x.versus)  # 1 point against 4
            assert (x.p is None) == (x.interval.half is None) == unfair


def test_an_area_that_is_not_tested_has_no_interval_and_says_why() -> None:
    text = tradeoff.text(found())
    (mid,) = [line for line in text.splitlines() if line.startswith("  area: MID − No Def.")]
    assert re.fullmatch(r"  area: .* = [+-]\d+\.\d\d \(not tested: 4 points against 1\)", mid)
    (coco,) = [line for line in text.splitlines() if line.startswith("  area: BiDO-COCO − MID")]
    assert " ± " in coco
    assert "(Holm)" in coco
    cells = next(row for row in tradeoff.csv(found()).splitlines() if ",MID,No Def.," in row
                 and row.startswith("hypervolume")).split(",")  # fmt: skip
    assert cells[5:] == ["", "3", "", ""]


def test_one_weight_of_a_curve_is_tested_against_the_one_point_of_no_defense() -> None:
    lines = found(TABLE.only(["* / No Def.", "*MID (1)"])).lines
    (area,) = [x for x in lines if x.quantity == "hypervolume" and x.versus]
    assert area.p is not None
    page = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text()
    assert "single point of no defense only another single point is tested" in page


def test_the_csv_has_every_line_and_the_text_says_what_it_rests_on() -> None:
    comparison = found()
    rows = tradeoff.csv(comparison).splitlines()
    assert rows[0] == ",".join(tradeoff.HEAD)
    assert len(rows) == 1 + len(comparison.lines)
    assert {row.count(",") for row in rows} == {rows[0].count(",")}
    text = tradeoff.text(comparison)
    for words in ("Over 3 seeds", "20 % Accuracy", "No Def. 1, MID 4", "-- ", "paired"):
        assert words in text
    assert "nan" not in text.lower()


@pytest.mark.parametrize(("p", "named"), [(0.05, 1), (0.0501, 0), (1.0, 0)])
def test_only_differences_told_apart_at_the_level_are_named(p: float, named: int) -> None:
    comparison = found()
    lines = [replace(x, p_holm=1.0) for x in comparison.lines]
    first = next(i for i, x in enumerate(lines) if x.quantity == "attack_acc" and x.p is not None)
    lines[first] = replace(lines[first], p_holm=p)
    text = tradeoff.text(replace(comparison, lines=tuple(lines)))
    assert f" {named} differ from 0 at level 5 %" in text
    assert text.count("% Accuracy: ") + text.count("as accurate") == named


def test_a_record_without_attack_acc_is_a_gap() -> None:
    records = record_stages(TABLE, 1, None)
    scores: dict[str, Point | None] = {r.key: (99.0, 50.0) for rs in records.values() for r in rs}
    undefined: Any = (99.0, None)
    scores[records["KED-MI / MID (1)"][0].key] = undefined
    comparison = compare(Grid(TABLE, records, Made(scores)))
    assert comparison.seeds == ()
    assert comparison.missing == ("KED-MI / MID (1), seed 0",)


def test_with_nothing_in_the_store_the_text_names_what_is_missing(tmp_path: Path) -> None:
    records = record_stages(TABLE, 1, None)
    none = compare(
        Grid(TABLE, records, Made({r.key: None for rs in records.values() for r in rs}))
    )
    assert "KED-MI / No Def., seed 0" in tradeoff.text(none)
    assert draw_curves(none, tmp_path / "x") == []


def test_the_figure_is_a_png_and_a_pdf_and_the_same_twice(tmp_path: Path) -> None:
    first = [p.read_bytes() for p in draw_curves(found(), tmp_path / "a-curves")]
    again = [p.read_bytes() for p in draw_curves(found(), tmp_path / "a-curves")]
    assert first == again
    assert [b[:4] for b in first] == [b"\x89PNG", b"%PDF"]


# Tables -------------------------------------------------------------------------------------


def test_some_rows_keep_their_part_of_the_curves() -> None:
    some = TABLE.only(["MID (0.02)", "BiDO-COCO*"])
    assert {name: len(rows) for name, rows in some.curves.items()} == {"MID": 1, "BiDO-COCO": 4}


def test_a_curve_must_name_rows_and_needs_both_columns() -> None:
    with pytest.raises(ValueError, match="curve MID names no row: 'MID 7'"):
        replace(TABLE, curves={"MID": ("MID 7",)})
    with pytest.raises(ValueError, match="need the columns accuracy and attack_acc"):
        replace(TABLE, columns=("accuracy",))
    with pytest.raises(ValueError, match="digits sweeps nothing"):
        compare(Grid(TABLES["digits"], {}, Made({})))


def test_the_sweep_shares_what_it_can_with_digits() -> None:
    theirs = {record_stages(TABLES["digits"], 1, None)[f"KED-MI / {d}"][0].evidence[0].key
              for d in ("No Def.", "MID", "BiDO-COCO", "BiDO-HSIC")}  # fmt: skip
    mine = {rs[0].evidence[0].key for rs in record_stages(TABLE, 1, None).values()}
    assert theirs <= mine


def test_every_defense_has_three_weights_or_more() -> None:
    assert [len(rows) for rows in TABLE.curves.values()] == [1, 4, 4, 4]


USER_TABLE = """
from dataclasses import replace
from mibench.benchmarks.tables import TABLES

rows = ("GMI / No Def.", "GMI / BiDO-HSIC", "GMI / BiDO-COCO")
TABLE = replace(
    TABLES["smoke"].only(rows), name="mine", curves={"none": rows[:1], "BiDO": rows[1:]}
)
"""


def test_running_a_table_with_curves_prints_and_writes_the_comparison(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_TABLE)
    small = [
        f"{path}=1"
        for path in ("recipe.epochs", "attack.steps", "attack.prior.epochs",
                     "setting.evaluators.0.recipe.epochs")
    ]  # fmt: skip
    options = ["--executor", "serial", "--store", str(tmp_path / "s"), "--out", str(tmp_path)]
    settings = [x for value in small for x in ("--set", value)]
    done = CliRunner().invoke(main, ["run", str(tmp_path / "mine.py"), *settings, *options])
    assert done.exit_code == 0, done.output
    assert "Attack Acc at equal Accuracy, %:" in done.stdout
    assert "none 1, BiDO 2" in done.stdout
    for suffix in ("csv", "png", "pdf"):
        path = tmp_path / f"mine-modified-curves.{suffix}"
        assert path.stat().st_size > 0
        assert str(path) in done.stdout
