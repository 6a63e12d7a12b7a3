"""An input-addressed store of finished stages, and the work that fills it.

A stage's key hashes everything that decides its result, so a finished stage is never
recomputed and an unfinished one is found again. Nothing appears under its final name until
it is whole: a stage is written aside, synced and renamed. Nothing in a store is unpickled.
What is read is checked first; what is not as it was written is moved aside and made anew.

    <root>/<kind>/<key>/            payload.safetensors payload.json spec.json meta.json
    <root>/<kind>/<key>.partial/    state.bin, what an interrupted stage had reached
    <root>/<kind>/<key>.lease       who works on it
    <root>/<kind>/<key>.failed      why it failed the last time
    <root>/quarantine/<kind>/       stages that were damaged
"""

import errno
import hashlib
import json
import os
import platform
import shutil
import socket
import stat
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from mibench import __version__, seeding
from mibench.machine import machine
from mibench.spec import Json, canonical, field_values, fingerprint, hashed

Payload: TypeAlias = dict[str, Any]
State: TypeAlias = dict[str, Any]
"""Name → tensor, generator, plain value, or what has a state dict; what a loop changes."""
Report: TypeAlias = Callable[[int, int, str], None]

LEASE_SECONDS = 60.0
"""After so long without a heartbeat a holder counts as gone."""
SAVE_SECONDS = 10.0
"""A stage's state is saved at the first opportunity after so long."""
EMPTY_LEASE_SECONDS = 2.0
"""A lease without a holder's name, which a crash leaves, is taken over after so long."""
QUARANTINE = "quarantine"
FILES = ("payload.safetensors", "payload.json", "spec.json")
META = frozenset(
    {"seconds", "resumed", "device", "threads", "versions", "queries", "peak_memory_bytes",
     "sha256"}
)  # fmt: skip
"""What the meta.json of a stage holds that was written before they had a digest of their own."""
LARGE = 2**26
"""Bytes of tensors that are read whole at most; more are mapped into memory."""
LONG = 16
"""So many numbers make a list long."""
MENDED = 10
"""So often a stage starts over because something that it needs turned out damaged."""


_NONSENSE = (
    SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
    RuntimeError,
)  # fmt: skip
"""What reading a file raises that was forged with the right digest."""


class DamagedError(ValueError):
    """A finished stage is not what was written under its name."""

    def __init__(self, sentence: str, stage: "Stage | None" = None) -> None:
        super().__init__(sentence)
        self.stage = stage


class AbsentError(KeyError):
    """A stage that is needed is not in the store."""

    def __init__(self, sentence: str, stage: "Stage") -> None:
        super().__init__(sentence)
        self.stage = stage


class StoreError(OSError):
    """The store cannot be read or written: nothing that follows could be kept."""


def tell(sentence: str) -> None:
    """Says something that people should know, on stderr."""
    with suppress(OSError, AttributeError):  # it is full, or closed: the work goes on
        sys.stderr.write(f"note: {sentence}\n")
        sys.stderr.flush()


_remarks: ContextVar[list[str] | None] = ContextVar("remarks", default=None)


def remark(sentence: str, example: str = "") -> None:
    """Says how the running stage was computed otherwise than usual; its meta.json keeps it.

    Args:
        sentence: What is to be known beside every result that rests on the stage.
        example: What is said now and not kept, such as names of private files.
    """
    tell(f"{sentence} {example}".rstrip())
    if (kept := _remarks.get()) is not None:
        kept.append(sentence)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turns what the file system says of a write into one sentence that ends the run."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"cannot write to {place} ({error.strerror or error}); what is finished is kept: "
            "see to it and run the same command again"
        ) from error


def _unreadable(place: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot read {place} ({error.strerror or error}); what is finished is kept: "
        "see to it and run the same command again"
    )


# Packing ----------------------------------------------------------------------------------


def pack(value: object) -> tuple[dict[str, Tensor], Json]:
    """Splits nested dicts, lists and tuples into named tensors and plain JSON.

    Tensors get dotted names and are made contiguous; one that occurs twice is stored once.
    A generator is stored as its state, a long list of plain numbers as a tensor: JSON would
    take several times the room, and most of the time to read a record.

    Raises:
        TypeError: If a leaf is neither a tensor, a generator nor a JSON scalar.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    alive: list[Tensor] = []  # an address names a tensor only as long as the tensor lives

    def leaf(t: Tensor, path: str) -> dict[str, Json]:
        alive.append(t)
        where = (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) if t.numel() else (id(t),)
        if where not in names:
            name = path.lstrip(".") or "value"
            while name in tensors:
                name += "~"
            names[where] = name
            tensors[name] = t.detach().cpu().contiguous().clone()
        return {"$tensor": names[where]}

    def walk(v: object, path: str) -> Json:
        if isinstance(v, Tensor):
            return leaf(v, path)
        if isinstance(v, torch.Generator):
            return leaf(v.get_state(), path)
        if v is None or isinstance(v, bool | int | float | str):
            return v
        if isinstance(v, list) and (numbers := _numbers(v)) is not None:
            return {"$list": leaf(numbers, path)["$tensor"]}
        if isinstance(v, tuple | list):
            items: Json = [walk(x, f"{path}.{i}") for i, x in enumerate(v)]
            return {"$tuple": items} if isinstance(v, tuple) else items
        if isinstance(v, Mapping):
            inner: dict[str, Json] = {str(k): walk(x, f"{path}.{k}") for k, x in v.items()}
            return {"$int": inner} if v and all(isinstance(k, int) for k in v) else inner
        raise TypeError(f"{path or 'the value'}: {type(v).__qualname__} cannot be stored")

    tree = walk(value, "")
    return tensors, tree


def _numbers(values: list[Any]) -> Tensor | None:
    """Returns a long list of floats, or of ints, as 64-bit numbers; None if it is another."""
    if len(values) >= LONG and (kinds := set(map(type, values))) in ({float}, {int}):
        with suppress(ValueError, OverflowError, RuntimeError):  # ints of more than 64 bits
            return torch.tensor(values, dtype=torch.float64 if float in kinds else torch.int64)
    return None


def unpack(tensors: Mapping[str, Tensor], tree: Json) -> Any:  # noqa: ANN401
    """Returns the nested value that :func:`pack` split; generators come back as states."""
    if isinstance(tree, list):
        return [unpack(tensors, v) if isinstance(v, list | dict) else v for v in tree]
    if isinstance(tree, dict):
        return _restored(tensors, {k: unpack(tensors, v) for k, v in tree.items()})
    return tree


def _restored(tensors: Mapping[str, Tensor], found: dict[str, Any]) -> Any:  # noqa: ANN401
    """Returns what an object stands for whose values are restored already."""
    if len(found) != 1:  # as most are
        return found
    if "$tensor" in found:
        return tensors[found["$tensor"]]
    if "$list" in found:
        return tensors[found["$list"]].tolist()
    if "$tuple" in found:
        return tuple(found["$tuple"])
    if "$int" in found:
        return {int(k): v for k, v in found["$int"].items()}
    return found


def _sync(path: Path) -> None:
    """Returns when what was written to a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(path: Path) -> None:
    """Makes a folder that others may make, and remove, at the same time."""
    for chance in range(100):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it was there, and is no folder, or is gone by now
            if chance == 99 or os.path.lexists(path):
                raise
        else:
            return


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files and returns when they and the folder are on the disk.

    All are written before the first sync, which on most file systems takes the others along.
    """
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for path in (*(folder / name for name in files), folder):
        _sync(path)


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


# Stages and their work --------------------------------------------------------------------


class Work:
    """What a long stage is handed: its saved state, its progress, its device.

    Attributes:
        device: Where to compute.
        data: Folder of raw data sets.
        steps: Optimisation steps that an attack took.
        queries: Answers that an attack or a prior had of the target.
        gradients: Images at which it took the gradient of the target's answers.
        surrogate_gradients: The same of networks that imitate the target.
    """

    COUNTS = ("steps", "queries", "gradients", "surrogate_gradients")

    def __init__(
        self,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        data: Path | None = None,
        report: Report | None = None,
        every: float = SAVE_SECONDS,
    ) -> None:
        self.device = torch.device(device)
        self.data = data or Path("data")
        self.steps = self.queries = self.gradients = self.surrogate_gradients = 0
        self._part = ""  # the path of the running part; the whole has none
        self._states: dict[str, Payload] | None = None  # of the parts that have begun
        self._ended: dict[str, Payload] = {}
        self._numbers: dict[str, int] = {}  # of the parts of each part
        self._path = folder and folder / "state.bin"
        self._report = report
        self._every = every
        self._saved = time.monotonic()
        self._begun = time.monotonic()
        self._at = self._safe = self._unsaved = (0, 0)

    @property
    def seconds(self) -> float:
        """Seconds worked up to now, those before the last save of an earlier run included."""
        return time.monotonic() - self._begun

    def __deepcopy__(self, memo: dict[int, object]) -> "Work":
        """Returns this very one: copies of what holds it work for the same stage."""
        return self

    def load(self) -> Payload | None:
        """Returns the last saved state, or None on a fresh start.

        The global generators (for layers that draw on their own) continue where they were.
        """
        if (here := self._begun_parts().get(self._part)) is None:
            return None
        self._put_back(here)
        state: Payload = here["state"]
        return state

    def part(self, name: str, run: Callable[[], Payload]) -> Payload:
        """Returns what ``run`` returns; once it has ended, it is not run again when resumed.

        What it saves and loads is a state of its own, in the same file. Counters and global
        generators are then as they were at its end; what else it changes must be in its result.
        What is done between two parts is done again, so it must be the same each time.

        Args:
            name: Of the part; parts are told apart by name and order.
            run: Does the work; nested dicts of tensors and scalars come back.
        """
        states, outer = self._begun_parts(), self._part
        self._numbers[outer] = self._numbers.get(outer, 0) + 1
        path = f"{outer}/{self._numbers[outer]} {name}"
        if path not in self._ended:
            self._part = path
            try:
                result = run()
            finally:
                self._part = outer
            states.pop(path, None)
            self._ended[path] = {"state": result, **self._standing()}
        self._put_back(self._ended[path])
        ended: Payload = self._ended[path]["state"]
        return ended

    def _standing(self) -> Payload:
        """Returns the counters, and the global generators, for layers that draw on their own."""
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        counts = [getattr(self, name) for name in self.COUNTS]
        return {"counts": counts, "cpu": torch.get_rng_state(), "cuda": cuda}

    def _put_back(self, standing: Payload) -> None:
        """Sets what :meth:`_standing` returned."""
        for name, count in zip(self.COUNTS, standing["counts"], strict=True):
            setattr(self, name, count)
        torch.set_rng_state(standing["cpu"])
        if standing["cuda"]:
            torch.cuda.set_rng_state_all(standing["cuda"])

    def _begun_parts(self) -> dict[str, Payload]:
        """Returns the states of the parts that have begun; reads, once, what was saved."""
        if self._states is not None:
            return self._states
        self._states = {}
        if self._path is None:
            return self._states
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return self._states
        try:
            saved = self._read(data)
        except ValueError as error:
            tell(f"{self._path} {error}: the stage starts over")
            self._path.unlink(missing_ok=True)
            return self._states
        self._at = self._safe = self._unsaved = saved["at"]
        self._begun -= saved["seconds"]
        self._states, self._ended = saved["states"], saved["ended"]
        return self._states

    @classmethod
    def _read(cls, data: bytes) -> Payload:
        """Returns what :meth:`save` wrote.

        Raises:
            ValueError: If it is something else.
        """
        if hashlib.sha256(data[32:]).digest() != data[:32]:
            raise ValueError("is damaged")
        try:
            tensors = read_tensors(data[32:])
            tree = json.loads(bytes(tensors.pop("$json").tolist()))
            saved: Payload = dict(unpack(tensors, tree))
            other = saved["versions"] != _versions()
            done, total = map(int, saved["at"])
            saved |= {"at": (done, total), "seconds": float(saved["seconds"])}
            for part in [*saved["states"].values(), *saved["ended"].values()]:
                torch.Generator().set_state(part["cpu"])
                part |= {"counts": list(map(int, part["counts"])), "cuda": list(part["cuda"])}
                if not isinstance(part["state"], dict) or len(part["counts"]) != len(cls.COUNTS):
                    raise TypeError
        except _NONSENSE:
            raise ValueError("is no state") from None
        if other:
            raise ValueError("was saved under other versions of torch or mibench")
        return saved

    def save(self, state: Callable[[], Payload]) -> None:
        """Replaces the saved state, atomically, if the last one is old enough.

        Args:
            state: Called only when it is time; nested dicts of tensors, generators and
                scalars.
        """
        if self._path is None or time.monotonic() - self._saved < self._every:
            return
        states = self._begun_parts()
        states.pop(self._part, None)  # which may be large
        tensors, tree = pack(
            {
                "states": states | {self._part: {"state": state(), **self._standing()}},
                "ended": self._ended,
                "seconds": self.seconds,
                "at": self._at,
                "versions": _versions(),
            }
        )
        text = bytearray(json.dumps(tree).encode())
        tensors["$json"] = torch.frombuffer(text, dtype=torch.uint8)
        data = write_tensors(tensors)
        fresh = self._path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        with _writing(self._path.parent):
            try:
                _make_folder(self._path.parent)
                _write(fresh, hashlib.sha256(data).digest() + data)
                fresh.replace(self._path)
                _sync(self._path.parent)
            except FileNotFoundError:  # another has finished the stage and cleared up
                return
            except OSError:
                with suppress(OSError):
                    fresh.unlink()
                raise
        self._saved = time.monotonic()
        self._unsaved = (-1, -1)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tells the outside how far the stage is."""
        self._at = (done, total)
        if self._unsaved == (-1, -1):  # a state is saved just before this is told
            self._safe = self._unsaved = self._at
        if self._report is not None:
            self._report(done, total, note)

    def whereabouts(self) -> str:
        """Returns how far the stage came and from where it will go on, in words."""
        (done, total), (safe, _) = self._at, self._safe
        if not total:
            return "at its beginning"
        kept = f"its last good state, of {safe}, is kept" if safe else "no state was saved yet"
        return f"after {done} of {total}; {kept}"


def _versions() -> dict[str, str]:
    return {"mibench": __version__, "torch": torch.__version__}


def frozen(state: State) -> Payload:
    """Returns a state as what can be saved."""
    return {
        name: v.state_dict() if hasattr(v, "load_state_dict") else v for name, v in state.items()
    }


def restore(state: State, saved: Payload) -> None:
    """Puts saved values into a state: into its tensors, modules and optimisers in place.

    Raises:
        ValueError: If the names are others: the loop is not the one that was saved.
    """
    if state.keys() != saved.keys():
        raise ValueError(
            f"the saved state holds {', '.join(saved)}, this loop has {', '.join(state)}: "
            "an attack's loops must come in the same order when it resumes"
        )
    for name, value in state.items():
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(saved[name])
        elif isinstance(value, torch.Generator):
            value.set_state(saved[name])
        elif isinstance(value, Tensor):
            value.data.copy_(saved[name])
        else:
            state[name] = saved[name]


def check_finite(value: Tensor, what: str) -> None:
    """Stops a run that has diverged.

    Raises:
        FloatingPointError: If ``value`` has a NaN or an infinity.
    """
    if not bool(value.isfinite().all()):
        raise FloatingPointError(f"{what} is not finite")


@dataclass(frozen=True)
class Stage(ABC):
    """One unit of resumable work; a frozen dataclass of specs and of the stages it needs."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @cached_property
    def key(self) -> str:
        """The stage's name, known before anything has run."""
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the stage's result; its key is the fingerprint of this."""
        versions = {"version": self.version, "streams": seeding.VERSION}
        return {"kind": self.kind, **versions, **field_values(self)}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the key out, so that another process finds it from what it sees itself."""
        return {k: v for k, v in vars(self).items() if k not in ("key", "needs")}

    def __canonical__(self) -> dict[str, str]:
        """Returns what stands for this stage in the keys of those that need it."""
        return {"is": self.kind, "key": self.key}

    @cached_property
    def needs(self) -> tuple["Stage", ...]:
        """The stages among the fields, whose payloads ``compute`` may load."""

        def stages(v: object) -> Iterator[Stage]:
            if isinstance(v, Stage):
                yield v
            elif isinstance(v, tuple):
                for x in v:
                    yield from stages(x)

        found = {s.key: s for value in field_values(self).values() for s in stages(value)}
        return tuple(found.values())

    def describe(self) -> str:
        """Returns a short name for progress lines."""
        return self.kind

    @abstractmethod
    def compute(self, load: Callable[["Stage"], Payload], work: Work) -> Payload:
        """Returns the payload: nested dicts of tensors and JSON scalars."""


def read_stage(path: Path) -> tuple[dict[str, bytes | None], dict[str, Any]]:
    """Returns the files of a finished stage, and its meta, if all is as it was written.

    None stands for tensors of more than ``LARGE`` bytes, which are hashed without being held,
    and once a process.

    Args:
        path: The stage's folder, ``<root>/<kind>/<key>``.

    Raises:
        DamagedError: If a file is missing or changed, or the folder's name is not the hash of
            the spec that it holds.
        OSError: If a file is there and cannot be read.
    """
    where = str(path)
    try:
        if not stat.S_ISDIR(os.lstat(where).st_mode):
            raise DamagedError(f"{path} is no folder")
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path} is no folder") from None
    files = {name: _read_or_hash(f"{where}/{name}") for name in FILES}
    text = _read_plain(f"{where}/meta.json")
    try:
        meta = json.loads(text)
        digests = meta["sha256"]
        sealed = meta.pop("digest") if "digest" in meta else None
        own = meta.pop("stage", None) if sealed is not None else None
        if digests.keys() != set(FILES) or (sealed is None and meta.keys() - META):
            raise ValueError
        if sealed is not None:  # of the text without its line, as it was before that was put in
            first, _, last = text.partition(f' "digest": "{sealed}",\n'.encode())
            if _digest(first + last) != sealed:
                raise ValueError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{path / 'meta.json'} is damaged") from None
    for name, (_, digest) in files.items():
        if digest != digests[name]:
            raise DamagedError(f"{path / name} is damaged")
    if own is None:  # as it was before the name was put in
        try:
            spec = json.loads(files["spec.json"][0] or b"")
            key = hashed({"kind": path.parent.name, "streams": seeding.VERSION, **spec})
            own = f"{path.parent.name}/{key}"
        except (ValueError, TypeError, RecursionError):
            pass
    if own != f"{path.parent.name}/{path.name}":
        raise DamagedError(f"{path} holds another stage, or one of an older version")
    return {name: data for name, (data, _) in files.items()}, meta


def read_payload(path: Path) -> tuple[Payload, dict[str, Any]]:
    """Returns a finished stage's payload and its meta.

    Bytes and other integers of more than ``LARGE`` bytes of tensors are mapped, not read: a page
    of the file takes memory once it is used.

    Args:
        path: The stage's folder.

    Raises:
        DamagedError: If it is not what was written.
        OSError: If a file is there and cannot be read.
    """
    files, meta = read_stage(path)
    try:
        text, packed = files["payload.json"] or b"", files["payload.safetensors"]
        tensors = _mapped(path) if packed is None else read_tensors(packed)
        restored = partial(_restored, tensors)
        hook = restored if b'"$' in text else None  # which takes its time
        payload: Payload = dict(json.loads(text, object_hook=hook))
    except _NONSENSE as error:
        raise DamagedError(f"{path} holds no payload") from error
    return payload, meta


def _mapped(path: Path) -> dict[str, Tensor]:
    """Returns a stage's tensors; those of numbers with a fraction in memory.

    Where a tensor begins decides the last bits of what is computed from fractions, and those
    of a file begin anywhere.
    """
    try:
        with safe_open(path / "payload.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DamagedError(f"{path / 'payload.safetensors'} is missing") from None
    return {k: t.clone() if t.is_floating_point() else t for k, t in tensors.items()}


def seal(stage: "Stage", files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bytes:
    """Returns a stage's meta.json, by whose digests :func:`read_stage` knows the stage whole."""
    told = {
        **meta,
        "stage": f"{stage.kind}/{stage.key}",
        "sha256": {n: _digest(data) for n, data in files.items()},
    }
    return _dump({**told, "digest": _digest(_dump(told))})


@contextmanager
def _plain(path: Path | str) -> Iterator[tuple[int, os.stat_result]]:
    """Opens a file.

    Raises:
        DamagedError: If it is missing or no plain file: a link, or a pipe to wait at.
        OSError: If it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise DamagedError(f"{path} is no plain file") from None
        raise
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise DamagedError(f"{path} is no plain file")
        yield handle, info
    finally:
        os.close(handle)


def _read_plain(path: Path | str) -> bytes:
    """Returns a file's bytes; raises like :func:`_plain`."""
    with _plain(path) as (handle, info):
        return _read(handle, info.st_size)


def _read(handle: int, size: int) -> bytes:
    """Returns a file's bytes; a table of ten thousand records reads forty thousand of them."""
    if size < 2**20 and len(data := os.read(handle, 2**20)) == size:
        return data
    with open(handle, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


_hashed: dict[tuple[int, ...], str] = {}
"""Device, inode, size and times of large files that this process has hashed → their sha256."""


def _read_or_hash(path: str) -> tuple[bytes | None, str]:
    """Returns a file's bytes, or None of large tensors, and its sha256; raises like _plain.

    A large file is not hashed again while its inode and times stay what they were, once it was
    old enough that a change would have shown in its ctime.
    """
    begun = time.time_ns()
    with _plain(path) as (handle, info):
        if info.st_size <= LARGE or not path.endswith(".safetensors"):
            data = _read(handle, info.st_size)
            return data, _digest(data)
        mark = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        if mark not in _hashed:
            with open(handle, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if info.st_ctime_ns > begun - 2 * 10**9:
                return None, digest
            _hashed[mark] = digest
        return None, _hashed[mark]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Store:
    """Finished stages under ``root``, one folder each."""

    def __init__(self, root: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.root = root
        self._lease_seconds = lease_seconds

    def path(self, stage: Stage) -> Path:
        """Returns where the finished stage is, or would be."""
        return self.root / stage.kind / stage.key

    def state(self, stage: Stage) -> str:
        """Returns "done", "partial" or "missing"; reads nothing."""
        if (self.path(stage) / "meta.json").exists():
            return "done"
        return "partial" if self._partial(stage).exists() else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → "done", "partial" or "missing", by one look at each kind's folder.

        A folder under its final name is whole, so its name is enough; a network file system
        takes as long for a look at one file as for a whole list of names.

        Raises:
            StoreError: If a folder that is there cannot be read.
        """
        names: dict[str, set[str]] = {}
        found = {}
        for stage in stages:
            if stage.kind not in names:
                folder = self.root / stage.kind
                try:
                    names[stage.kind] = {e.name for e in os.scandir(folder)}
                except (FileNotFoundError, NotADirectoryError):
                    pass
                except OSError as error:
                    raise _unreadable(folder, error) from error
            there = names.setdefault(stage.kind, set())
            found[stage.key] = (
                "done"
                if stage.key in there
                else "partial"
                if f"{stage.key}.partial" in there
                else "missing"
            )
        return found

    def load(self, stage: Stage) -> Payload:
        """Returns a finished stage's payload; raises as :meth:`read` does."""
        return self.read(stage)[0]

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        """Returns a finished stage's payload and its meta.

        Raises:
            AbsentError: If the stage is not done.
            DamagedError: If it is not what was written.
        """
        try:
            return read_payload(self.path(stage))
        except DamagedError:
            if (state := self.state(stage)) != "done":
                raise AbsentError(f"{stage.kind} {stage.key} is {state}", stage) from None
        try:  # once more: it may have been committed since, or made anew
            return read_payload(self.path(stage))
        except DamagedError as error:
            error.stage = stage
            raise

    def meta(self, stage: Stage) -> dict[str, Any]:
        """Returns a finished stage's seconds, device, threads, versions, machine and remarks."""
        meta: dict[str, Any] = json.loads((self.path(stage) / "meta.json").read_text())
        return meta

    def failed(self) -> frozenset[str]:
        """Returns the keys of the stages that failed the last time, by one look at the names."""
        try:
            return frozenset(path.stem for path in self.root.glob("*/*.failed"))
        except OSError as error:
            raise _unreadable(self.root, error) from error

    def failure(self, stage: Stage) -> str | None:
        """Returns why a stage that is not done failed the last time, if it did."""
        if self.state(stage) == "done":
            return None
        try:
            note = json.loads(_read_plain(self._failed(stage)))
            return " ".join(str(note["error"]).split())[:500]
        except DamagedError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return "it failed, and the note on why cannot be read"

    def note_failure(self, stage: Stage, why: str) -> None:
        """Keeps why a stage failed, for :meth:`failure`; a full disk is no second failure."""
        with suppress(OSError):
            self._failed(stage).parent.mkdir(parents=True, exist_ok=True)
            self._failed(stage).write_bytes(_dump({"error": why, "time": round(time.time())}))

    def set_aside(self, stage: Stage, why: str) -> None:
        """Moves what lies under a stage's name out of the way, and says so.

        What another process has made anew in the meantime stays.
        """
        with suppress(AbsentError, DamagedError):
            self.load(stage)
            return
        with _writing(self.root):
            moved = move_aside(self.path(stage))
        if moved is not None:
            tell(f"{why}: moved to {moved}, to be computed again")

    def set_aside_damaged(self, stages: Sequence[Stage]) -> None:
        """Sets aside the damaged ones of the finished stages that a run will read.

        Those are the ones that no other needs, and those that an unfinished one needs. What
        turns out damaged later is found when it is read.

        Args:
            stages: In an order where needs come first.
        """
        needed = {n.key for s in stages for n in s.needs}
        read: set[str] = set()
        for stage in reversed(stages):
            done = os.path.lexists(self.path(stage))  # a folder that is not whole, too
            if done and (stage.key in read or stage.key not in needed):
                try:
                    read_stage(self.path(stage))
                except DamagedError as error:
                    self.set_aside(stage, str(error))
                    done = False
            if not done:
                read |= {n.key for n in stage.needs}

    def complete(
        self,
        stage: Stage,
        device: str = "cpu",
        data: Path | None = None,
        report: Report | None = None,
    ) -> bool:
        """Computes and commits the stage unless it is done; its needs should be done.

        A need that turns out damaged, or gone, is computed again before the stage starts over.

        Returns:
            Whether anything was computed here.

        Raises:
            StoreError: If the store cannot be written.
        """
        with self._lease(stage) as ours:
            if not ours or self.state(stage) == "done":
                return False
            partial = self._partial(stage)
            with _writing(self.root):
                _make_folder(partial)
            remarks: list[str] = []
            for chance in range(MENDED + 1):
                resumed = (partial / "state.bin").exists()
                work = Work(partial, device, data, report)
                _forget_peak(work.device)
                token = _remarks.set(remarks)
                try:
                    payload = stage.compute(self.load, work)
                    break
                except (AbsentError, DamagedError) as error:
                    need = error.stage
                    if need is None or need.key == stage.key or chance == MENDED:
                        self._fail(stage, error, work)
                        raise
                    if isinstance(error, DamagedError):
                        self.set_aside(need, str(error))
                except BaseException as error:
                    self._fail(stage, error, work)
                    raise
                finally:
                    _remarks.reset(token)
                self.complete(need, device, data)
            for need in stage.needs:
                with suppress(OSError):  # it may be gone by now
                    remarks += self.meta(need).get("remarks", [])
            meta = {
                "seconds": round(work.seconds, 3),
                "resumed": resumed,
                "device": _device_name(work.device),
                "peak_memory_bytes": _peak(work.device),
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "machine": machine(),
            }
            if remarks:
                meta["remarks"] = list(dict.fromkeys(remarks))
            with _writing(self.root):
                self._commit(stage, payload, meta)
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                self._failed(stage).unlink(missing_ok=True)
            return True

    def _fail(self, stage: Stage, error: BaseException, work: Work) -> None:
        """Adds to an error how far the stage came; keeps why it failed."""
        if isinstance(error, StoreError):
            return
        who = "it" if isinstance(error, Exception) else stage.describe()
        error.add_note(f"{who} stopped {work.whereabouts()}")
        if isinstance(error, Exception):
            first = str(error).strip().split("\n")[0]
            told = f"{type(error).__name__}: {first}; it stopped {work.whereabouts()}"
            self.note_failure(stage, told)

    def _commit(self, stage: Stage, payload: Payload, meta: dict[str, Any]) -> None:
        """Makes the stage visible; if somebody else was first, theirs stays."""
        tensors, tree = pack(payload)
        files = {
            "payload.safetensors": write_tensors(tensors),
            "payload.json": _dump(tree),
            "spec.json": _dump(canonical({"version": stage.version, **field_values(stage)})),
        }
        path = self.path(stage)
        aside = path.with_suffix(f".partial.{uuid.uuid4().hex[:8]}")
        try:
            aside.mkdir(parents=True)
            _write_all(aside, files | {"meta.json": seal(stage, files, meta)})
            try:
                aside.rename(path)
            except OSError:
                if self.state(stage) == "done" or not os.path.lexists(path):
                    raise
                self.set_aside(stage, f"{path} is not whole")
                aside.rename(path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if self.state(stage) != "done":
                raise
        _sync(path.parent)

    def _failed(self, stage: Stage) -> Path:
        return self.path(stage).with_suffix(".failed")

    def _partial(self, stage: Stage) -> Path:
        return self.path(stage).with_suffix(".partial")

    # A lease keeps two processes from computing the same stage. It is a courtesy: were two
    # to hold it after all, both would write the same bits and one commit would be dropped.

    @contextmanager
    def _lease(self, stage: Stage) -> Iterator[bool]:
        """Waits until the stage is done by someone else (False) or ours to do (True)."""
        path = self.path(stage).with_suffix(".lease")
        with _writing(self.root):
            _make_folder(path.parent)
        mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        seen: tuple[str, int] | None = None
        since = time.monotonic()
        while True:
            if self.state(stage) == "done":
                yield False
                return
            with _writing(self.root):
                if _take(path, mine):
                    break
                if (now := _glimpse(path)) != seen:  # it beats, by whatever clock
                    seen, since = now, time.monotonic()
                if now is not None and self._abandoned(now[0], time.monotonic() - since):
                    _end(path, now[0])
                else:
                    time.sleep(0.1 if now else 0)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._lease_seconds / 6):
                with suppress(OSError, ValueError):
                    if path.read_text() == mine:
                        os.utime(path)

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield True
        finally:
            stop.set()
            heart.join()
            with suppress(OSError, ValueError):
                if path.read_text() == mine:
                    path.unlink()

    def held(self, stage: Stage) -> bool:
        """Returns whether somebody computes the stage at this moment."""
        seen = _glimpse(self.path(stage).with_suffix(".lease"))
        return seen is not None and not self._abandoned(seen[0], time.time() - seen[1] / 1e9)

    def _abandoned(self, holder: str, silent: float) -> bool:
        """Whether the holder is dead (on this machine) or has been silent for too long."""
        match holder.split():
            case [host, pid, _] if host == socket.gethostname() and pid.isdecimal():
                return silent > self._lease_seconds or not _alive(int(pid))
            case [_, _, _]:
                return silent > self._lease_seconds
        return silent > min(EMPTY_LEASE_SECONDS, self._lease_seconds)


def move_aside(path: Path) -> Path | None:
    """Moves ``<root>/<kind>/<name>`` to ``<root>/quarantine/<kind>``, under a new name.

    Returns:
        Where it is now; None if it was gone.
    """
    place = path.parent.parent / QUARANTINE / path.parent.name
    place.mkdir(parents=True, exist_ok=True)
    moved = place / f"{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        path.rename(moved)
    except FileNotFoundError:
        return None
    return moved


def _take(path: Path, mine: str) -> bool:
    """Makes a lease, by creating its file; returns False if there is one."""
    try:
        with path.open("x") as file:
            try:
                file.write(mine)
                file.flush()
            except OSError:
                path.unlink()
                raise
    except FileExistsError:
        return False
    return True


def _glimpse(path: Path) -> tuple[str, int] | None:
    """Returns a lease's holder and the time of its last beat; None if it is gone."""
    try:
        info = path.lstat()
        plain = stat.S_ISREG(info.st_mode) and info.st_size < 1000
        holder = path.read_bytes().decode(errors="replace") if plain else ""
    except FileNotFoundError:
        return None
    return holder, info.st_mtime_ns


def _end(path: Path, holder: str) -> None:
    """Removes a lease; if it is another's by now, it is put back."""
    gone = path.with_suffix(f".gone.{uuid.uuid4().hex[:8]}")
    with suppress(FileNotFoundError):
        path.rename(gone)
        found = _glimpse(gone)
        if found is not None and found[0] != holder:
            with suppress(OSError):  # there is a newer one, or no hard links
                os.link(gone, path)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    except OverflowError:  # no process has such a number
        return False
    return True


def _forget_peak(device: torch.device) -> None:
    """Starts :func:`_peak` anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int | None:
    """Returns the most bytes held at once: of the GPU's memory, else of the process.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":  # kernels, and so the last bits, go by its vector instructions
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {platform.machine()}"
