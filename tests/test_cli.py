"""The command line, through click's runner and as a real process."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mibench.cli import main
from mibench.commands.describe import KINDS
from mibench.store.lease import lease

ROOT = Path(__file__).parent.parent
SMALL = [
    "--rows", "*GMI / No Def.", "--rows", "GMI / MID", "--set", "attack.steps=3",
    "--set", "attack.prior.epochs=1", "--set", "recipe.epochs=1",
    "--set", "setting.evaluators.0.recipe.epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def places(folder: Path) -> list[str]:
    return ["--store", str(folder / "store"), "--out", str(folder / "out")]


def smoke(folder: Path, *more: str) -> Result:
    return call("run", "smoke", *SMALL, *places(folder), "--executor", "serial", *more)


def test_run_prints_the_table_and_its_files_and_again_computes_nothing(folder: Path) -> None:
    first = smoke(folder)
    assert first.exit_code == 0, first.output
    assert "GMI / No Def." in first.stdout
    assert "stages computed" in first.stderr
    for suffix in (".csv", ".tex", ".md", ".png", "-tradeoff.png"):
        path = folder / "out" / f"smoke-modified{suffix}"
        assert path.stat().st_size > 0
        assert str(path) in first.stdout
    csv = (folder / "out" / "smoke-modified.csv").read_bytes()
    drawn = (folder / "out" / "smoke-modified.png").stat().st_mtime_ns
    again = smoke(folder)
    assert "nothing computed: 0 stages computed" in again.stderr
    assert again.stdout == first.stdout
    assert (folder / "out" / "smoke-modified.csv").read_bytes() == csv
    assert (folder / "out" / "smoke-modified.png").stat().st_mtime_ns == drawn


def test_run_does_not_name_a_figure_of_an_earlier_run(folder: Path) -> None:
    old = folder / "out" / "smoke-modified-samples.png"
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"of another run")
    assert str(old) not in smoke(folder).stdout
    assert old.read_bytes() == b"of another run"


def test_a_modified_table_says_so(folder: Path) -> None:
    smoke(folder)
    assert "modified: attack.steps=3" in (folder / "out" / "smoke-modified.md").read_text()


@pytest.mark.parametrize("form", ["text", "csv", "latex", "markdown"])
def test_table_prints_from_the_store_alone(folder: Path, form: str) -> None:
    smoke(folder)
    store = ["--store", str(folder / "store")]
    done = call("table", "smoke", *SMALL, *store, "--format", form)
    assert done.exit_code == 0
    assert "--" not in done.stdout.replace(":--", "").replace("--:", "")
    empty = call("table", "smoke", "--store", str(folder / "nothing"), "--format", form)
    assert empty.exit_code == 2
    assert not (folder / "nothing").exists()
    assert "nothing of smoke is there: no store at" in empty.stderr


def test_a_report_of_nothing_names_the_command_that_fills_it(tmp_path: Path) -> None:
    (store := tmp_path / "store").mkdir()
    done = call("report", "smoke", "--store", str(store), "-o", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert f"fill it with: mibench run smoke --store {store}" in done.stderr


def test_a_table_of_which_nothing_is_scored_names_the_command_that_fills_it(folder: Path) -> None:
    smoke(folder)
    store = ["--store", str(folder / "store")]
    assert "fill it" not in call("table", "smoke", *SMALL, *store).stderr
    told = call("table", "smoke", *SMALL, "--protocol", "ppa", *store).stderr
    assert len(told.splitlines()) == 1
    assert f"Error: nothing of smoke is in {folder / 'store'}; fill it with: mibench run" in told
    words = shlex.split(told.partition("fill it with: ")[2])
    assert words[1:] == ["run", "smoke", *SMALL, "--protocol", "ppa", *store]
    assert call(*words[1:], "--dry-run").exit_code == 0


def test_status_and_dry_run_compute_nothing(folder: Path) -> None:
    status = call("status", "smoke", *SMALL, "--store", str(folder / "other"))
    assert "missing" in status.stdout
    plan = call("run", "smoke", *SMALL, "--dry-run", "--store", str(folder / "other"))
    assert plan.exit_code == 0
    assert "prior wgan-gp" in plan.stdout
    assert not (folder / "other").exists()


@pytest.mark.parametrize("what", KINDS)
def test_list_has_a_line_for_every_name(what: str) -> None:
    done = call("list", what)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


BAD = {
    "unknown table": (["run", "nosuch"], "unknown table 'nosuch'; known: smoke"),
    "unknown field": (["run", "smoke", "--set", "attack.stepz=1"], "no field 'attack.stepz'"),
    "seed": (["run", "smoke", "--set", "seeds.target=7"], "--seeds N computes seeds 0 to N - 1"),
    "negative": (["run", "smoke", "--set", "attack.steps=-1"], "at least 1, got -1"),
    "not a number": (["run", "smoke", "--set", "attack.steps=x"], "takes a whole number, got 'x'"),
    "no value": (["run", "smoke", "--set", "attack.steps"], "path=value"),
    "no finite number": (["run", "smoke", "--set", "attack.lr=NaN"], "takes a number, got 'NaN'"),
    "several fields": (["run", "smoke", "--set", "trials=1"], "holds several fields"),
    "no component": (["run", "smoke", "--set", "attack.prior=1"], "attack.prior takes one of "),
    "no defaults": (["run", "smoke", "--set", "defense=mid"], "mid has no default of lambda_"),
    "no data": (["run", "table3-mnist", "--data", "/nowhere"], "--download"),
    "store under a file": (["run", "smoke", "--store", "/dev/null/x"], "cannot write to"),
    "row": (["run", "smoke", "--rows", "Nobody"], "no row matches 'Nobody'; rows: GMI"),
    "protocol": (["run", "smoke", "--protocol", "x"], "known: per-pass, kdd22, vmi"),
    "device": (["run", "smoke", "--device", "tpu"], "unknown device 'tpu'"),
    "executor": (["run", "smoke", "--executor", "local[0]"], "jobs must be at least 1, got 0"),
    "unknown executor": (["run", "smoke", "--executor", "farm"], "unknown executor 'farm'; known"),
    "executor field": (
        ["run", "smoke", "--executor", "local[cpus=1]"],
        "no field 'cpus' (did you",
    ),
    "executor without fields": (
        ["run", "smoke", "--executor", "serial[3]"],
        "serial takes nothing in brackets, got 'serial[3]'",
    ),
    "an empty column": (["table", "smoke", "--columns", ","], "a name is empty: write one comma"),
    "no store to clean": (["store", "clean", "--store", "typo"], "there is no store at typo"),
    "row that is not there": (
        ["figure", "row", "smoke", "GMI / MID", "--set", "attack.steps=3", "--store", "s"],
        "fill it with: mibench run smoke --rows 'GMI / MID' --set attack.steps=3 --store s",
    ),
    "address": (["run", "smoke", "--address", "x:1"], "--address is for ray"),
    "no file": (["run", "nosuch.py"], "no file nosuch.py"),
    "too many classes": (["run", "smoke", "--set", "trials.classes=9"], "private ones"),
    "unknown measure": (["run", "smoke", "--set", "defense.measure=mi"], "known: hsic, nhsic"),
    "unknown option": (["run", "smoke", "--sed", "1"], "No such option"),
    "unknown command": (["rum"], "No such command 'rum'"),
    "no seeds": (["run", "smoke", "--seeds", "0"], "'--seeds': 0 is not in the range 1<=x<="),
    "too many seeds": (["run", "smoke", "--seeds", "999999999999"], "is not in the range 1<=x<="),
    "too many to publish": (
        ["records", "publish", "smoke", "--seeds", "10001"],
        "in the range 1<=x<=10000",
    ),
    "too many to keep": (["store", "clean", "--seeds", "10001"], "in the range 1<=x<=10000; see"),
    "empty store": (["run", "smoke", "--store", ""], "'--store': the path is empty; see"),
    "empty data": (["data", "check", "blobs", "--data", ""], "'--data': the path is empty; see"),
    "empty out": (["figure", "4", "smoke", "-o", ""], "the path is empty; see"),
    "empty page": (["records", "board", ".", "-o", ""], "the path is empty; see"),
    "empty side": (["compare", "", ""], "Invalid value for 'A': the path is empty; see"),
    "no kind": (["list"], "Choose from: tables, attacks, priors, losses"),
    "too small": (["run", "smoke", "--set", "setting.task.size=7"], "in [8, 256], got 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_status_2(case: str, tmp_path: Path) -> None:
    arguments, sentence = BAD[case]
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("Error: ")
    assert "\t" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "report", "figure", "records write"])
def test_where_to_write_has_a_short_option(command: str) -> None:
    assert "-o, --out" in call(*command.split(), "--help").stdout


def test_a_real_process_reports_bad_input_without_a_traceback() -> None:
    command = [sys.executable, "-m", "mibench.cli", "run", "nosuch"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: unknown table 'nosuch'")
    assert "Traceback" not in done.stderr


def test_a_truncated_mnist_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b\x08\x00cut short")
    done = call("run", "table3-mnist", "--data", str(tmp_path / "data"))
    assert done.exit_code == 2
    assert "train-images-idx3-ubyte.gz is damaged" in done.stderr
    assert not (tmp_path / "mibench-store").exists()


def test_a_failing_stage_gives_exit_status_1_and_keeps_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mibench.attacks import GMI

    def fail(*_: object) -> None:
        raise FloatingPointError("a latent after step 3 is not finite")

    monkeypatch.setattr(GMI, "invert", fail)
    done = smoke(folder, "--set", "attack.lr=0.5")
    assert done.exit_code == 1
    assert "a latent after step 3 is not finite" in done.stderr
    assert "GMI / No Def." in done.stdout
    assert "--" in done.stdout
    assert "gmi on none: a latent after step 3" in done.stderr.splitlines()[-1]
    assert "Attack Acc" in (folder / "out" / "smoke-modified-incomplete.tex").read_text()


def test_clean_says_and_with_yes_deletes_what_interrupted_stages_left(tmp_path: Path) -> None:
    left = tmp_path / "mibench-store" / "prior" / "0123.partial"
    left.mkdir(parents=True)
    (left / "state.bin").write_bytes(b"x" * 100)
    kept = tmp_path / "mibench-store" / "prior" / "4567"
    kept.mkdir()
    assert "would delete" in call("store", "clean", "--partial").stdout
    assert left.exists()
    assert "deleted" in call("store", "clean", "--partial", "--yes").stdout
    assert not left.exists()
    assert kept.exists()
    assert "4567" in call("store", "clean", "--orphans").stdout


def test_clean_leaves_what_a_running_stage_saves(tmp_path: Path) -> None:
    state = tmp_path / "mibench-store" / "prior" / "0123.partial" / "state.bin"
    state.parent.mkdir(parents=True)
    state.touch()
    with lease(state.parent.with_suffix(".lease"), lambda: False, 60.0):
        done = call("store", "clean", "--yes")
        assert done.exit_code == 0, done.output
        assert f"{state.parent.name}: its stage is being computed" in done.stderr
    assert state.exists()
    assert "deleted" in call("store", "clean", "--yes").stdout
    assert not state.exists()


@pytest.mark.parametrize("step", ["rglob", "rename"])
def test_clean_passes_over_what_a_stage_that_ends_removes(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, left = (tmp_path / "mibench-store" / "prior" / f"{k}.partial" for k in ("01", "23"))
    for folder in (ended, left):
        folder.mkdir(parents=True)
        (folder / "state.bin").touch()
    found = getattr(Path, step)

    def late(path: Path, *arguments: Any) -> Any:
        if path.name == ended.name:
            shutil.rmtree(path)
        return found(path, *arguments)

    monkeypatch.setattr(Path, step, late)
    done = call("store", "clean", "--yes")
    assert done.exit_code == 0, done.exception
    assert done.stdout == f"deleted {left.relative_to(tmp_path)} (0.0 MB)\n"
    assert not left.exists()


def test_clean_keeps_what_rests_on_data_that_is_not_there(tmp_path: Path) -> None:
    specs = {
        "images/aa": {"task": {"is": "celeba"}},
        "classifier/bb": {"images": {"is": "images", "key": "aa"}},
        "record/cc": {"evidence": [{"is": "evidence", "key": "x"}, {"is": "c", "key": "bb"}]},
        "images/dd": {"task": {"is": "blobs"}},
        "classifier/ee": {"images": {"is": "images", "key": "dd"}},
    }
    for name, spec in specs.items():
        (tmp_path / "mibench-store" / name).mkdir(parents=True)
        (tmp_path / "mibench-store" / name / "spec.json").write_text(json.dumps(spec))
    done = call("store", "clean", "--orphans", "--yes")
    assert "keeping all of celeba" in done.stderr
    left = {str(p.relative_to(tmp_path / "mibench-store")) for p in tmp_path.glob("*/*/*")}
    assert left == {"images/aa", "classifier/bb", "record/cc"}


USER_FILE = """
from dataclasses import dataclass, replace
from typing import ClassVar
from mibench import Attack, Table
from mibench.attacks import GMI
from mibench.benchmarks.tables import TABLES

@dataclass(frozen=True)
class Mine(GMI):
    name: ClassVar[str] = "mine"
    def invert(self, *arguments):
        found = super().invert(*arguments)
        return replace(found, images=found.images * FACTOR)

FACTOR = 1
cell = TABLES["smoke"].rows["GMI / No Def."]
TABLE = Table("mine", "Mine.", {"Mine": replace(cell, attack=Mine(cell.attack.prior, steps=2))})
"""


def run_users_file(folder: Path, text: str, executor: str) -> str:
    (folder / "mine_attack.py").write_text(text)
    command = [sys.executable, "-m", "mibench.cli", "run", "mine_attack.py", *SMALL[4:]]
    done = subprocess.run(
        [*command, "--executor", executor], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_a_users_file_runs_and_other_code_under_one_name_never_shares(tmp_path: Path) -> None:
    assert run_users_file(tmp_path, USER_FILE, "serial").startswith("7 stages computed")
    other = USER_FILE.replace("FACTOR = 1", "FACTOR = 0")
    assert run_users_file(tmp_path, other, "serial").startswith("3 stages computed")


def test_a_users_classes_are_known_to_other_processes(tmp_path: Path) -> None:
    assert run_users_file(tmp_path, USER_FILE, "local[2]").startswith("7 stages computed")


DEADLY_FILE = """
import os
from dataclasses import dataclass, replace
from typing import ClassVar
from mibench import Table
from mibench.attacks import GMI
from mibench.benchmarks.tables import TABLES

@dataclass(frozen=True)
class Deadly(GMI):
    name: ClassVar[str] = "deadly"
    def invert(self, *arguments):
        os.kill(os.getpid(), 9)

cell = TABLES["smoke"].rows["GMI / No Def."]
dead = replace(cell, attack=Deadly(cell.attack.prior, steps=2))
TABLE = Table("deadly", "One dies.", {"Dead": dead, "Alive": cell})
"""


@pytest.mark.slow
def test_the_death_of_a_process_fails_its_stage_and_spares_the_rest(tmp_path: Path) -> None:
    (tmp_path / "deadly_attack.py").write_text(DEADLY_FILE)
    command = [sys.executable, "-m", "mibench.cli", "run", "deadly_attack.py", *SMALL[4:]]
    done = subprocess.run(
        [*command, "--executor", "local[2]"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count(" failed: ") == 1
    assert "deadly on none failed: its process was killed" in done.stderr
    assert "Traceback" not in done.stderr
    again = subprocess.run(
        [*command, "--rows", "Alive"], capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "nothing computed: 0 stages computed" in again.stderr


def test_a_broken_user_file_is_one_sentence_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken_table.py").write_text("import mibench\n\nTABLE = mibench.Tabel()\n")
    done = call("run", "broken_table.py")
    assert done.exit_code == 2
    assert "broken_table.py, line 3: AttributeError" in done.stderr
    (tmp_path / "empty_table.py").write_text("")
    assert "must define one mibench Table" in call("run", "empty_table.py").stderr


@pytest.mark.parametrize(
    ("example", "row"),
    [("random_search", "Random search / No Def."), ("label_smoothing", "GMI / alpha -0.05")],
)
def test_the_examples_run(example: str, row: str) -> None:
    path = ROOT / "examples" / f"{example}.py"
    small = ["--set", "attack.prior.epochs=1", "--rows", row, "--executor", "serial"]
    done = call("run", str(path), *small)
    assert done.exit_code == 0, done.output
    assert row in done.stdout


def test_a_table_that_is_meant_for_a_gpu_says_so_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    mine = tmp_path / "heavy_table.py"
    mine.write_text(
        "from dataclasses import replace\n"
        "from mibench.benchmarks.tables import TABLES\n"
        "TABLE = replace(TABLES['smoke'], name='mine', heavy=True)\n"
    )
    images = ["--until", "images", *places(tmp_path), "--executor", "serial"]
    told = call("run", str(mine), *images)
    assert told.exit_code == 0, told.output
    assert "note: mine is meant for a GPU and runs without one here" in told.stderr
    for quiet in (["smoke"], [str(mine), "--device", "cpu"]):
        done = call("run", *quiet, *images)
        assert done.exit_code == 0, done.output
        assert "meant for a GPU" not in done.stderr


def test_tables_of_celeba_and_cifar_are_meant_for_a_gpu() -> None:
    from mibench.benchmarks.tables import TABLES

    for name, table in TABLES.items():
        tasks = {type(cell.setting.task).__name__ for cell in table.rows.values()}
        large = tasks <= {"CelebA", "CelebAVMI", "CIFAR10"} or name == "celeba300"
        assert table.heavy == large, name


@pytest.mark.parametrize("name", ["shipped", "stylegan2-framed", "averaging"])
def test_components_that_need_an_argument_are_listed_and_described(name: str) -> None:
    kind = "attacks" if name == "averaging" else "priors"
    listed = CliRunner().invoke(main, ["list", kind])
    assert name in [line.split()[0] for line in listed.stdout.splitlines()]
    assert CliRunner().invoke(main, ["describe", name]).stdout.startswith(f"{name}, of the {kind}")
