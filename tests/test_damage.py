"""What was damaged is found before use, named, moved aside and computed again."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner, Result

from mibench.cli import main
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.seeding import generator
from mibench.store import (
    FILES,
    AbsentError,
    DamagedError,
    Payload,
    Stage,
    Store,
    Work,
    read_payload,
    read_stage,
    seal,
    tell,
)
from mibench.store.disk import json_bytes, sha256
from mibench.store.files import read_plain


@dataclass(frozen=True)
class Part(Stage):
    """Draws numbers."""

    kind: ClassVar[str] = "part"

    seed: int

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns the numbers, and notes that it was asked."""
        with (work.data / "computed").open("a") as file:
            file.write(f"part {self.seed}\n")
        return {"numbers": torch.randn(3, generator=generator(self.seed))}


@dataclass(frozen=True)
class Whole(Stage):
    """Adds up its parts."""

    kind: ClassVar[str] = "whole"

    parts: tuple[Part, ...]

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns the sum."""
        with (work.data / "computed").open("a") as file:
            file.write("whole\n")
        return {"sum": sum(float(load(p)["numbers"].sum()) for p in self.parts)}


PARTS = (Part(0), Part(1))
WHOLE = Whole(PARTS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path, data: Path) -> Store:
    """A store in which all is done."""
    made = Store(tmp_path / "store")
    for stage in (*PARTS, WHOLE):
        made.complete(stage, data=data)
    (data / "computed").unlink()
    return made


def computed(data: Path) -> list[str]:
    path = data / "computed"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "cut short": half,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a link to an endless device": link,
    "a folder": folder,
    "a pipe": pipe,
}


@pytest.mark.parametrize("name", [*FILES, "meta.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_to_each_file_is_found_named_moved_aside_and_mended(
    damage: str, name: str, store: Store, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want = store.load(WHOLE)
    path = store.path(WHOLE)
    DAMAGE[damage](path / name)
    with pytest.raises(DamagedError, match=name):
        read_stage(path)
    store.set_aside_damaged([*PARTS, WHOLE])
    store.complete(WHOLE, data=data)
    assert computed(data) == ["whole"]
    assert store.load(WHOLE) == want
    moved = list((store.root / "quarantine" / "whole").iterdir())
    assert len(moved) == 1
    assert moved[0].name.startswith(WHOLE.key)
    said = capsys.readouterr().err
    assert str(moved[0]) in said
    assert str(path) in said


@pytest.mark.parametrize("byte", range(0, 400, 37))
def test_any_flipped_bit_of_the_meta_is_found(byte: int, store: Store) -> None:
    path = store.path(WHOLE) / "meta.json"
    content = bytearray(path.read_bytes())
    content[byte % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        read_stage(store.path(WHOLE))


def test_a_damaged_need_is_mended_before_the_stage_that_reads_it(
    store: Store, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    want = store.load(WHOLE)
    shutil.rmtree(store.path(WHOLE))
    flip(store.path(PARTS[1]) / "payload.safetensors")
    assert store.complete(WHOLE, data=data)
    assert computed(data) == ["whole", "part 1", "whole"]
    assert store.load(WHOLE) == want
    assert "payload.safetensors is damaged: moved to" in capsys.readouterr().err


def test_a_need_that_is_gone_is_computed_again(store: Store, data: Path) -> None:
    shutil.rmtree(store.path(WHOLE))
    shutil.rmtree(store.path(PARTS[0]))
    assert store.complete(WHOLE, data=data)
    assert computed(data) == ["whole", "part 0", "whole"]


def test_a_run_examines_what_it_will_read_and_nothing_else(store: Store, data: Path) -> None:
    """A part that only a finished stage needs is left alone; a needed one is not."""
    flip(store.path(PARTS[0]) / "payload.json")
    store.set_aside_damaged([*PARTS, WHOLE])
    assert store.state(PARTS[0]) == "done"
    flip(store.path(WHOLE) / "payload.json")
    store.set_aside_damaged([*PARTS, WHOLE])
    assert store.state(WHOLE) == store.state(PARTS[0]) == "missing"
    outcome = execute([*PARTS, WHOLE], Bench(store.root, data), Watcher(), Serial())
    assert outcome.computed == 2
    assert not outcome.failures


def test_a_stage_without_its_meta_is_not_taken_for_a_finished_one(
    store: Store, data: Path
) -> None:
    """One look at the names of a folder does not tell it from a whole one."""
    (store.path(WHOLE) / "meta.json").unlink()
    store.set_aside_damaged([*PARTS, WHOLE])
    assert store.states([WHOLE]) == {WHOLE.key: "missing"}


def test_a_stage_under_the_name_of_another_is_found(store: Store, data: Path) -> None:
    """Its files are whole, but they are another's."""
    shutil.rmtree(store.path(PARTS[0]))
    shutil.copytree(store.path(PARTS[1]), store.path(PARTS[0]))
    with pytest.raises(DamagedError, match="another stage, or one of an older version"):
        store.load(PARTS[0])
    shutil.rmtree(store.path(WHOLE))
    store.complete(WHOLE, data=data)
    assert torch.equal(store.load(PARTS[0])["numbers"], torch.randn(3, generator=generator(0)))


def test_a_stage_of_an_older_version_is_never_taken(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.path(PARTS[0])
    monkeypatch.setattr(Part, "version", 2)
    new = Part(0)
    shutil.copytree(old, store.path(new))
    with pytest.raises(DamagedError, match="an older version"):
        store.load(new)


@pytest.mark.parametrize("name", ["digest", "stage", "sha256"])
def test_a_meta_that_lacks_a_part_of_its_seal_is_damaged(store: Store, name: str) -> None:
    path = store.path(WHOLE) / "meta.json"
    meta = json.loads(path.read_text())
    rest = {key: value for key, value in meta.items() if key not in (name, "digest")}
    digest = {} if name == "digest" else {"digest": sha256(json_bytes(rest))}
    path.write_bytes(json_bytes(rest | digest))
    with pytest.raises(DamagedError, match=r"meta\.json is damaged"):
        read_stage(store.path(WHOLE))


def test_a_stage_under_another_kind_is_found(store: Store) -> None:
    path = store.root / "other" / WHOLE.key
    shutil.copytree(store.path(WHOLE), path)
    with pytest.raises(DamagedError, match="another stage"):
        read_stage(path)


def test_a_stage_made_anew_while_it_is_read_is_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = read_payload, []

    def once_too_early(path: Path) -> tuple[Payload, dict[str, object]]:
        calls.append(path)
        if len(calls) == 1:
            raise DamagedError("is no folder")
        return read(path)

    monkeypatch.setattr("mibench.store.store.read_payload", once_too_early)
    assert store.load(WHOLE)
    assert len(calls) == 2


def test_a_file_longer_than_one_read_comes_whole(tmp_path: Path) -> None:
    for size in (0, 2**20 - 1, 2**20, 3 * 2**20):
        (tmp_path / "file").write_bytes(bytes([7]) * size)
        assert read_plain(tmp_path / "file") == bytes([7]) * size


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "socket"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "link":
        (tmp_path / "other").write_text("x")
        path.symlink_to("other")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made, chdir(tmp_path):
            made.bind("file")  # a longer name does not fit
    with pytest.raises(DamagedError, match="is no plain file"):
        read_plain(path)


def forge(store: Store, stage: Stage, name: str, content: bytes) -> None:
    """Writes a file into a finished stage and makes all digests fit."""
    path = store.path(stage)
    (path / name).write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    del meta["digest"]
    files = {file: (path / file).read_bytes() for file in FILES}
    (path / "meta.json").write_bytes(seal(stage, files, meta))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("payload.json", b"[" * 100_000),
        ("payload.json", b'{"numbers": {"$tensor": "absent"}}'),
        ("payload.json", b'{"$tuple": 3}'),
        ("payload.json", b"null"),
        ("payload.json", b'{"$int": {"x": 1}}'),
        ("payload.json", b"\xff\xfe"),
        ("payload.safetensors", b"\xff" * 64),
        ("payload.safetensors", b"\x80\x02cposix\nsystem\n."),
    ],
)
def test_a_payload_that_was_forged_is_refused(name: str, content: bytes, store: Store) -> None:
    forge(store, PARTS[0], name, content)
    with pytest.raises(DamagedError, match="no payload"):
        store.load(PARTS[0])


@pytest.mark.parametrize("rubbish", ["a folder without a meta", "a file", "a dangling link"])
def test_what_lies_under_a_stages_name_needs_no_hand(
    rubbish: str, store: Store, data: Path
) -> None:
    stage = Part(7)
    path = store.path(stage)
    if rubbish == "a file":
        path.write_text("x")
    elif rubbish == "a dangling link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
        (path / "payload.json").write_text("{}")
    assert store.complete(stage, data=data)
    assert len(store.load(stage)["numbers"]) == 3
    assert len(list((store.root / "quarantine" / "part").iterdir())) == 1


def test_a_damaged_state_is_named_and_the_stage_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state.bin").write_bytes(b"x" * 100)
    assert Work(tmp_path).load() is None
    assert "state.bin is damaged: the stage starts over" in capsys.readouterr().err
    assert not (tmp_path / "state.bin").exists()


def test_a_state_saved_under_other_versions_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Work(tmp_path, every=0).save(lambda: {"x": 1})
    assert Work(tmp_path).load() == {"x": 1}
    monkeypatch.setattr(torch, "__version__", "1.0")
    assert Work(tmp_path).load() is None
    assert "other versions" in capsys.readouterr().err


def test_an_absent_stage_says_so(store: Store) -> None:
    with pytest.raises(AbsentError, match=r"part .* is missing"):
        store.load(Part(9))


def test_a_note_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tell("so it is")
    assert capsys.readouterr().err == "note: so it is\n"


# check-store ----------------------------------------------------------------------------------


def call(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def test_check_store_reads_everything_and_is_content(store: Store) -> None:
    done = call("store", "check", "--store", str(store.root))
    assert done.exit_code == 0
    assert done.stdout == "3 stages read, 0 of them damaged\n"


def test_check_store_names_each_bad_stage_and_leaves_it(store: Store) -> None:
    flip(store.path(PARTS[0]) / "payload.safetensors")
    (store.path(WHOLE) / "meta.json").unlink()
    done = call("store", "check", "--store", str(store.root))
    assert done.exit_code == 1
    assert f"{store.path(PARTS[0])}/payload.safetensors is damaged" in done.stderr
    assert f"{store.path(WHOLE)}/meta.json is missing" in done.stderr
    assert "--repair moves it aside" in done.stderr
    assert store.path(WHOLE).exists()


def test_check_store_with_repair_moves_aside_and_is_content_then(store: Store, data: Path) -> None:
    flip(store.path(PARTS[0]) / "payload.safetensors")
    repaired = call("store", "check", "--store", str(store.root), "--repair")
    assert repaired.exit_code == 1
    assert "Error: 1 moved aside; run again to compute them anew" in repaired.stderr
    assert not store.path(PARTS[0]).exists()
    assert call("store", "check", "--store", str(store.root)).exit_code == 0
    store.complete(PARTS[0], data=data)
    cleaned = call("store", "clean", "--yes", "--store", str(store.root))
    assert "quarantine" in cleaned.stdout
    assert not list((store.root / "quarantine" / "part").iterdir())
    assert store.state(PARTS[0]) == "done"


def test_check_store_refuses_what_is_no_store(tmp_path: Path) -> None:
    done = call("store", "check", "--store", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "there is no store" in done.stderr


def test_a_run_mends_a_damaged_store_and_prints_the_same_table(tmp_path: Path) -> None:
    """The record, which is printed; the inversion, which only the picture reads; a classifier."""

    def run() -> Result:
        small = ["recipe.epochs=1", "attack.prior.epochs=1", "attack.steps=2"]
        settings = [arg for s in small for arg in ("--set", s)]
        places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
        rows = ["--rows", "GMI / No Def.", "--executor", "serial", "--quiet"]
        return call("run", "smoke", *rows, *settings, *places)

    first = run()
    assert first.exit_code == 0
    csv = (tmp_path / "out" / "smoke-modified.csv").read_bytes()
    for kind in ("record", "inversion", "classifier"):
        for path in (tmp_path / "store" / kind).iterdir():
            flip(path / "payload.safetensors" if kind != "record" else path / "payload.json")
    again = run()
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert (tmp_path / "out" / "smoke-modified.csv").read_bytes() == csv
    assert again.stderr.count("is damaged: moved to") == 4
    assert call("store", "check", "--store", str(tmp_path / "store")).exit_code == 0
