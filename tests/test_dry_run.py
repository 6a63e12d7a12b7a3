"""A plan is made of whatever data is there, and says what its times rest on."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import CelebA
from mibench.running.grid import record_stages
from mibench.running.plan import doubts, estimate, known_sizes, measured, shape
from mibench.running.stages import InversionStage
from mibench.store import FILES, Stage, Store, seal

FEW = ("setting.task.num_classes=4", "setting.task.public=5", "trials.classes=4")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with CelebA of four identities to attack: far fewer than the tables ask."""
    root = tmp_path_factory.mktemp("faces")
    (root / "celeba" / "img_align_celeba").mkdir(parents=True)
    lines: list[str] = []
    for identity, count in enumerate([30, 30, 30, 30, 3, 3]):
        for _ in range(count):
            name = f"{len(lines) + 1:06d}.jpg"
            lines.append(f"{name} {identity + 1}\n")
            (root / "celeba" / "img_align_celeba" / name).write_bytes(name.encode())
    (root / "celeba" / "identity_CelebA.txt").write_text("".join(lines))
    return root


def call(command: str, table: str, data: Path, *more: str, settings: tuple[str, ...]) -> Result:
    given = [word for setting in settings for word in ("--set", setting)]
    places = ["--data", str(data), "--store", str(data / "store")]
    return CliRunner().invoke(main, [*command.split(), table, *given, *places, *more])


@pytest.mark.parametrize(
    ("table", "more"),
    [
        ("table1", []),
        ("table2", ["--protocol", "lomma"]),
        ("table2", ["--until", "classifier"]),
        ("table5-controlled", ["--seeds", "2"]),
    ],
)
def test_a_plan_needs_data_that_fit_the_options_not_the_table_without_them(
    table: str, more: list[str], faces: Path
) -> None:
    done = call("run --dry-run", table, faces, *more, settings=FEW)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    assert "no key without data" not in done.stdout
    assert "whose number is unknown" not in done.stdout
    assert "0 done" in done.stdout.splitlines()[-1]


def test_status_of_data_that_fit_the_options_alone_says_what_is_missing(faces: Path) -> None:
    done = call("status", "table2", faces, settings=FEW)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("0 done")


@pytest.mark.parametrize("command", ["run --dry-run", "run", "status", "table"])
def test_data_that_do_not_fit_what_is_asked_are_one_sentence(command: str, faces: Path) -> None:
    done = call(command, "table2", faces, settings=())
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "4 identities with 30 images or more, fewer than the 1000" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("settings", [FEW, ("setting.task.size=32",), FEW[:1] + FEW[2:]])
def test_without_data_a_plan_of_any_task_is_made(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    done = call("run --dry-run", "table2", tmp_path, settings=settings)
    assert done.exit_code == 0, done.output
    assert len(done.stderr.splitlines()) == 1
    assert "without it nothing counts as done" in done.stderr


def test_of_data_that_are_there_in_part_the_plan_says_what_is_missing(
    faces: Path, tmp_path: Path
) -> None:
    (tmp_path / "celeba").mkdir()
    listed = (faces / "celeba" / "identity_CelebA.txt").read_text()
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text(listed)
    done = call("run --dry-run", "table2", tmp_path, settings=FEW)
    assert done.exit_code == 0, done.output
    assert "no image" in done.stderr
    assert "whose number is unknown" not in done.stdout  # the list tells how many there will be


def test_data_that_may_not_be_read_are_refused_but_only_where_they_are_asked_for(
    faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = CelebA.digest

    def some(task: CelebA, root: Path) -> str:
        if task.num_classes > 4:
            raise PermissionError(13, "Permission denied", "celeba")
        return digest(task, root)

    monkeypatch.setattr(CelebA, "digest", some)
    assert call("run --dry-run", "table2", faces, settings=FEW).exit_code == 0
    done = call("run --dry-run", "table2", faces, settings=())
    assert done.exit_code == 2
    assert done.stderr == "Error: Permission denied: celeba\n"


def test_where_images_cannot_be_counted_their_number_is_unknown_or_the_official_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(CelebA, "sizes", none)
    assert known_sizes(CelebA(num_classes=4), tmp_path) is None
    assert known_sizes(CelebA(), tmp_path) == CelebA.official


def inversion(*settings: str) -> InversionStage:
    table = TABLES["smoke"].modified(settings)
    (record,) = record_stages(table.only(["GMI / MID"]), 1, Path())["GMI / MID"]
    return record.evidence[0].inversion


def took(root: Path, seconds: Mapping[InversionStage, float]) -> dict[str, int | None]:
    """Makes a store say how long each stage took; returns key → steps."""
    for stage, second in seconds.items():
        folder = Store(root).path(stage)
        folder.mkdir(parents=True)
        meta = {"seconds": second, "resumed": False, "device": "cpu"}
        (folder / "meta.json").write_bytes(seal(stage, dict.fromkeys(FILES, b""), meta))
    return {s.key: s.attack.planned_steps(1) for s in seconds}


def test_what_a_stage_does_besides_its_steps_is_told_apart_from_them(tmp_path: Path) -> None:
    short, long = inversion("attack.steps=10"), inversion("attack.steps=30")
    # 60 s to select among candidates, and 0.5 s for each step
    steps = took(tmp_path, {short: 65.0, long: 75.0})
    found = measured([short, long], steps, Store(tmp_path), "cpu")
    assert estimate(inversion("attack.steps=2000"), 2000, found) == pytest.approx(1060)


@pytest.mark.parametrize("seconds", [(75.0, 65.0), (1.0, 31.0)])
def test_times_that_fit_no_line_count_as_those_of_the_steps(
    seconds: tuple[float, float], tmp_path: Path
) -> None:
    short, long = inversion("attack.steps=10"), inversion("attack.steps=30")
    steps = took(tmp_path, dict(zip((short, long), seconds, strict=True)))
    found = measured([short, long], steps, Store(tmp_path), "cpu")
    assert estimate(inversion("attack.steps=40"), 40, found) == pytest.approx(sum(seconds))


def test_a_time_that_rests_on_a_much_shorter_run_is_called_a_guess(tmp_path: Path) -> None:
    short, same, long = (inversion(f"attack.steps={n}") for n in (2, 20, 21))
    steps = took(tmp_path, {short: 60.0})
    found = measured([short], steps, Store(tmp_path), "cpu")
    stages: list[Stage] = [same, long]
    assert doubts([same], {same.key: 20}, found) == []
    assert doubts([long], {long.key: None}, found) == []
    assert doubts(stages, {same.key: 20, long.key: 21}, found) == [
        "the time of inversion is a rough guess: 21 steps are planned, and the longest run like "
        "it took 2"
    ]
    assert shape(short) == shape(long)


def test_a_dry_run_prints_the_doubt(tmp_path: Path) -> None:
    took(tmp_path / "store", {inversion("attack.steps=2"): 60.0})
    options = ["--rows", "GMI / MID", "--executor", "serial"]
    done = call("run --dry-run", "smoke", tmp_path, *options, settings=("attack.steps=100",))
    assert "a rough guess" not in done.stdout  # of another length than any of the plan's
    took(tmp_path / "store", {inversion(): 60.0})
    done = call("run --dry-run", "smoke", tmp_path, *options, settings=("attack.steps=9000",))
    assert done.exit_code == 0
    assert "the time of inversion is a rough guess: 9,000 steps are planned" in done.stdout
