"""A run that is killed and started again ends with the same bits; what is done stays done."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mibench.benchmarks.tables import TABLES
from mibench.running.checks.base import StoppedError
from mibench.running.executors import Bench, Local, Outcome, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import RecordStage, graph, record_stage
from mibench.store import Payload, Stage, Store, Work

ROWS = ("GMI / BiDO-HSIC", "KED-MI / MID")
COLUMNS = ("accuracy", "attack_acc", "fid")


def record(row: str) -> RecordStage:
    settings = ["attack.prior.epochs=2", "attack.steps=6", "recipe.epochs=2"]
    cell = TABLES["smoke"].only([row]).modified(settings).rows[row]
    return record_stage(cell, COLUMNS, cell.setting.task.digest(Path()))


def run(last: Stage, root: Path, jobs: int = 1) -> Outcome:
    return execute(graph([last]), Bench(root, Path()), Watcher(), Local(jobs))


def bits(root: Path) -> dict[str, bytes]:
    names = ("payload.safetensors", "payload.json", "spec.json")
    return {
        str(p.relative_to(root)): p.read_bytes() for p in root.glob("*/*/*") if p.name in names
    }


def kill_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    real = Work.save
    left = iter(range(saves, -1, -1))

    def save(self: Work, state: Callable[[], Payload]) -> None:
        self._every = 0.0
        real(self, state)
        if next(left, 1) == 0:
            raise StoppedError

    monkeypatch.setattr(Work, "save", save)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What an uninterrupted run of each row leaves."""
    found = {}
    for row in ROWS:
        root = tmp_path_factory.mktemp("whole")
        run(record(row), root)
        found[row] = bits(root)
    return found


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("saves", [0, 1, 4, 7, 11])
def test_interrupted_and_resumed_equals_uninterrupted(
    row: str,
    saves: int,
    whole: dict[str, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        kill_after(patch, saves)
        with pytest.raises(StoppedError):
            run(record(row), tmp_path / "broken")
    resumed = run(record(row), tmp_path / "broken")
    assert not resumed.failures
    assert bits(tmp_path / "broken") == whole[row]


def test_a_finished_cell_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = record("GMI / No Def.")
    first = run(last, tmp_path)
    assert first.computed == len(graph([last]))
    for stage in graph([last]):
        monkeypatch.setattr(type(stage), "compute", None)
    again = run(last, tmp_path)
    assert (again.computed, again.cached) == (0, first.computed)


def test_side_by_side_gives_the_same_bits_as_one_after_the_other(
    whole: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    outcome = run(record(ROWS[1]), tmp_path, jobs=2)
    assert not outcome.failures
    assert bits(tmp_path) == whole[ROWS[1]]


def test_a_failed_stage_takes_only_its_dependants_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = record("GMI / No Def."), record("KED-MI / No Def.")
    prior = bad.evidence[0].inversion.prior

    def fail(*_: object) -> None:
        raise FloatingPointError("a loss in epoch 1 is not finite")

    monkeypatch.setattr(type(prior.spec), "train", fail)
    outcome = execute(graph([good, bad]), Bench(tmp_path, Path()), Watcher(), Serial())
    assert list(outcome.failures) == [prior.key]
    assert "not finite" in outcome.failures[prior.key]
    assert {s.kind for s in outcome.skipped} == {"inversion", "evidence", "record"}
    store = Store(tmp_path)
    assert store.state(good) == "done"
    assert store.state(bad) == "missing"
    monkeypatch.undo()
    assert not run(bad, tmp_path).failures


def test_records_do_not_depend_on_what_else_is_in_the_table(tmp_path: Path) -> None:
    last = record("GMI / No Def.")
    run(last, tmp_path / "alone")
    both = [record("GMI / MID"), last]
    execute(graph(both), Bench(tmp_path / "both", Path()), Watcher(), Serial())
    assert bits(tmp_path / "alone").items() <= bits(tmp_path / "both").items()


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 4.5, 6.0, 8.0])
def test_a_run_killed_with_sigkill_and_started_again_gives_the_same_csv(
    seconds: float, tmp_path: Path
) -> None:
    def command(name: str) -> list[str]:
        folders = ["--store", str(tmp_path / name), "--out", str(tmp_path / f"{name}-out")]
        rows = ["--rows", "*GMI*", "--executor", "local[2]", "--quiet"]
        return [sys.executable, "-m", "mibench.cli", "run", "smoke", *rows, *folders]

    subprocess.run(command("whole"), check=True, capture_output=True)
    process = subprocess.Popen(command("broken"), start_new_session=True)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command("broken"), check=True, capture_output=True, timeout=120)
    csv = [
        (tmp_path / f"{n}-out" / "smoke-modified.csv").read_bytes() for n in ("whole", "broken")
    ]
    assert csv[0] == csv[1]


def test_images_are_stored_in_unit_range(tmp_path: Path) -> None:
    last = record("GMI / No Def.")
    run(last, tmp_path)
    inversion = last.evidence[0].inversion
    images = load_file(Store(tmp_path).path(inversion) / "payload.safetensors")["images"]
    assert images.dtype == torch.float16
    assert 0 <= images.min() <= images.max() <= 1
