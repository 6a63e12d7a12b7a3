"""A stage that fails says where, leaves the rest alone, and the table says why it has a hole."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from mibench.attacks import GMI
from mibench.cli import main
from mibench.defenses import NoDefense
from mibench.networks import MLP
from mibench.running.executors import Bench, Local, Serial, execute
from mibench.running.executors.base import attempt, explain
from mibench.running.progress import Watcher
from mibench.running.stages import RecordStage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Store, StoreError, Work, remark
from mibench.types import Classifier, predict


@dataclass(frozen=True)
class March(Stage):
    """Five steps, saved after each, with an accident after the third if one is arranged."""

    kind: ClassVar[str] = "march"

    def describe(self) -> str:
        """Returns its name."""
        return "the march"

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns how many steps this attempt took."""
        saved = work.load() or {"done": 0}
        first = done = saved["done"]
        while done < 5:
            if done == 3:
                accident(work.data)
            done += 1
            work.save(lambda done=done: {"done": done})  # type: ignore[misc]
            work.progress(done, 5)
        return {"taken": 5 - first}


@dataclass(frozen=True)
class After(Stage):
    """Needs the march."""

    kind: ClassVar[str] = "after"

    march: March

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns what it read."""
        return load(self.march)


def accident(data: Path) -> None:
    path = data / "accident"
    kinds: dict[str, BaseException] = {
        "nan": FloatingPointError("the loss in epoch 4 is not finite"),
        "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "interrupt": KeyboardInterrupt(),
        "exit": SystemExit(0),
    }
    if path.exists() and path.read_text() == "requeue":
        exec(compile("raise SystemExit(-1)", "site-packages/submitit/core.py", "exec"))
    if path.exists():
        raise kinds[path.read_text()]


@dataclass(frozen=True)
class Careless(Stage):
    """Leaves torch changed, or returns what cannot be stored."""

    kind: ClassVar[str] = "careless"

    how: str

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns a number."""
        if self.how == "dtype":
            torch.set_default_dtype(torch.float64)
        if self.how == "grad":
            torch.set_grad_enabled(False)
        if self.how == "threads":
            torch.set_num_threads(torch.get_num_threads() + 1)
        kept: Any = {"sparse": torch.eye(2).to_sparse(), "object": object()}
        return {"kept": kept.get(self.how, 1)}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nan", "the loss in epoch 4 is not finite"),
        ("memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        ("exit", "SystemExit: 0"),
    ],
)
def test_a_failed_stage_tells_its_step_and_its_last_good_state(
    kind: str, told: str, tmp_path: Path, data: Path
) -> None:
    (data / "accident").write_text(kind)
    store = Store(tmp_path / "store")
    outcome = execute([March(), After(March())], Bench(store.root, data), Watcher(), Serial())
    where = "it stopped after 3 of 5; its last good state, of 3, is kept"
    assert list(outcome.failures) == [March().key]
    assert outcome.failures[March().key].startswith(f"{told}; {where}")
    assert outcome.skipped == [After(March())]
    noted = store.failure(March())
    assert noted is not None
    assert told in noted
    assert where in noted
    (data / "accident").unlink()
    again = execute([March(), After(March())], Bench(store.root, data), Watcher(), Serial())
    assert again.computed == 2
    assert store.load(March()) == {"taken": 2}
    assert store.failure(March()) is None
    assert [p.name for p in (store.root / "march").iterdir()] == [March().key]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("dtype", "it calls torch.set_default_dtype(torch.float64) and does not set that back"),
        ("grad", "it calls torch.set_grad_enabled(False) and does not set that back"),
        ("threads", "it calls torch.set_num_threads("),
        ("sparse", "what it returned cannot be stored: dense tensors, numbers and texts can"),
        ("object", "what it returned cannot be stored: dense tensors, numbers and texts can"),
    ],
)
def test_a_stage_that_leaves_torch_changed_or_cannot_be_stored_fails_and_harms_no_other(
    how: str, told: str, tmp_path: Path
) -> None:
    store, threads = Store(tmp_path), torch.get_num_threads()
    stages = [Careless(how), Careless("not")]
    outcome = execute(stages, Bench(store.root, tmp_path), Watcher(), Serial())
    assert list(outcome.failures) == [stages[0].key]
    assert told in outcome.failures[stages[0].key]
    assert told in (store.failure(stages[0]) or "")
    assert store.state(stages[1]) == "done"
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


def test_an_interrupt_tells_the_stage_and_keeps_its_state(tmp_path: Path, data: Path) -> None:
    (data / "accident").write_text("interrupt")
    store = Store(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt) as caught:
        store.complete(March(), data=data)
    assert caught.value.__notes__ == [
        "the march stopped after 3 of 5; its last good state, of 3, is kept"
    ]
    assert store.failure(March()) is None  # to stop is no failure
    assert not list(store.root.rglob("*.lease"))
    (data / "accident").unlink()
    store.complete(March(), data=data)
    assert store.load(March()) == {"taken": 2}


def test_a_cluster_may_end_the_process_of_a_stage(tmp_path: Path, data: Path) -> None:
    (data / "accident").write_text("requeue")
    with pytest.raises(SystemExit):
        attempt(March(), Bench(tmp_path / "store", data), lambda *_: None)


@pytest.mark.parametrize("note", [b"", b"[]", b"{" * 10**6, b'{"error": ["x"]}'])
def test_a_note_that_was_cut_short_hinders_nothing(note: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note_failure(March(), "why")
    assert store.failure(March()) == "why"
    store.path(March()).with_suffix(".failed").write_bytes(note)
    assert store.failure(March())


# A store that cannot be written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "jobs"),
    [
        (errno.ENOSPC, 1),
        (errno.EIO, 1),
        (errno.EROFS, 1),
        pytest.param(errno.ENOTDIR, 2, marks=pytest.mark.slow),
    ],
)
def test_a_store_that_cannot_be_written_ends_the_run_in_one_sentence(
    code: int, jobs: int, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With processes side by side, a file lies where the folder of the stage's kind should."""
    (tmp_path / "store").mkdir()
    if jobs == 1:

        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
    else:
        (tmp_path / "store" / "march").write_text("")
    march, after = March(), After(March())
    with pytest.raises(StoreError, match=r"cannot write to .*; what is finished is kept"):
        execute(
            [march, after, Rest()], Bench(tmp_path / "store", data, "cpu"), Watcher(), Local(jobs)
        )
    monkeypatch.undo()
    if jobs == 1:
        assert not execute(
            [march, after], Bench(tmp_path / "store", data), Watcher(), Serial()
        ).failures


@dataclass(frozen=True)
class Rest(Stage):
    """Needs nothing."""

    kind: ClassVar[str] = "rest"

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns nothing."""
        return {}


# The command line -----------------------------------------------------------------------------


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


SMALL = ("--set", "recipe.epochs=1", "--set", "attack.prior.epochs=1", "--set", "attack.steps=2")


def test_the_table_and_the_status_say_why_there_is_a_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ("smoke", "--rows", "GMI / No Def.", "--rows", "GMI / MID", *SMALL)
    places = ("--store", str(tmp_path / "store"))
    real = GMI.invert

    def fail(self: GMI, target: Classifier, *rest: Any) -> object:
        if target.noise_dim:  # MID's
            raise FloatingPointError("a latent after step 1 is not finite")
        return real(self, target, *rest)

    monkeypatch.setattr(GMI, "invert", fail)
    run = ("run", *rows, *places, "--out", str(tmp_path / "out"), "--executor", "serial")
    done = call(*run)
    assert done.exit_code == 1
    why = "gmi on mid lambda=0.02 failed: FloatingPointError: a latent after step 1 is not finite"
    assert f"Missing in GMI / MID: {why}" in done.stdout
    assert why in call("table", *rows, *places).stdout
    told = call("status", *rows, *places).stdout.splitlines()
    assert [t for t in told if "the last time" in t] == [t for t in told if why in t]
    assert len([t for t in told if why in t]) == 1
    monkeypatch.undo()
    done = call(*run)
    assert done.exit_code == 0
    assert "Missing" not in done.stdout


def test_an_interrupted_run_says_what_it_was_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NoDefense, "loss_terms", interrupt)
    places = ("--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"))
    rows = ("--rows", "GMI / No Def.", "--executor", "serial", "--quiet")
    done = call("run", "smoke", *rows, *places)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: interrupted; target none mcnn stopped")
    assert f"what has finished is kept in {tmp_path / 'store'}" in done.stderr
    assert "run the same command again" in done.stderr


# Out of memory in evaluation ------------------------------------------------------------------


class Narrow(nn.Module):
    """Runs out of memory beyond some images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.asked: list[int] = []

    def forward(self, z: Tensor) -> Tensor:
        """Returns what it is given."""
        self.asked.append(len(z))
        if len(z) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return z


def narrow(most: int) -> tuple[Classifier, Narrow]:
    with seeded("narrow"):
        network = MLP(width=4).build((1, 4, 4), 3)
    network.neck = Narrow(most)
    return network, network.neck


def test_evaluation_halves_the_batch_until_it_fits_and_loses_no_image(
    rng: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(21, 1, 4, 4, generator=rng)
    network, neck = narrow(3)
    logits, features = predict(network, x, generator("n"), batch=16)
    assert neck.asked[:3] == [16, 8, 4]
    assert neck.asked[3:] == [2] * 10 + [1]
    neck.most = 100
    want = predict(network, x, generator("n"), batch=16)
    torch.testing.assert_close((logits, features), want)
    assert "2 images at a time" in capsys.readouterr().err


def test_an_image_that_does_not_fit_alone_is_an_error(rng: torch.Generator) -> None:
    network, _ = narrow(0)
    with pytest.raises(torch.OutOfMemoryError):
        predict(network, torch.rand(5, 1, 4, 4, generator=rng), generator("n"))


@dataclass(frozen=True)
class Odd(Stage):
    """Remarks on itself."""

    kind: ClassVar[str] = "odd"

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns nothing."""
        remark("Out of memory in evaluation: 2 images at a time, last bits may differ.")
        return {}


@dataclass(frozen=True)
class Then(Stage):
    """Rests on it."""

    kind: ClassVar[str] = "then"

    odd: Odd

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns nothing."""
        return {}


def test_a_remark_is_kept_with_the_stage_and_with_all_that_rest_on_it(
    tmp_path: Path, data: Path
) -> None:
    store = Store(tmp_path / "store")
    for stage in (Odd(), Then(Odd()), March()):
        store.complete(stage, data=data)
    assert store.meta(Odd())["remarks"] == store.meta(Then(Odd()))["remarks"]
    assert "2 images at a time" in store.meta(Then(Odd()))["remarks"][0]
    assert "remarks" not in store.meta(March())


def test_a_table_says_what_its_records_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ("--store", str(tmp_path / "store"))
    rows = ("smoke", "--rows", "GMI / No Def.", *SMALL)
    real = RecordStage.compute

    def compute(self: RecordStage, load: Callable[[Stage], Payload], work: Work) -> Payload:
        remark("Out of memory in evaluation: 2 images at a time, last bits may differ.")
        return real(self, load, work)

    monkeypatch.setattr(RecordStage, "compute", compute)
    done = call("run", *rows, *places, "--out", str(tmp_path / "out"), "--executor", "serial")
    assert done.exit_code == 0
    assert "2 images at a time" in call("table", *rows, *places).stdout


def test_an_error_without_notes_is_one_sentence() -> None:
    assert explain(ValueError("so\nand so")) == "so"
    assert json.dumps(explain(RuntimeError("x"))) == '"RuntimeError: x"'


@pytest.mark.parametrize(("command", "status"), [("run", 2), ("status", 1), ("table", 2)])
def test_a_store_that_cannot_be_read_is_told_in_one_sentence(
    command: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store" / "classifier").mkdir(parents=True)
    real = os.scandir

    def fail(path: Path) -> object:
        if str(path).endswith("classifier"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(os, "scandir", fail)
    done = CliRunner().invoke(main, [command, "smoke", "--store", str(tmp_path / "store")])
    assert done.exit_code == status
    assert len(done.stderr.splitlines()) == 1
    assert "Error: cannot read" in done.stderr
    assert "what is finished is kept" in done.stderr
