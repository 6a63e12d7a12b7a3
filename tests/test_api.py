"""mibench from Python: tables filled and read, networks taken, images judged."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mibench
from mibench.benchmarks.tables import TABLES, Table
from mibench.reporting import records
from mibench.reporting.results import Results
from mibench.running.executors import Bench, Serial
from mibench.running.grid import Grid
from mibench.store import Store
from tests.made import fill, smoke

ROW = "GMI / MID"
SHORT = ["attack.steps=2", "attack.prior.epochs=1", "recipe.epochs=1"]
TABLE = TABLES["smoke"].only([ROW, "GMI / No Def."]).modified(SHORT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def results(place: Path) -> Results:
    return mibench.run(TABLE, store=place / "store", data=place)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of made-up stages of three seeds of one row and one of another, and records."""
    root = tmp_path_factory.mktemp("made")
    store = Store(root / "store")
    fill(smoke(ROW), store, seeds=3, data=Path())
    table = smoke(ROW, "GMI / No Def.")
    fill(smoke("GMI / No Def."), store, data=Path())
    records.write(Grid.plan(table, 3, Path(), store), root / "records")
    return root


def test_a_frame_has_a_line_for_every_seed_and_metric(made: Path) -> None:
    frame = mibench.load(smoke(ROW, "GMI / No Def."), store=made / "store", data=made).frame()
    assert list(frame.columns) == ["row", "attack", "defense", "seed", "metric", "value"]
    assert sorted(set(frame["seed"])) == [0, 1, 2]
    counts = frame.groupby("row").size()
    columns = TABLES["smoke"].columns
    assert counts.to_dict() == {ROW: 3 * len(columns), "GMI / No Def.": len(columns)}
    assert set(frame["attack"]) == {"GMI"}
    assert set(frame["defense"]) == {"MID", "No Def."}
    order = list(zip(frame["row"], frame["seed"], strict=True))
    assert order == sorted(order, key=lambda line: (line[0] != ROW, line[1]))


def test_records_give_what_the_table_of_them_says(made: Path) -> None:
    """The means of the frame are the numbers of the CSV."""
    read = mibench.load(made / "records")
    assert read.seeds == 3
    means = read.frame().pivot_table(index="row", columns="metric", values="value", aggfunc="mean")
    summary = read.summary()
    for name in TABLES["smoke"].columns:
        assert np.allclose(means[name], summary.loc[means.index, name], rtol=1e-12)


def test_a_seed_that_is_missing_hides_no_later_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    records = fill(smoke(ROW), store, seeds=5, data=Path())[ROW]
    for seed in (1, 2):
        shutil.rmtree(store.path(records[seed]))
    (store.path(records[4]) / "spec.json").write_text("damaged")
    found = mibench.load(smoke(ROW), store=tmp_path, data=Path())
    assert (found.found, found.seeds) == ({ROW: 2}, 4)
    assert mibench.load(smoke(ROW), seeds=3, store=tmp_path, data=Path()).found == {ROW: 1}


def test_the_tradeoff_is_a_figure_with_a_panel_for_each_attack(made: Path) -> None:
    table = smoke(ROW, "GMI / No Def.", "KED-MI / MID")
    results = mibench.load(table, store=made / "store", data=made)
    figure = results.plot_tradeoff()
    assert [axes.get_title() for axes in figure.axes] == ["GMI"]
    (axes,) = figure.axes
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sorted(names) == ["MID", "No Def."]
    points = {
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
        for line in axes.lines
        if len(line.get_xdata()) == 1
    }
    marks = results.tradeoff().values()
    assert points >= {(round(m.accuracy, 6), round(m.attack_acc, 6)) for m in marks}
    with pytest.raises(ValueError, match="no row has both Accuracy and Attack Acc"):
        replace(results, entries={}).plot_tradeoff()


def test_published_results_give_what_the_published_csv_has() -> None:
    folder = Path(__file__).parents[1] / "results" / "table5-digits"
    csv = pd.read_csv(folder / "table5-digits.csv").set_index("row")
    frame = mibench.load(folder).frame()
    for (row, metric), values in frame.groupby(["row", "metric"])["value"]:
        assert values.mean() == pytest.approx(csv.loc[row, metric], rel=1e-8)
    assert set(frame["row"]) == set(csv.index)


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("smok", {}, "unknown table 'smok'.*smoke.*or a folder of record files"),
        ("smoke", {"seeds": 0}, "seeds must be 1 or more, got 0"),
        ("digits", {}, "nothing of digits is in .*store; fill it with mibench.run"),
    ],
)
def test_what_is_not_there_is_said_in_one_sentence(
    source: str, options: dict[str, Any], sentence: str, made: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        mibench.load(source, store=made / "store", data=made, **options)


def test_a_folder_without_records_or_of_another_table_is_refused(
    made: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="are of no table: say which with table="):
        mibench.load(tmp_path)
    with pytest.raises(ValueError, match="is of a cell of digits"):
        mibench.load(made / "records", table="digits")
    with pytest.raises(ValueError, match="records do not hold them"):
        mibench.load(made / "records").images(ROW)


def test_a_table_is_filled_and_its_images_are_at_hand(results: Results, place: Path) -> None:
    assert results.found == {ROW: 1, "GMI / No Def.": 1}
    images = results.images(ROW)
    trials = TABLE.rows[ROW].trials
    assert images.shape == (trials.samples, trials.classes, 1, 8, 8)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    for seed in (1, -1):
        with pytest.raises(ValueError, match=f"{ROW}, seed {seed}, are not there"):
            results.images(ROW, seed)
    with pytest.raises(ValueError, match="no row 'MID' in smoke"):
        results.images("MID")
    again = mibench.load(TABLE, store=place / "store", data=place)
    pd.testing.assert_frame_equal(again.frame(), results.frame())


def test_cells_are_run_under_their_labels_or_the_names_of_their_parts(
    results: Results, place: Path
) -> None:
    cell = TABLE.rows[ROW]
    one = mibench.run(cell, store=place / "store", data=place)
    assert list(one.entries) == ["gmi / mid"]
    mine = mibench.run({"mine": cell}, store=place / "store", data=place)
    assert mine.entries["mine"]["fid"].mean == results.entries[ROW]["fid"].mean


def test_a_stage_that_fails_is_a_sentence(place: Path) -> None:
    broken = TABLE.only([ROW]).modified(["recipe.lr=1e30"])
    with pytest.raises(RuntimeError, match=r"target mid.*other stages needed what failed"):
        mibench.run(broken, store=place / "broken", data=place)


def test_targets_and_evaluators_come_trained(results: Results, place: Path) -> None:
    at: dict[str, Any] = {"store": place / "store", "data": place, "device": "cpu"}
    grid = results.grid
    assert grid is not None
    mid = mibench.target(TABLE, "MID", **at)
    judge = mibench.evaluator(TABLE, **at)
    stage = grid.records[ROW][0].evidence[0]
    weights = Store(place / "store").load(stage.inversion.target)["state"]
    for name, value in mid.state_dict().items():
        assert torch.equal(value, weights[name])
    assert judge.num_classes == TABLE.rows[ROW].setting.task.load(place).evaluation.num_classes
    assert not mid.training
    assert not any(p.requires_grad for p in mid.parameters())
    with pytest.raises(ValueError, match="unknown defense 'MIDD'"):
        mibench.target(TABLE, "MIDD", **at)
    with pytest.raises(ValueError, match="has 1 evaluators, from 0 on: no 1"):
        mibench.evaluator(TABLE, number=1, **at)
    longer = replace(TABLE.rows[ROW], recipe=replace(TABLE.rows[ROW].recipe, epochs=2))
    two = Table("two", "Two.", {ROW: TABLE.rows[ROW], "KED-MI / MID": longer})
    with pytest.raises(
        ValueError, match="2 targets called 'MID': name a row, such as 'GMI / MID'"
    ):
        mibench.target(two, "MID", **at)


def test_a_target_that_is_not_there_is_trained(place: Path, tmp_path: Path) -> None:
    mibench.target(TABLE, "No Def.", seed=1, store=tmp_path, data=place)
    done = [path.parent.parent.name for path in tmp_path.glob("*/*/meta.json")]
    assert sorted(done) == ["classifier", "images"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_tables_own_images_get_its_own_numbers(
    shuffled: bool, results: Results, place: Path
) -> None:
    images = results.images(ROW)
    x, y = images.flatten(0, 1), torch.arange(images.shape[1]).repeat(images.shape[0])
    if shuffled:  # the images of each class stay in order
        index = y.argsort(stable=True)
        x, y = x[index], y[index].to(torch.uint64)
    scores = mibench.score(x.numpy(), y.numpy(), TABLE, ROW, store=place / "store", data=place)
    assert list(scores) == list(TABLE.columns)
    own = results.entries[ROW]
    assert {k: v.mean for k, v in scores.items()} == {k: v.mean for k, v in own.items()}
    assert scores["attack_acc"].std == own["attack_acc"].std


def test_what_only_the_rows_attack_needs_is_not_trained(
    results: Results, place: Path, tmp_path: Path
) -> None:
    """Its prior, and students that its identity loss asks."""
    table = TABLE.only([ROW]).modified(["attack.identity=augmented"])
    images = results.images(ROW)
    labels = torch.arange(images.shape[1]).repeat(images.shape[0])
    mibench.score(images.flatten(0, 1), labels, table, ROW, store=tmp_path, data=place)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "classifier"}


@pytest.mark.parametrize(
    ("shape", "labels", "value", "sentence"),
    [
        ((4, 1, 8, 9), [0, 0, 1, 1], 0.5, "must be of shape \\(n, 1, 8, 8\\)"),
        ((4, 1, 8, 8), [0, 0, 1], 0.5, "and labels \\(n,\\), got"),
        ((4, 1, 8, 8), [0, 0, 1, 1], 1.5, "floats in \\[0, 1\\], or bytes"),
        ((4, 1, 8, 8), [0, 0, 0, 1], 0.5, "each equally often: {0: 3, 1: 1}"),
        ((4, 1, 8, 8), [1, 1, 2, 2], 0.5, "must name classes 0 to k - 1"),
        ((6, 1, 8, 8), [0, 1, 2, 3, 4, 5], 0.5, "6 classes are attacked, and the task has 5"),
    ],
)
def test_images_that_do_not_fit_are_refused(
    shape: tuple[int, ...], labels: list[int], value: float, sentence: str, place: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        mibench.score(np.full(shape, value), labels, TABLE, ROW, store=place, data=place)
    with pytest.raises(ValueError, match="no row 'MID' in smoke"):
        mibench.score(np.full(shape, value), labels, TABLE, "MID", store=place, data=place)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_cluster_is_told_whether_a_table_is_meant_for_a_gpu(
    heavy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cluster(Serial):
        def check(self, bench: Bench) -> Bench:
            assert bench.heavy == heavy
            raise InterruptedError

    monkeypatch.setattr("mibench.api.choose_executor", lambda _: Cluster())
    with pytest.raises(InterruptedError):
        mibench.run(replace(TABLES["smoke"], heavy=heavy), store=tmp_path, executor="slurm[2]")
