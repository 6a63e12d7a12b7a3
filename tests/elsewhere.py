"""A second device without one: tensors hold real data on the CPU and say that they lie elsewhere.

Inside ``with away():`` what is made on, or moved to, the device AWAY becomes an ``Elsewhere``.
Arithmetic runs on the data inside and its results stay away. What a GPU would refuse is refused:
an operation on such a tensor and one of the CPU of a dimension or more. What would make a GPU's
host wait inside a step is refused too: reading a number, moving to the CPU, a shape that depends
on data. AWAY is "meta", for which autograd needs no stream.

It cannot show branches on ``device.type == "cuda"``, memory, streams, or which of CUDA's kernels
are deterministic.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import mibench

PACKAGE = str(Path(mibench.__file__).parent)
AWAY = torch.device("meta")
MAY_MIX = ("aten._to_copy", "aten.copy_", "aten.index", "aten._local_scalar_dense",
           "aten._has_compatible_shallow_copy_type", "aten.set_")  # fmt: skip
"""Operations that a GPU lets take tensors of both sides: moves, and indices on the CPU."""
SHAPED_BY_DATA = ("aten.nonzero", "aten.masked_select", "aten._unique", "aten.unique",
                  "aten.equal", "aten.is_nonzero", "aten._local_scalar_dense")  # fmt: skip
"""Operations for which the host has to wait until the device is done."""
STEPS = {"advance", "step", "loss_terms"}
"""Functions of mibench that take one step of a loop, and must let the device run on."""


MAY_WAIT = {"save", "adjust"}
"""Functions in which a step may wait: a save, and ADA's reading of a sign every few steps."""


class MixedError(RuntimeError):
    """An operation met tensors of two devices."""


class WaitError(RuntimeError):
    """A step waits for the device."""


class Elsewhere(Tensor):
    """Data on the CPU, said to lie on AWAY.

    Attributes:
        inside: The data.
    """

    inside: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> "Elsewhere":  # noqa: ANN001
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(),
            dtype=data.dtype, layout=data.layout, device=AWAY, requires_grad=False,
        )  # fmt: skip
        made.inside = data
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def data_ptr(self) -> int:
        """Returns where the data lie: by it the store tells tensors apart."""
        return self.inside.data_ptr()

    def tolist(self) -> Any:
        """Returns the numbers, for which the host waits."""
        _refuse_waiting("tolist")
        return self.inside.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Runs an operation on the data inside."""
        return _dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    name = str(func)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.dim() > 0]
    if there and here and not name.startswith(MAY_MIX):
        raise MixedError(
            f"{name} takes tensors of two devices: {[tuple(x.shape) for x in there]} away, "
            f"{[tuple(x.shape) for x in here]} on the CPU"
        )
    goes = bool(there)
    asked = kwargs.get("device")
    if asked is not None:
        goes = torch.device(asked).type == AWAY.type
        kwargs = {**kwargs, "device": "cpu"}
        kwargs |= {"pin_memory": False} if "pin_memory" in kwargs else {}
    if name.startswith("aten.copy_"):
        goes = isinstance(args[0], Elsewhere)
    if there and (not goes or name.startswith(SHAPED_BY_DATA) or _masked(name, args)):
        _refuse_waiting(name)
    bare = tree_map_only(Elsewhere, lambda x: x.inside, (args, kwargs))
    out = func(*bare[0], **bare[1])
    if func._schema.is_mutable and args and isinstance(args[0], Tensor) and out is bare[0][0]:
        return args[0]
    return tree_map_only(Tensor, Elsewhere, out) if goes else out


def _masked(name: str, args: Any) -> bool:
    """Whether an operation picks by a mask on the device, whose length the host must know."""
    if not name.startswith("aten.index.Tensor"):
        return False
    return any(isinstance(x, Elsewhere) and x.dtype == torch.bool for x in args[1])


def _refuse_waiting(what: str) -> None:
    """Raises WaitError in a step of mibench's loops, but for those that say they may wait."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name in MAY_WAIT:
            return
        if code.co_name in STEPS and code.co_filename.startswith(PACKAGE):
            raise WaitError(f"{what} makes the host wait for the device inside {code.co_qualname}")
        frame = frame.f_back


@contextmanager
def away(*, patient: bool = False) -> Iterator[None]:
    """Makes AWAY a device that holds data; if ``patient``, steps may wait for it."""
    tensor, new_tensor = torch.tensor, Tensor.new_tensor
    adam = torch.optim.Adam.__init__

    def made(data: Any, *, dtype: Any = None, device: Any = None, **how: Any) -> Tensor:
        fresh = tensor(data, dtype=dtype)
        grad = how.get("requires_grad", False)
        return (fresh if device is None else fresh.to(device)).requires_grad_(grad)

    def made_like(self: Tensor, data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    def unfused(self: Any, *args: Any, fused: Any = None, **kwargs: Any) -> None:
        adam(self, *args, **kwargs)  # the fused one refuses the device

    swapped: list[tuple[Any, str, Any, Any]] = [
        (torch, "tensor", made, tensor),
        *[(sys.modules[__name__], "STEPS", set(), STEPS)] * patient,
        (Tensor, "new_tensor", made_like, new_tensor),
        (torch.optim.Adam, "__init__", unfused, adam),
    ]
    for owner, name, other, _ in swapped:
        setattr(owner, name, other)
    try:
        with _Mode():  # type: ignore[no-untyped-call]
            yield
    finally:
        for owner, name, _, own in swapped:
            setattr(owner, name, own)
