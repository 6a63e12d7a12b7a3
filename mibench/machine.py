"""What this process may use of its machine, and which kernels fix the last bits of a result.

Sums are rounded in another order by other vector instructions, and a training that starts equal
then ends elsewhere. None of this enters a key: a key names the computation, not the machine.
"""

import ctypes
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

UNKNOWN = "unknown"
SWITCHES = (
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE",
    "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS", "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE",
)  # fmt: skip
"""Environment variables by which the libraries let people choose other kernels."""
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch.set_default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.set_grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.set_num_threads": (torch.get_num_threads, torch.set_num_threads),
    "torch.use_deterministic_algorithms": (
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms,
    ),
}  # fmt: skip
"""What of torch holds for the whole process → how it is read and set."""


@cache
def machine() -> dict[str, str]:
    """Returns what chooses the kernels of this process, as the libraries say themselves.

    "processor" is its model; "aten", "mkl" and "onednn" say which vector instructions each
    library uses, which may be fewer than the processor has, "none" where there is no such
    library and "unknown" where it does not say (of processors that are not Intel's, MKL says
    "Intel(R) Architecture processors"); "build" is the commit that torch was built
    from; "switches", if any is set, the environment variables that choose kernels.
    """
    kernels = {
        "processor": _processor(),
        "aten": torch.backends.cpu.get_cpu_capability(),
        "mkl": _mkl() if torch._C.has_mkl else "none",
        "onednn": _onednn() if torch._C._has_mkldnn else "none",
        "build": (torch.version.git_version or UNKNOWN)[:12],
    }
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    return kernels | ({"switches": " ".join(switches)} if switches else {})


@contextmanager
def settings_kept() -> Iterator[None]:
    """Sets torch's settings back to what they were: other stages run in this process, too.

    Raises:
        ValueError: If what was done here left one of them changed.
    """
    before = {name: get() for name, (get, _) in SETTINGS.items()}
    left: list[str] = []
    try:
        yield
    finally:
        for name, (get, put) in SETTINGS.items():
            if (now := get()) != before[name]:
                put(before[name])
                left.append(f"{name}({now})")
    if left:
        raise ValueError(
            f"it calls {', '.join(left)} and does not set that back, which would change the "
            "stages after it"
        )


def each(meta: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields a stage's meta.json as of each machine: the last, and others where it was resumed."""
    last = {name: value for name, value in meta.items() if name != "earlier"}
    yield last
    for earlier in meta.get("earlier", ()):
        yield {**last, "machine": None, **earlier}


def in_words(meta: Mapping[str, Any]) -> str:
    """Returns what a stage was computed on, from its meta.json."""
    return "; and, before it was resumed, ".join(map(_in_words, each(meta)))


def _in_words(meta: Mapping[str, Any]) -> str:
    versions = meta["versions"]
    threads = meta.get("threads", UNKNOWN)
    basis = (
        f"python {versions.get('python', UNKNOWN)}, torch {versions.get('torch', UNKNOWN)}, "
        f"on {meta['device']}, CPU threads {threads}, precision {meta.get('precision', 'float32')}"
    )
    if not (kernels := meta.get("machine")):
        return f"{basis}; which vector instructions libraries used there is not recorded"
    names = {"processor": "processor", "aten": "ATen", "mkl": "MKL", "onednn": "oneDNN",
             "build": "torch of commit", "switches": "switches"}  # fmt: skip
    return "; ".join([basis, *(f"{names.get(k, k)} {v}" for k, v in kernels.items())])


def kind(meta: Mapping[str, Any]) -> str:
    """Returns on which kind of machine a stage was computed last, shortly, from its meta.json."""
    if not (kernels := meta.get("machine")):
        return f"a machine that is not recorded ({meta['device']})"
    threads = meta.get("threads", 1)
    parts = [
        meta["device"],
        f"torch {meta['versions'].get('torch', UNKNOWN)}",
        *([f"{threads} threads"] if threads != 1 else []),
        *([kernels["switches"]] if "switches" in kernels else []),
    ]
    words = f"{kernels.get('processor', 'unknown processor')} ({', '.join(parts)})"
    return re.sub(r"[^\w .,:;()+/@=-]", "?", words)[:200]  # a stranger's file may say anything


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or UNKNOWN


class _Version(ctypes.Structure):
    """MKL's ``MKLVersion``."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("major", "minor", "update")),
        *((name, ctypes.c_char_p) for name in ("status", "build", "processor", "platform")),
    )


def _mkl() -> str:
    """Returns MKL's version and the instructions that it uses."""
    with suppress(OSError, AttributeError, StopIteration):  # linked in another way
        folder = Path(torch.__file__).parent / "lib"
        library = ctypes.CDLL(str(next(folder.glob("libtorch_cpu.*"))))
        mkl = _Version()
        library.mkl_serv_get_version(ctypes.byref(mkl))
        if mkl.processor:
            processor = mkl.processor.decode("ascii", "replace")
            return f"{mkl.major}.{mkl.minor}.{mkl.update} {processor}"
    return UNKNOWN


def _onednn() -> str:
    """Returns oneDNN's version and the instructions that it uses.

    It prints them only in the head of its log, which goes to the standard output of the process.
    """
    if {"ONEDNN_VERBOSE", "DNNL_VERBOSE"} & os.environ.keys():  # the log is somebody else's
        return UNKNOWN
    lines: list[bytes] = []
    with suppress(OSError, RuntimeError), tempfile.TemporaryFile() as log:
        kept = os.dup(1)
        try:
            os.dup2(log.fileno(), 1)
            with torch.backends.mkldnn.verbose(1):  # type: ignore[no-untyped-call]
                torch.zeros(1).to_mkldnn()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        lines = log.read().splitlines(keepends=True)
        os.write(1, b"".join(x for x in lines if not x.startswith(b"onednn_verbose")))
    heads = [line.decode("ascii", "replace").strip().rpartition("info,")[2] for line in lines]
    version = [x.removeprefix("oneDNN ").partition(" ")[0] for x in heads if "oneDNN v" in x]
    used = [x.removeprefix("cpu,isa:") for x in heads if x.startswith("cpu,isa:")]
    return " ".join(version + used) if used else UNKNOWN


def cores() -> int:
    """Returns how many CPU cores this process may use, by its affinity and its cgroup's quota."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux knows what it may use
    count = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, int(min(count, quota())))


def quota(own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns how many cores' time the cgroups of this process leave it; infinity if all.

    Args:
        own: Names the process's cgroup in each hierarchy.
        mounted: Where the hierarchies are: of version 2 itself, of version 1 one in ``cpu``.
    """
    limits = [math.inf]
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = mounted / "cpu" if controllers else mounted
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):  # a container may see the upper ones alone
                limits.append(_limit(folder))
                if folder == top:
                    break
    return min(limits)


def _limit(group: Path) -> float:
    """Returns the quota of one cgroup, in cores."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        time, period = (group / "cpu.max").read_text().split()
        return int(time) / int(period)
    with suppress(OSError, ValueError, ZeroDivisionError):
        time, period = ((group / f"cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return int(time) / int(period) if int(time) > 0 else math.inf
    return math.inf


def forget_peak(device: torch.device) -> None:
    """Starts :func:`peak` anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int | None:
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


def device_name(device: torch.device) -> str:
    """Returns a GPU's name; of a CPU, its kind and the vector instructions in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":  # kernels, and so the last bits, go by its vector instructions
        return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {platform.machine()}"
