"""Times of a table are taken from a few steps of each kind of stage, without data or weights."""

import itertools
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mibench.attacks import BREPMI
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import CelebA, Sizes
from mibench.networks.classifiers import vgg
from mibench.running import calibrate
from mibench.running.calibrate import EnoughError, StandIn, Stopwatch
from mibench.running.executors import Bench
from mibench.running.grid import record_stages
from mibench.running.plan import estimate, shape, stored
from mibench.running.stages import InversionStage, RecordStage, graph
from mibench.store import Stage

ROW = "GMI / MID"


def record(table: str = "smoke", row: str = ROW, *settings: str) -> RecordStage:
    chosen = TABLES[table].only([row]).modified(settings)
    return record_stages(chosen, 1, None)[row][0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "store", tmp_path, "cpu", 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next looks at the clock show; empty, it goes on by a second a look."""
    times: list[float] = []
    seconds = itertools.count()
    monkeypatch.setattr(
        "mibench.running.calibrate.time.perf_counter",
        lambda: times.pop(0) if times else float(next(seconds)),
    )
    return times


def test_a_dry_run_prints_time_memory_and_disk_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "smoke", "--rows", ROW, "--dry-run", "--calibrate", "--executor", "serial"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    for kind in ("classifier", "prior", "inversion", "evidence"):
        (line,) = [line for line in lines if line.startswith(f"time of {kind}: ")]
        assert "unknown" not in line
    assert any(line.startswith("time: at least ") for line in lines)
    assert any(line.startswith("calibrated: 5 kinds of stage in ") for line in lines)
    assert "not timed: record (it takes seconds to minutes)" in lines
    assert any(line.startswith("memory: ") and "GB of the machine's" in line for line in lines)
    assert any(line.startswith("disk: ") and "GB are free" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["--calibrate", "--calibrate --dry-run --precision auto"])
def test_calibration_is_of_a_plan_at_one_precision(words: str) -> None:
    done = CliRunner().invoke(main, ["run", "smoke", *words.split()])
    assert done.exit_code == 2
    assert "--calibrate goes with --dry-run" in done.stderr


def test_the_first_step_is_no_part_of_the_time_of_a_step(clock: list[float]) -> None:
    clock += [0.0, 10.0, 12.0, 14.0]
    watch = Stopwatch("cpu", Path())
    for _ in range(3):
        watch.save(dict)
    assert watch.read() == (2.0, 8.0)


def test_a_stage_ends_once_enough_is_timed(clock: list[float]) -> None:
    watch = Stopwatch("cpu", Path())
    for _ in range(calibrate.STEPS):
        watch.save(dict)
    with pytest.raises(EnoughError):
        watch.save(dict)


def test_slow_steps_are_few(clock: list[float]) -> None:
    clock += [0.0, 100.0, 200.0]
    watch = Stopwatch("cpu", Path())
    watch.save(dict)
    with pytest.raises(EnoughError):
        watch.save(dict)
    assert watch.read() == (100.0, 0.0)


def test_progress_counts_as_its_share_of_the_steps(clock: list[float]) -> None:
    clock += [0.0, 3.0, 5.0]
    watch = Stopwatch("cpu", Path(), steps=40)
    watch.save(dict)  # not counted
    watch.progress(1, 10)
    watch.progress(2, 10)
    assert watch.read() == (0.5, 1.0)
    with pytest.raises(EnoughError):
        watch.progress(1, 20)  # another part of the stage


def test_of_slow_training_one_epoch_is_timed(clock: list[float]) -> None:
    clock += [0.0, 50.0]
    watch = Stopwatch("cpu", Path(), steps=40)
    with pytest.raises(EnoughError):
        watch.progress(1, 10)
    assert watch.read() == (12.5, 0.0)


def test_without_steps_all_the_time_counts(clock: list[float]) -> None:
    clock += [0.0, 7.0]
    assert Stopwatch("cpu", Path()).read() == (0.0, 7.0)


def test_an_attack_is_timed_on_some_classes_and_counts_for_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("smoke", ROW, "trials.classes=5", "trials.block=2").evidence[0].inversion
    monkeypatch.setattr(calibrate, "_timed", lambda *_: (2.0, 1.0))
    steps = run.attack.planned_steps(1, run.samples)
    assert steps
    assert calibrate._inversion(run, bench) == pytest.approx((2.0 * steps + 1.0) * 5 / 2)


def test_weights_of_others_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(vgg, "imagenet", refuse)
    target = record("table2", "KED-MI / MID (a)").evidence[0].inversion.target.trained
    with torch.device("meta"):
        assert StandIn(4, 2)(target)["num_classes"] == 1000


def test_what_cannot_be_timed_is_named_and_stays_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stage: Stage, *_: object) -> float:
        if isinstance(stage, InversionStage):
            raise RuntimeError("out of memory")
        return 3.0

    monkeypatch.setattr(calibrate, "_seconds", fail)
    last = record()
    stages = graph([last])
    steps: dict[str, int | None] = {s.key: 10 for s in stages}
    task = last.cell.setting.task
    told: list[str] = []
    made = calibrate.calibrate(stages, steps, {task: Sizes(8, 8, 8)}, bench, {}, told.append)
    assert made.unmeasured["inversion"].startswith("RuntimeError: out of memory")
    run = last.evidence[0].inversion
    assert estimate(run, 10, made.taken) is None
    assert estimate(run.target, 20, made.taken) == pytest.approx(6.0)
    assert len(told) == len(made.taken) == 4
    again = calibrate.calibrate(
        stages, steps, {task: None}, bench, {shape(s): [(1, 1.0)] for s in stages}, told.append
    )
    assert (again.taken, again.unmeasured, len(told)) == ({}, {}, 4)


def test_steps_that_nobody_knows_are_not_timed(bench: Bench) -> None:
    run = record().evidence[0].inversion
    asking = InversionStage(run.target, run.prior, BREPMI(run.prior.spec), 2, 1, 2, 0, 0)
    with pytest.raises(calibrate.UnmeasuredError, match="not known beforehand"):
        calibrate._seconds(asking, None, {}, bench)


def test_the_room_on_the_disk_is_that_of_images_weights_and_reconstructions(bench: Bench) -> None:
    stages = graph([record()])
    sizes = Sizes(100, 200, 300)
    images, run = stages[0], record().evidence[0].inversion
    assert stored(images, sizes) == 600 * 8 * 8
    assert stored(run, None) == 2 * run.samples * run.classes * 8 * 8
    (line,) = [
        line
        for line in calibrate.lines(
            calibrate.Calibration(), stages, {run.target.images.task: sizes}, bench
        )
        if line.startswith("disk: ")
    ]
    room = sum(stored(s, sizes) or 0 for s in stages)
    assert line.startswith(f"disk: {room / 1e9:.2f} GB in {bench.store}, where ")
    (line,) = calibrate.lines(calibrate.Calibration(), stages, {run.target.images.task: None},
                              bench)[1:]  # fmt: skip
    assert line.startswith("disk: at least ")


def test_the_official_size_of_celeba_is_known_without_its_files() -> None:
    assert CelebA.official.private == 27_018
