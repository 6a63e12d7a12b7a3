"""What a long stage is handed: its saved state, its progress, its device."""

import hashlib
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from mibench import __version__, precision
from mibench.machine import device_name, machine
from mibench.store.disk import make_folder, sync
from mibench.store.errors import tell, writing
from mibench.store.pack import Payload, pack, unpack

State: TypeAlias = dict[str, Any]
"""Name → tensor, generator, plain value, or what has a state dict; what a loop changes."""
Report: TypeAlias = Callable[[int, int, str], None]
"""Takes steps done, steps in all and a note."""

SAVE_SECONDS = 10.0
"""A stage's state is saved at the first opportunity after so long."""
NONSENSE = (
    SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError,
    RuntimeError,
)  # fmt: skip
"""What reading a file raises that was forged with the right digest."""


class Work:
    """What a long stage is handed: its saved state, its progress, its device.

    Attributes:
        device: Where to compute.
        data: Folder of raw data sets.
        steps: Optimisation steps that an attack took.
        queries: Answers that an attack or a prior had of the target.
        gradients: Images at which it took the gradient of the target's answers.
        surrogate_gradients: The same of networks that imitate the target.
        earlier: Each other :meth:`basis` on which it was computed before it was resumed.
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
        self.earlier: list[Payload] = []
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

    def basis(self) -> Payload:
        """Returns on what this process computes, besides the versions."""
        threads = torch.get_num_threads()
        return {"device": device_name(self.device), "threads": threads, "machine": machine()}

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
            name: Of the part; name and order tell one part from another.
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
        self.earlier = [basis for basis in saved["on"] if basis != self.basis()]
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
            saved["on"] = [_basis(basis) for basis in saved.get("on", [])]  # older ones lack it
            for part in [*saved["states"].values(), *saved["ended"].values()]:
                torch.Generator().set_state(part["cpu"])
                part |= {"counts": list(map(int, part["counts"])), "cuda": list(part["cuda"])}
                if not isinstance(part["state"], dict) or len(part["counts"]) != len(cls.COUNTS):
                    raise TypeError
        except NONSENSE:
            raise ValueError("is no state") from None
        if other:
            raise ValueError(
                "was saved under other versions of torch or mibench, or at another precision"
            )
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
                "on": [*self.earlier, self.basis()],
                "versions": _versions(),
            }
        )
        text = bytearray(json.dumps(tree).encode())
        tensors["$json"] = torch.frombuffer(text, dtype=torch.uint8)
        data = write_tensors(tensors)
        fresh = self._path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        with writing(self._path.parent):
            try:
                make_folder(self._path.parent)
                fresh.write_bytes(hashlib.sha256(data).digest() + data)
                sync(fresh)
                fresh.replace(self._path)
                sync(self._path.parent)
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


def _basis(saved: Payload) -> Payload:
    """Returns a saved :meth:`Work.basis`; raises one of ``NONSENSE`` if it is something else."""
    kernels = {str(name): str(value) for name, value in saved["machine"].items()}
    return {
        "device": str(saved["device"]), "threads": int(saved["threads"]), "machine": kernels,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    own = precision.current()  # older states name none, which were all in float32
    named = {"precision": own} if own != precision.FLOAT32 else {}
    return {"mibench": __version__, "torch": torch.__version__, **named}


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
