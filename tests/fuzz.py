"""Random input to everything that reads what others wrote: ``python -m tests.fuzz``.

Each parser is given files and texts that hypothesis changes at random. What it may do is take
them or say no as documented, in bounded time and memory; anything else ends the fuzzing with
the smallest input that does it.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_tensors

from mibench.benchmarks.tables import TABLES
from mibench.commands.selection import Selection
from mibench.commands.shared import RefusedError, refusing
from mibench.commands.stores import finished, left_over, tasks_of
from mibench.data import CIFAR10, MNIST, Folder
from mibench.networks.foreign.checkpoints import read_checkpoint
from mibench.networks.foreign.pickles import read_network
from mibench.override import paths
from mibench.reporting.forms import FORMATS, render
from mibench.reporting.results import collect
from mibench.running.grid import Grid
from mibench.running.plan import planned_steps
from mibench.running.stages import RecordStage, graph, record_stage
from mibench.seeding import generator
from mibench.store import (
    AbsentError,
    DamagedError,
    Payload,
    Stage,
    Store,
    Work,
    move_aside,
    pack,
    read_stage,
    seal,
)
from mibench.store.lease import is_abandoned
from tests.test_pickles import snapshot

SECONDS = 10.0
"""Of a processor: no input may take more."""
MEGABYTES = 3000
"""Nor may the address space grow by more."""

Edit = tuple[int, int, bytes]


@dataclass(frozen=True)
class Parser:
    """What is fuzzed.

    Attributes:
        share: Of the examples, out of the sum of all parsers' shares.
        inputs: Draws an input.
        read: Reads it in an empty folder; raises only what is documented, or what is a bug.
    """

    share: int
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any, Path], object]


# Inputs ---------------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 2**16 - 1), st.binary(max_size=12)), max_size=6
)
"""Changes of a file: how, where (as a share of its length), and with what."""


def changed(data: bytes, how: list[Edit]) -> bytes:
    """Returns the file with its changes: bytes put in, put over, taken out, doubled, cut."""
    for kind, place, piece in how:
        at = place * len(data) >> 16
        if kind == 0:
            data = data[:at] + piece + data[at:]
        elif kind == 1:
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == 2:
            data = data[:at] + data[at + len(piece) :]
        elif kind == 3 and len(data) < 10**6:
            data = data[:at] + data[at : at + 50] * len(piece) + data[at:]
        elif kind == 4:
            data = data[:at]
        elif data:
            data = data[:at] + bytes([data[at] ^ (1 << place % 8)]) + data[at + 1 :]
    return data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8) | st.sampled_from(["$tensor", "$tuple", "$int"]), inner,
                      max_size=4),
    max_leaves=8,
)  # fmt: skip
texts = (
    st.text(max_size=12)
    | json_values.map(lambda v: json.dumps(v))
    | st.integers(0, 400).map(lambda n: str(10**n))
    | st.sampled_from(["1e999", "-1e999", "NaN", "[" * 5000, "9" * 5000, "-0", "1e-400"])
)  # fmt: skip


def saved(content: object, **options: Any) -> bytes:
    """Returns what ``torch.save`` writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}
CHECKPOINTS: tuple[bytes, ...] = (
    saved(STATE),
    saved({"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}}),
    saved(STATE, _use_new_zipfile_serialization=False),
)
instructions = st.lists(
    st.one_of(
        st.sampled_from([bytes([i]) for i in range(256)]),
        st.binary(max_size=6),
        st.sampled_from(
            [b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b")R",
             b"}", b"K\x02", b"X\x01\0\0\0a", b"(", b"t", b"Q", b"ctorch\nFloatStorage\n",
             b"cos\nsystem\n", b"s", b"u", b"b", b"q\0", b"h\0", b"\x85", b"X\x07\0\0\0storage"]
        ),
    ),
    max_size=40,
).map(lambda parts: b"\x80\x02" + b"".join(parts) + b".")  # fmt: skip


def as_archive(program: bytes) -> bytes:
    """Returns a zip archive as ``torch.save`` writes it, with that pickle."""
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(24))
    return file.getvalue()


@cache
def picture(form: str) -> bytes:
    """Returns a small image file."""
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (12, 9, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


FORMS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")


# Parsers --------------------------------------------------------------------------------------


def refusals(*kinds: type[Exception]) -> Callable[..., Any]:
    """Returns a decorator for a reader that may say no with one of ``kinds``, in words."""

    def wrap(read: Callable[[Any, Path], object]) -> Callable[[Any, Path], None]:
        def guarded(value: Any, folder: Path) -> None:
            with contextlib.suppress(*kinds):
                read(value, folder)

        return guarded

    return wrap


SMOKE = TABLES["smoke"]
PLACES = sorted({p for cell in SMOKE.rows.values() for p in paths(cell)})


@refusals(RefusedError)
def read_settings(value: tuple[str, str, str, str, list[str]], folder: Path) -> None:
    """Changes a table as the command line does, and plans it."""
    name, place, text, protocol, rows = value
    with refusing():
        table = Selection(name, tuple(rows), (f"{place}={text}",), protocol or None).table
        for cell in list(table.rows.values())[:1]:
            for stage in graph([record_stage(cell, table.columns, "")]):
                assert len(stage.key) == 16
                assert stage.describe()
                planned_steps(stage, None)


@refusals(ValueError)
def read_weights(data: bytes, folder: Path) -> None:
    """Reads a checkpoint."""
    path = folder / ("x.pth" if data[:2] in (b"PK", b"\x80\x02") else "x.safetensors")
    path.write_bytes(data)
    read_checkpoint(path)


@refusals(ValueError)
def read_pickled_network(data: bytes, folder: Path) -> None:
    """Reads a network pickle of NVIDIA's."""
    (folder / "x.pkl").write_bytes(data)
    read_network(folder / "x.pkl")


@dataclass(frozen=True)
class Numbers(Stage):
    """A stage with all kinds of content."""

    kind: ClassVar[str] = "numbers"

    seed: int

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        """Returns some of each."""
        x = torch.randn(3, generator=generator(self.seed))
        return {"x": x, "n": {0: (1, 2.5, None)}, "text": "ä", "tied": [x]}


@cache
def stage_files() -> dict[str, bytes]:
    """Returns the files of a finished stage."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.complete(Numbers(0))
        return {p.name: p.read_bytes() for p in store.path(Numbers(0)).iterdir()}


def read_store(value: tuple[str, list[Edit], bool, Any, str], folder: Path) -> None:
    """Loads a stage of which a file was changed, or forged with the right digest."""
    name, how, forge, tree, holder = value
    stage, store = Numbers(0), Store(folder, lease_seconds=0.01)
    path = store.path(stage)
    path.mkdir(parents=True)
    files = dict(stage_files())
    files[name] = changed(files[name], how)
    if forge:
        files["payload.json"] = json.dumps(tree).encode()
        del files["meta.json"]
        files["meta.json"] = seal(stage, files, {})
    for file, data in files.items():
        (path / file).write_bytes(data)
    path.with_suffix(".lease").write_text(holder, encoding="utf-8", errors="replace")
    path.with_suffix(".failed").write_bytes(files["payload.json"])
    store.failure(stage)
    try:
        store.load(stage)
    except (AbsentError, DamagedError):
        move_aside(path)
    tasks_of(folder)
    list(left_over(folder))
    for found in finished(folder):
        read_stage(found) if not forge else None
    is_abandoned(holder, 0.0, 60.0)


def read_state(value: tuple[list[Edit], bool, Any], folder: Path) -> None:
    """Goes on from a saved state that was changed, or forged with the right digest."""
    import hashlib

    how, forge, tree = value
    work = Work(folder, every=0.0)
    work.save(lambda: {"x": torch.ones(3)})
    path = folder / "state.bin"
    if forge:
        text = bytearray(json.dumps(tree).encode())
        data = save_tensors({"$json": torch.frombuffer(text, dtype=torch.uint8)})
        path.write_bytes(hashlib.sha256(data).digest() + data)
    else:
        path.write_bytes(changed(path.read_bytes(), how))
    before = torch.get_rng_state()
    Work(folder).load()
    torch.set_rng_state(before)


@cache
def record() -> tuple[RecordStage, Any]:
    """Returns a record's stage and a payload that fits it."""
    stage = record_stage(SMOKE.rows["GMI / MID"], SMOKE.columns, "0" * 64)
    score = {"mean": 50.0, "std": 1.0}
    sizes = {"reconstructions": 3, "real": 4, "dimensions": 5, "classes": 10}
    scores = {name: dict(score) for name in SMOKE.columns}
    return stage, {"scores": scores, "sizes": sizes, "evaluator": {"accuracy": 99.0}}


def read_record(value: tuple[list[Any], Any], folder: Path) -> None:
    """Prints a table of a record in which something was replaced."""
    path_to, new = value
    stage, payload = record()
    payload = json.loads(json.dumps(payload))
    node, last = payload, None
    for choice in path_to:
        if isinstance(node, dict) and node:
            last = node, sorted(node)[choice % len(node)]
            node = node[last[1]]
    if last is not None:
        last[0][last[1]] = new
    store = Store(folder)
    tensors, tree = pack(payload)
    assert not tensors
    store._commit(stage, tree, {})  # type: ignore[arg-type]
    results = collect(Grid(SMOKE.only(["GMI / MID"]), {"GMI / MID": [stage]}, store))
    for form in FORMATS:
        assert render(results, form)


@refusals(ValueError, OSError)
def read_folder(value: tuple[str, list[Edit], str, str], folder: Path) -> None:
    """Reads a folder of images with a changed one, an odd name and a link in a circle."""
    form, how, name, odd = value
    good = picture("PNG")
    for part in ("train", "test"):
        for person in ("a", "b"):
            place = folder / "images" / "private" / part / person
            place.mkdir(parents=True)
            (place / "0.png").write_bytes(good + part.encode() + person.encode())
            (place / "1.png").write_bytes(good + b"1" + part.encode() + person.encode())
    public = folder / "images" / "public"
    public.mkdir()
    (public / "loop").symlink_to(folder / "images")
    (public / "loop.png").symlink_to(public / "loop.png")
    (public / f"x.{form.lower()}").write_bytes(changed(picture(form), how))
    (public / "y.jpg").write_bytes(picture("JPEG"))
    for text in (name, f"{odd}.png"):
        try:
            (public / text).write_bytes(good)
        except (OSError, ValueError):  # no name for a file at all
            continue
    task = Folder(num_classes=2, size=8)
    task.digest(folder)
    task.load(folder)


@cache
def idx(images: bool) -> bytes:
    """Returns the head of a file of MNIST, and a little of its body."""
    shape = (2, 28, 28) if images else (2,)
    size = int(np.prod(shape))
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(size)


@refusals(ValueError, FileNotFoundError)
def read_mnist(value: tuple[bool, list[Edit], list[Edit]], folder: Path) -> None:
    """Reads files of MNIST, zipped or not."""
    from mibench.data.mnist import read

    zipped, images, labels = value
    place = folder / "MNIST" / "raw"
    place.mkdir(parents=True)
    for name, head, how in (("images-idx3", True, images), ("labels-idx1", False, labels)):
        data = idx(head)
        data = changed(gzip.compress(data, 1) if zipped else data, how)
        (place / f"train-{name}-ubyte{'.gz' * zipped}").write_bytes(data)
    read(folder, "train")
    MNIST().sizes(folder)


@cache
def batch() -> bytes:
    """Returns a batch of CIFAR-10 with two images."""
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    return pickle.dumps(content, protocol=2)


@refusals(ValueError, FileNotFoundError)
def read_cifar(value: bytes, folder: Path) -> None:
    """Reads a batch of CIFAR-10."""
    from mibench.data.cifar10 import _read_batches

    place = folder / "cifar-10-batches-py"
    place.mkdir()
    (place / "test_batch").write_bytes(value)
    _read_batches(folder, "test")
    CIFAR10().digest(folder)


numbers = st.integers(0, 10)
PARSERS: dict[str, Parser] = {
    "settings, rows and names of tables": Parser(
        25,
        st.tuples(
            st.just("smoke") | st.text(max_size=6) | st.just("\0.py") | st.just("../x.py"),
            st.sampled_from(PLACES) | st.text(max_size=10),
            texts,
            st.sampled_from(["", "", "kdd22"]) | st.text(max_size=5),
            st.lists(
                st.sampled_from(["GMI*", "*", "[", "*" * 50]) | st.text(max_size=5), max_size=2
            ),
        ),
        read_settings,
    ),
    "checkpoints of torch": Parser(
        20,
        st.builds(changed, st.sampled_from(CHECKPOINTS), edits) | instructions.map(as_archive),
        read_weights,
    ),
    "safetensors": Parser(
        10,
        st.builds(changed, st.just(save_tensors(STATE)), edits)
        | json_values.map(lambda v: json.dumps(v).encode()).map(
            lambda text: struct.pack("<Q", len(text)) + text
        ),
        read_weights,
    ),
    "network pickles": Parser(
        5, st.builds(changed, st.just(snapshot()), edits) | instructions, read_pickled_network
    ),
    "stores": Parser(
        15,
        st.tuples(
            st.sampled_from(sorted(stage_files())), edits, st.booleans(), json_values,
            st.text(max_size=20) | st.just(f"{os.uname().nodename} -1 x")
            | st.just(f"{os.uname().nodename} {10**30} x"),
        ),
        read_store,
    ),
    "saved states": Parser(8, st.tuples(edits, st.booleans(), json_values), read_state),
    "records": Parser(7, st.tuples(st.lists(numbers, max_size=3), json_values), read_record),
    "folders of images": Parser(
        4,
        st.tuples(
            st.sampled_from(FORMS), edits, st.text(max_size=6), st.text(min_size=1, max_size=6)
        ),
        read_folder,
    ),
    "files of MNIST": Parser(3, st.tuples(st.booleans(), edits, edits), read_mnist),
    "batches of CIFAR-10": Parser(
        3, st.builds(changed, st.just(batch()), edits) | instructions, read_cifar
    ),
}  # fmt: skip


def fuzz(name: str, examples: int, start: int) -> tuple[float, float]:
    """Gives a parser so many inputs.

    Returns:
        Seconds of a processor, in all and of the slowest input.
    """
    parser = PARSERS[name]
    slowest = 0.0
    begun = time.process_time()

    @seed(start)
    @settings(
        max_examples=examples, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(parser.inputs)
    def check(value: Any) -> None:
        nonlocal slowest
        place = Path(tempfile.mkdtemp(dir=SHELF))
        begin = time.process_time()
        try:
            parser.read(value, place)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        passed = time.process_time() - begin
        slowest = max(slowest, passed)
        assert passed < SECONDS, f"{passed:.1f} s for one input"

    check()
    return time.process_time() - begun, slowest


SHELF = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


def limit_memory() -> None:
    """Lets the address space grow by so much and no more, so that a bomb is an error."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEGABYTES * 2**20, resource.RLIM_INFINITY))


def command() -> int:
    """Fuzzes all parsers and prints a line for each."""
    arguments = argparse.ArgumentParser(prog="python -m tests.fuzz")
    arguments.add_argument("--examples", type=int, default=100_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", default="", help="parsers whose name has this in it")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    limit_memory()
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=SHELF)
    total = 0
    shares = sum(p.share for p in PARSERS.values())
    for name, parser in PARSERS.items():
        count = -(-options.examples * parser.share // shares)
        if options.only not in name:
            continue
        stderr, sys.stderr = sys.stderr, io.StringIO()  # notes, a line for each damaged stage
        try:
            seconds, slowest = fuzz(name, count, options.seed)
        finally:
            sys.stderr = stderr
        total += count
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        sys.stdout.write(
            f"{name:36s} {count:7,d} inputs {seconds:6.0f} s, slowest {slowest:.2f} s, "
            f"peak memory so far {peak:,.0f} MB\n"
        )
        sys.stdout.flush()
    sys.stdout.write(f"{total:,d} inputs, none crashed\n")
    return 0


if __name__ == "__main__":
    sys.exit(command())
