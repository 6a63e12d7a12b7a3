"""At which precision networks compute: in float32, or with their large products in bf16.

Mixed precision: weights, optimiser states and all that a network returns stay float32; what lies
between its layers, and what convolutions and products multiply, is rounded to bf16. None of this
enters a key: a key names the computation, not the machine.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import tree_map_only

from mibench.convolution import InBf16
from mibench.machine import device_name, machine

FLOAT32, BF16, AUTO = "float32", "bf16", "auto"
PRECISIONS = (FLOAT32, BF16)
CHOICES = (*PRECISIONS, AUTO)
PAYS = 1.5
"""How many times as fast as float32 a product must be in bf16 for "auto" to choose it."""
DECISIONS = "precision.json"
"""What a store keeps of the choices of "auto"."""

F = TypeVar("F", bound=Callable[..., Any])
_current: ContextVar[str] = ContextVar("precision", default=FLOAT32)


def current() -> str:
    """Returns the precision at which networks compute here."""
    return _current.get()


@contextmanager
def at(precision: str) -> Iterator[None]:
    """Lets networks compute at a precision inside the block."""
    token = _current.set(precision)
    try:
        yield
    finally:
        _current.reset(token)


def mixed(method: F) -> F:
    """Returns a method of a network that computes at the current precision.

    What it returns is float32 whatever the precision. Its first argument says on which device. A
    network whose class says ``channels_last`` gets maps in that layout where products are in bf16,
    except under ``torch.func``, which knows neither that layout nor the convolutions for CPUs.
    Losses, statistics, log-densities and all that needs more digits belong outside of it.
    """

    @wraps(method)
    def run(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if current() == FLOAT32:
            return method(self, x, *args, **kwargs)
        transformed = is_functorch_wrapped_tensor(x)
        if getattr(self, "channels_last", False) and x.dim() == 4 and not transformed:
            x = x.contiguous(memory_format=torch.channels_last)
        if torch.is_autocast_enabled(x.device.type):  # inside another network
            return method(self, x, *args, **kwargs)
        here = InBf16() if x.device.type == "cpu" and not transformed else nullcontext()
        with torch.autocast(x.device.type, torch.bfloat16), here:
            result = method(self, x, *args, **kwargs)
        return tree_map_only(Tensor, _widened, result)

    return run  # type: ignore[return-value]


def laid_out(network: torch.nn.Module) -> None:
    """Lays a network's weights out in memory as its maps are here, before it is trained."""
    if current() == BF16 and getattr(network, "channels_last", False):
        network.to(memory_format=torch.channels_last)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def decided(store: Path, device: str, threads: int) -> str:
    """Returns what "auto" means for a store on this kind of machine, from now on.

    Times a product in both precisions, once for each store and kind of machine.
    """
    kind = _kind(torch.device(device))
    decisions: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        decisions = json.loads((store / DECISIONS).read_text())
    with suppress(LookupError, TypeError):
        if (precision := decisions[kind]["precision"]) in PRECISIONS:
            return str(precision)
    ratio = gain(torch.device(device), threads)
    precision = BF16 if ratio >= PAYS else FLOAT32
    decisions = decisions if isinstance(decisions, dict) else {}
    decisions[kind] = {"precision": precision, "times_as_fast": round(ratio, 2)}
    fresh = store / f"{DECISIONS}.{time.time_ns()}"
    fresh.write_text(json.dumps(decisions, indent=1) + "\n")
    fresh.replace(store / DECISIONS)
    return precision


def _kind(device: torch.device) -> str:
    """Returns what decides how fast products are here."""
    if device.type != "cpu":
        return device_name(device)
    kernels = machine()
    return f"{kernels['processor']}, oneDNN {kernels['onednn']}"


def gain(device: torch.device, threads: int, rounds: int = 5) -> float:
    """Returns how many times as fast a product is in bf16, the median over rounds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        size = 1024 if device.type == "cpu" else 4096
        wide = torch.randn(size, size, generator=torch.Generator().manual_seed(0)).to(device)
        narrow = wide.bfloat16()
        for x in (wide, narrow):
            _seconds(x)
        return statistics.median(_seconds(wide) / _seconds(narrow) for _ in range(rounds))
    finally:
        torch.set_num_threads(before)


def _seconds(x: Tensor) -> float:
    """Returns the seconds that a product takes, from an idle device on."""
    begun = time.perf_counter()
    (x @ x)[0, 0].item()
    return time.perf_counter() - begun
