"""Nested values as named tensors and plain JSON, and back."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mibench.spec import Json

Payload: TypeAlias = dict[str, Any]

LONG = 16
"""A list of at least this many numbers is stored as a tensor."""


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
    """Returns a long list of floats, or of ints, as 64-bit numbers; None of any other list."""
    if len(values) >= LONG and (kinds := set(map(type, values))) in ({float}, {int}):
        with suppress(ValueError, OverflowError, RuntimeError):  # ints of more than 64 bits
            return torch.tensor(values, dtype=torch.float64 if float in kinds else torch.int64)
    return None


def unpack(tensors: Mapping[str, Tensor], tree: Json) -> Any:  # noqa: ANN401
    """Returns the nested value that :func:`pack` split; generators come back as states."""
    if isinstance(tree, list):
        return [unpack(tensors, v) if isinstance(v, list | dict) else v for v in tree]
    if isinstance(tree, dict):
        return restored(tensors, {k: unpack(tensors, v) for k, v in tree.items()})
    return tree


def restored(tensors: Mapping[str, Tensor], mapping: dict[str, Any]) -> Any:  # noqa: ANN401
    """Returns what a JSON object stands for whose own values are restored already."""
    if len(mapping) != 1:  # as most are
        return mapping
    if "$tensor" in mapping:
        return tensors[mapping["$tensor"]]
    if "$list" in mapping:
        return tensors[mapping["$list"]].tolist()
    if "$tuple" in mapping:
        return tuple(mapping["$tuple"])
    if "$int" in mapping:
        return {int(k): v for k, v in mapping["$int"].items()}
    return mapping
