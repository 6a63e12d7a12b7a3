"""Query curves: moments by answers spent, which change nothing of the attack."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from mibench.attacks import (
    BREPMI,
    GMI,
    KEDMI,
    PLGMI,
    PPA,
    RLBMI,
    Goal,
    MIFace,
    Mirror,
    MirrorBlackBox,
    rounds,
)
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.reporting import queries
from mibench.running.checks.base import CheckedWork, StoppedError, tiny
from mibench.running.checks.base import target as checks_target
from mibench.running.checks.stages import inversion_stage, load
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import record_stages
from mibench.running.progress import Watcher
from mibench.running.stages import graph
from mibench.running.stages.curve import CurveInversion, curve_stage
from mibench.seeding import generator, seeded
from mibench.spec import field_values
from mibench.store import Payload, Store, Work

SHAPE = (1, 2, 2)
SMALL = [
    "attack.steps=4", "attack.prior.epochs=1", "recipe.epochs=1",
    "setting.evaluators.0.recipe.epochs=1",
]  # fmt: skip
QUICK = TABLES["smoke"].only(["KED-MI / No Def.", "GMI / No Def."]).modified(SMALL)
SHOWING = (GMI, KEDMI, PLGMI, PPA, Mirror, MIFace, BREPMI, RLBMI, MirrorBlackBox)


def attack(cls: Any) -> Any:
    made = tiny(cls)
    return replace(made, prior=tiny(type(made.prior)))


def both(cls: Any, marks: tuple[int, ...]) -> tuple[Payload, Payload]:
    """Returns an attack's inversion, and the same with moments."""
    plain = inversion_stage(attack(cls), checks_target())
    curve = CurveInversion(**field_values(plain), marks=marks)
    return plain.compute(load, Work()), curve.compute(load, Work())


@pytest.mark.parametrize("cls", SHOWING, ids=lambda cls: cls.name)
def test_moments_change_nothing_of_an_attack(cls: Any) -> None:
    plain, curve = both(cls, (1, 5, 10, 20, 40, 80, 160))
    moments = curve.pop("moments")
    assert plain.keys() == curve.keys()
    for name in ("images", "latents"):
        assert torch.equal(plain[name], curve[name])
    assert plain["budget"] == curve["budget"]
    asked = [m["asked"] for m in moments]
    assert moments
    assert asked == sorted(set(asked))
    for moment in moments:
        assert moment["images"].shape == plain["images"].shape
        assert moment["asked"] <= plain["budget"]["queries"]
        assert moment["images"].min() >= 0
        assert moment["images"].max() <= 1
    if asked[-1] == plain["budget"]["queries"] and cls is not PPA:
        assert torch.equal(moments[-1]["images"], plain["images"])


# Loops ----------------------------------------------------------------------------------------


def two_loops(work: Work, marks: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """Returns the moments of two loops of 5 answers a round, with 7 in between."""
    goal = Goal([torch.arange(2)], 1, [generator(0)], SHAPE, marks=marks)
    for length in (3, 4):
        state: dict[str, Any] = {"x": torch.zeros(1)}

        def advance(_: int, state: Any = state) -> Tensor:
            work.queries += 5
            noise = goal.noise(1)[0, :1]
            value: Tensor = state["x"].add_(1 + 0 * noise)
            return value

        def show(state: Any = state) -> Tensor:
            goal.noise(3)
            torch.rand(3)
            x: Tensor = state["x"] / 10
            return x.expand(1, 2, *SHAPE)

        rounds(state, advance, length, goal, work, show=show)
        work.queries += 7
    return [(m["passed"], m["asked"], float(m["images"].mean())) for m in goal.moments]


def test_a_moment_is_the_first_at_which_so_many_answers_were_spent() -> None:
    # Of 2 classes: after 5, 10, 15 answers, then after 27, 32, 37, 42.
    got = two_loops(Work(), (1, 2, 5, 8, 14, 100))
    assert [m[:2] for m in got] == [(2, 5), (3, 10), (4, 27), (5, 32)]
    assert [round(m[2], 2) for m in got] == [0.1, 0.2, 0.1, 0.2]
    assert [m[:2] for m in two_loops(Work(), (1, 2, 5, 14))] == [(2, 5), (3, 10), (4, 32)]
    assert two_loops(Work(), ()) == []


@pytest.mark.parametrize("saves", range(1, 8))
def test_moments_survive_an_interruption(saves: int, tmp_path: Path) -> None:
    marks = (1, 4, 5, 8, 14, 20)
    whole = two_loops(Work(), marks)
    with pytest.raises(StoppedError):
        two_loops(CheckedWork(tmp_path, saves), marks)
    assert two_loops(Work(tmp_path), marks) == whole


def test_what_is_shown_moves_no_stream() -> None:
    def draws(marks: tuple[int, ...]) -> tuple[float, float]:
        work, goal = Work(), Goal([torch.arange(2)], 1, [generator(0)], SHAPE, marks=marks)

        def advance(_: int) -> None:
            work.queries += 5

        def show() -> Tensor:
            return goal.noise(1, *SHAPE) + torch.rand(1)

        with seeded("shown"):
            rounds({}, advance, 3, goal, work, show=show)
            assert len(goal.moments) == len(marks)
            return float(goal.noise(1).sum()), float(torch.rand(1))

    assert draws(()) == draws((1, 5))


# From a store to a figure ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("curves")
    records = [r for rs in record_stages(QUICK, 1, Path()).values() for r in rs]
    stages = graph([*records, *map(curve_stage, records)])
    assert not execute(stages, Bench(root, Path()), Watcher(), Serial()).failures
    return Store(root)


def test_a_curve_ends_at_the_table_s_number_and_shared_answers_are_divided(store: Store) -> None:
    for label, (record,) in record_stages(QUICK, 1, Path()).items():
        payload = store.load(record)
        points = [p for p in queries.points({label: [record]}, store) if p.row == label]
        assert points[-1].mark == 0
        assert points[-1].attack_acc == pytest.approx(payload["scores"]["attack_acc"]["mean"])
        budget = payload["budget"]
        assert points[-1].answers == (budget["queries"] + budget["prior_queries"]) / 5
        assert points[-1].shared == budget["prior_queries"] / 5
        shown = [p.answers - p.shared for p in points]
        assert shown == ([1, 2, 4] if label.startswith("KED") else [10, 20, 40])


def test_keys_of_records_do_not_know_of_curves(store: Store) -> None:
    (record,) = record_stages(QUICK, 1, Path())["GMI / No Def."]
    curve = curve_stage(record)
    assert curve.inversion.key != record.evidence[0].inversion.key
    assert "marks" not in record.evidence[0].inversion.identity
    assert curve.key not in {s.key for s in graph([record])}


def figure(*arguments: str) -> Any:
    settings = [word for s in SMALL for word in ("--set", s)]
    rows = [word for label in QUICK.rows for word in ("--rows", label)]
    return CliRunner().invoke(main, [*arguments, *rows, *settings])


def test_the_figure_and_its_csv_come_from_the_store(store: Store, tmp_path: Path) -> None:
    done = figure("figure", "queries", "smoke", "--store", str(store.root), "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    names = [Path(line).name for line in done.stdout.split()]
    assert names == [f"smoke-queries-figure.{end}" for end in ("pdf", "png", "csv")]
    head, *lines = (tmp_path / names[2]).read_text().splitlines()
    assert head == "row,seed,mark,answers,shared,attack_acc"
    assert len(lines) == 6
    assert (tmp_path / names[1]).read_bytes()[:4] == b"\x89PNG"


def test_run_prints_the_curves_and_computes_nothing_twice(store: Store, tmp_path: Path) -> None:
    done = figure(
        "run", "smoke", "--until", "queries", "--store", str(store.root), "--executor", "serial",
        "--quiet", "-o", str(tmp_path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "nothing computed" in done.output
    assert "divided among the attacked classes" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {
        "smoke-modified-queries.csv", "smoke-modified-queries.png",
    }  # fmt: skip


def test_without_curves_the_command_that_computes_them_is_named(tmp_path: Path) -> None:
    done = figure("figure", "queries", "smoke", "--store", str(tmp_path / "empty"))
    assert done.exit_code == 2
    assert "no row has a query curve in the store; compute them with: mibench run" in done.output
    assert "--until queries" in done.output


def test_rows_that_ask_nothing_have_no_picture_and_none_is_named(tmp_path: Path) -> None:
    points = [queries.Point("A / B", 0, 0, 0.0, 0.0, 20.0)]
    paths = [tmp_path / f"curve.{end}" for end in ("pdf", "png", "csv")]
    assert queries.write(points, paths, "") == paths[2:] == list(tmp_path.iterdir())


def test_seeds_are_averaged_mark_by_mark() -> None:
    points = [
        queries.Point("A / B", seed, mark, answers, 1.0, acc)
        for seed, mark, answers, acc in (
            (0, 10, 11.0, 20.0), (0, 0, 41.0, 60.0), (1, 10, 13.0, 40.0), (1, 0, 41.0, 80.0),
            (2, 10, 12.0, 30.0), (2, 0, 41.0, 70.0),
        )
    ]  # fmt: skip
    (line,) = queries.means(points).values()
    assert [(x, y.mean) for x, y in line] == [(12.0, 30.0), (41.0, 70.0)]
    assert all(y.half is not None and y.half > 0 for _, y in line)


def test_each_mark_has_all_seeds_those_that_ended_before_at_their_end() -> None:
    points = [
        queries.Point("A / B", seed, mark, answers, 0.0, acc)
        for seed, mark, answers, acc in (
            (0, 10, 10.0, 20.0), (0, 0, 25.0, 40.0),
            (1, 20, 21.0, 80.0), (1, 50, 51.0, 84.0), (1, 0, 60.0, 90.0),
        )
    ]  # fmt: skip
    (line,) = queries.means(points).values()
    assert [(x, y.mean) for x, y in line] == [(15.5, 50), (23, 60), (38, 62), (42.5, 65)]
    assert {y.n for _, y in line} == {2}
    told = queries.text([*points, queries.Point("C / D", 0, 0, 5.0, 0.0, 9.0)])
    assert "A / B (2 seeds)  16: 50.00" in told
    assert "C / D (1 seed)   5: 9.00" in told


def test_answers_are_plain_numbers_and_no_two_rows_look_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(queries, "save", lambda figure, *_: drawn.append(figure))
    points = [
        queries.Point(f"row {i}", 0, mark, float(mark), 0.0, 50.0)
        for i in range(20)
        for mark in (10, 2000)
    ]
    assert queries.draw(points, tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    drawn[0].canvas.draw()
    told = {text.get_text() for text in axes.get_xticklabels()}
    assert {"10", "100", "1,000"} <= told
    assert not any(text.get_text() for text in axes.get_xticklabels(minor=True))
    looks = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_label()}
    assert len({look for look in looks if look[1] not in ("None", "")}) == 20
