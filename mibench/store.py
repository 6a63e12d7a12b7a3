"""An input-addressed store of finished stages, and the work that fills it.

A stage's key hashes everything that decides its result, so a finished stage is never
recomputed and an unfinished one is found again. Nothing appears under its final name until
it is whole: a stage is written aside, synced and renamed. Nothing in a store is unpickled.

    <root>/<kind>/<key>/            payload.safetensors payload.json spec.json meta.json
    <root>/<kind>/<key>.partial/    state.bin, what an interrupted stage had reached
    <root>/<kind>/<key>.lease       who works on it
"""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from mibench import seeding
from mibench.spec import Json, canonical, fingerprint

Payload: TypeAlias = dict[str, Any]
Report: TypeAlias = Callable[[int, int, str], None]

LEASE_SECONDS = 60.0
"""After so long without a heartbeat a holder counts as gone."""
SAVE_SECONDS = 10.0
"""A stage's state is saved at the first opportunity after so long."""


# Packing ----------------------------------------------------------------------------------


def pack(value: object) -> tuple[dict[str, Tensor], Json]:
    """Splits nested dicts, lists and tuples into named tensors and plain JSON.

    Tensors get dotted names and are made contiguous; one that occurs twice is stored once.
    A generator is stored as its state.

    Raises:
        TypeError: If a leaf is neither a tensor, a generator nor a JSON scalar.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[tuple[object, ...], str] = {}
    alive: list[Tensor] = []  # an address names a tensor only as long as the tensor lives

    def leaf(t: Tensor, path: str) -> Json:
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
        if isinstance(v, tuple | list):
            items: Json = [walk(x, f"{path}.{i}") for i, x in enumerate(v)]
            return {"$tuple": items} if isinstance(v, tuple) else items
        if isinstance(v, Mapping):
            inner: dict[str, Json] = {str(k): walk(x, f"{path}.{k}") for k, x in v.items()}
            return {"$int": inner} if v and all(isinstance(k, int) for k in v) else inner
        raise TypeError(f"{path or 'the value'}: {type(v).__qualname__} cannot be stored")

    tree = walk(value, "")
    return tensors, tree


def unpack(tensors: Mapping[str, Tensor], tree: Json) -> Any:  # noqa: ANN401
    """Returns the nested value that :func:`pack` split; generators come back as states."""
    if isinstance(tree, list):
        return [unpack(tensors, v) if isinstance(v, list | dict) else v for v in tree]
    if isinstance(tree, dict):
        return _restored(tensors, {k: unpack(tensors, v) for k, v in tree.items()})
    return tree


def _restored(tensors: Mapping[str, Tensor], found: dict[str, Any]) -> Any:  # noqa: ANN401
    """Returns what an object stands for whose values are restored already."""
    if "$tensor" in found:
        return tensors[found["$tensor"]]
    if "$tuple" in found:
        return tuple(found["$tuple"])
    if "$int" in found:
        return {int(k): v for k, v in found["$int"].items()}
    return found


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
        gradients: Images that it took the slope of the target's answers at.
    """

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
        self.steps = self.queries = self.gradients = 0
        self._path = folder and folder / "state.bin"
        self._report = report
        self._every = every
        self._saved = time.monotonic()
        self._begun = time.monotonic()

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
        if self._path is None or not self._path.exists():
            return None
        data = self._path.read_bytes()
        if hashlib.sha256(data[32:]).digest() != data[:32]:  # damaged: of no use
            self._path.unlink()
            return None
        tensors = read_tensors(data[32:])
        tree = json.loads(bytes(tensors.pop("$json").tolist()))
        saved: Payload = unpack(tensors, tree)
        self.steps, self.queries, self.gradients = saved.get("budget", (0, 0, 0))
        self._begun -= saved.get("seconds", 0.0)
        torch.set_rng_state(saved["cpu"])
        if saved["cuda"]:
            torch.cuda.set_rng_state_all(saved["cuda"])
        state: Payload = saved["state"]
        return state

    def save(self, state: Callable[[], Payload]) -> None:
        """Replaces the saved state, atomically, if the last one is old enough.

        Args:
            state: Called only when it is time; nested dicts of tensors, generators and
                scalars.
        """
        if self._path is None or time.monotonic() - self._saved < self._every:
            return
        cuda = torch.cuda.get_rng_state_all() if self.device.type == "cuda" else []
        tensors, tree = pack(
            {
                "state": state(),
                "budget": [self.steps, self.queries, self.gradients],
                "seconds": self.seconds,
                "cpu": torch.get_rng_state(),
                "cuda": cuda,
            }
        )
        text = bytearray(json.dumps(tree).encode())
        tensors["$json"] = torch.frombuffer(text, dtype=torch.uint8)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        data = write_tensors(tensors)
        _write(fresh, hashlib.sha256(data).digest() + data)
        fresh.replace(self._path)
        _sync(self._path.parent)
        self._saved = time.monotonic()

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tells the outside how far the stage is."""
        if self._report is not None:
            self._report(done, total, note)


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
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        versions = {"version": self.version, "streams": seeding.VERSION}
        return {"kind": self.kind, **versions, **fields}

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

        found = {s.key: s for f in dataclasses.fields(self) for s in stages(getattr(self, f.name))}
        return tuple(found.values())

    def describe(self) -> str:
        """Returns a short name for progress lines."""
        return self.kind

    @abstractmethod
    def compute(self, load: Callable[["Stage"], Payload], work: Work) -> Payload:
        """Returns the payload: nested dicts of tensors and JSON scalars."""


class Store:
    """Finished stages under ``root``, one folder each."""

    def __init__(self, root: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.root = root
        self._lease_seconds = lease_seconds

    def path(self, stage: Stage) -> Path:
        """Returns where the finished stage is, or would be."""
        return self.root / stage.kind / stage.key

    def state(self, stage: Stage) -> str:
        """Returns "done", "partial" or "missing"."""
        if (self.path(stage) / "meta.json").exists():
            return "done"
        return "partial" if self._partial(stage).exists() else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → "done", "partial" or "missing", by one look at each kind's folder.

        A folder under its final name is whole, so its name is enough; a network file system
        takes as long for a look at one file as for a whole list of names.
        """
        names: dict[str, set[str]] = {}
        found = {}
        for stage in stages:
            if stage.kind not in names:
                with suppress(FileNotFoundError):
                    names[stage.kind] = {e.name for e in os.scandir(self.root / stage.kind)}
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
        """Returns a finished stage's payload.

        Raises:
            KeyError: If the stage is not done.
            ValueError: If a file differs from what was written.
        """
        path = self.path(stage)
        if self.state(stage) != "done":
            raise KeyError(f"{stage.kind} {stage.key} is {self.state(stage)}")
        files = {n: (path / n).read_bytes() for n in ("payload.safetensors", "payload.json")}
        expected = json.loads((path / "meta.json").read_bytes())["sha256"]
        for name, data in files.items():
            if hashlib.sha256(data).hexdigest() != expected[name]:
                raise ValueError(f"{path / name} is damaged; delete {path} and run again")
        restored = partial(_restored, read_tensors(files["payload.safetensors"]))
        payload: Payload = json.loads(files["payload.json"], object_hook=restored)
        return payload

    def meta(self, stage: Stage) -> dict[str, Any]:
        """Returns a finished stage's seconds, device, threads and versions."""
        meta: dict[str, Any] = json.loads((self.path(stage) / "meta.json").read_text())
        return meta

    def complete(
        self,
        stage: Stage,
        device: str = "cpu",
        data: Path | None = None,
        report: Report | None = None,
    ) -> bool:
        """Computes and commits the stage unless it is done; its needs must be done.

        Returns:
            Whether anything was computed here.
        """
        with self._lease(stage) as ours:
            if not ours or self.state(stage) == "done":
                return False
            partial = self._partial(stage)
            partial.mkdir(parents=True, exist_ok=True)
            resumed = (partial / "state.bin").exists()
            work = Work(partial, device, data, report)
            _forget_peak(work.device)
            payload = stage.compute(self.load, work)
            meta = {
                "seconds": round(work.seconds, 3),
                "resumed": resumed,
                "device": _device_name(work.device),
                "peak_memory_bytes": _peak(work.device),
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
            }
            self._commit(stage, payload, meta)
            shutil.rmtree(partial, ignore_errors=True)
            return True

    def _commit(self, stage: Stage, payload: Payload, meta: dict[str, Any]) -> None:
        """Makes the stage visible; if somebody else was first, theirs stays."""
        tensors, tree = pack(payload)
        fields = {f.name: getattr(stage, f.name) for f in dataclasses.fields(stage)}
        files = {
            "payload.safetensors": write_tensors(tensors),
            "payload.json": _dump(tree),
            "spec.json": _dump(canonical({"version": stage.version, **fields})),
        }
        meta["sha256"] = {n: hashlib.sha256(data).hexdigest() for n, data in files.items()}
        aside = self.path(stage).with_suffix(f".partial.{uuid.uuid4().hex[:8]}")
        aside.mkdir(parents=True)
        for name, data in (files | {"meta.json": _dump(meta)}).items():
            _write(aside / name, data)
        _sync(aside)
        try:
            aside.rename(self.path(stage))
        except OSError:
            shutil.rmtree(aside)
            if self.state(stage) != "done":
                raise
        _sync(aside.parent)

    def _partial(self, stage: Stage) -> Path:
        return self.path(stage).with_suffix(".partial")

    # A lease keeps two processes from computing the same stage. It is a courtesy: were two
    # to hold it after all, both would write the same bits and one commit would be dropped.

    @contextmanager
    def _lease(self, stage: Stage) -> Iterator[bool]:
        """Waits until the stage is done by someone else (False) or ours to do (True)."""
        path = self.path(stage).with_suffix(".lease")
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        while True:
            if self.state(stage) == "done":
                yield False
                return
            try:
                with path.open("x") as file:
                    file.write(mine)
                break
            except FileExistsError:
                if self._abandoned(path):
                    with suppress(FileNotFoundError):
                        path.rename(gone := path.with_suffix(f".gone.{uuid.uuid4().hex[:8]}"))
                        gone.unlink()
                else:
                    time.sleep(0.1)
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._lease_seconds / 6):
                with suppress(OSError):
                    os.utime(path)

        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield True
        finally:
            stop.set()
            heart.join()
            with suppress(OSError):
                if path.read_text() == mine:
                    path.unlink()

    def held(self, stage: Stage) -> bool:
        """Returns whether somebody computes the stage at this moment."""
        path = self.path(stage).with_suffix(".lease")
        return path.exists() and not self._abandoned(path)

    def _abandoned(self, path: Path) -> bool:
        """Whether the holder is dead (on this machine) or silent for too long."""
        try:
            host, pid, *_ = path.read_text().split()
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            return False
        except ValueError:  # written a moment ago, or cut short by a crash
            return time.time() - path.stat().st_mtime > 5
        if host == socket.gethostname() and not _alive(int(pid)):
            return True
        return age > self._lease_seconds


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
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
    return f"{device.type} {platform.machine()}"
