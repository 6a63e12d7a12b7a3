"""Network pickles of StyleGAN2-ADA-PyTorch, read without executing them.

Karras et al., Training Generative Adversarial Networks with Limited Data, NeurIPS 2020,
https://arxiv.org/abs/2006.06676; the files are what
https://github.com/NVlabs/stylegan2-ada-pytorch writes and publishes.

A pickle is a program that names functions and calls them. Here it is only followed: of its
instructions, those that build plain data are known, and the names that these files need stay
names. What the program would call becomes a :class:`Call`, which nobody makes; nothing is
imported, looked up, compiled or unpickled. Reading takes at most eight times the file's size in
memory, and two hundred megabytes besides.
"""

import io
import math
import pickletools
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mibench.spec import Json

LARGEST = 2**30
"""Bytes of the largest file that is read; NVIDIA's have a third of that."""
INSTRUCTIONS = 1_000_000
"""How many instructions are followed; each adds at most some hundred bytes."""
INNER_INSTRUCTIONS = 100
"""The same for each of the small pickles inside a storage's bytes."""
ENTRIES = 10_000
"""How many entries of modules are visited: pickled once, one may stand in many places."""

REQUIRED = ("z_dim", "w_dim", "img_resolution", "img_channels")
DEFAULTS: dict[str, dict[str, Json]] = {
    "mapping_kwargs": {"num_layers": 8},
    "synthesis_kwargs": {"channel_base": 32768, "channel_max": 512, "conv_clamp": None},
}
"""NVIDIA's defaults of the generator's arguments."""

NETWORK = "torch_utils.persistence _reconstruct_persistent_obj"
PARAMETER = "torch._utils _rebuild_parameter"
TENSOR = "torch._utils _rebuild_tensor_v2"
STORAGE = "torch.storage _load_from_bytes"
ENCODE = "_codecs encode"
PERSISTENT = "persistent id"

DICTS = {"collections OrderedDict", "dnnlib.util EasyDict"}
SETS = {"builtins set", "__builtin__ set"}
STATEFUL = {
    "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct",
}  # fmt: skip
CALLS = STATEFUL | {
    NETWORK, PARAMETER, TENSOR, STORAGE, ENCODE, "torch Size", "torch device",
    "numpy.core.multiarray scalar", "numpy._core.multiarray scalar",
}  # fmt: skip
VALUES = {"numpy ndarray", "torch float16", "torch float32", "torch float64"}
NAMES = frozenset(DICTS | SETS | CALLS | VALUES)
DTYPES = {
    "torch HalfStorage": torch.float16, "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64, "torch ByteStorage": torch.uint8,
    "torch IntStorage": torch.int32, "torch LongStorage": torch.int64,
}  # fmt: skip
INNER = frozenset([*DTYPES, PERSISTENT])
"""What the pickles inside a storage's bytes may name."""

# Instructions of pickle protocols 2 to 5, under the names that pickletools gives them.
PUSHED = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, eq=False, slots=True)
class Name:
    """A module and what a pickle asks of it, with a space between; it is not looked up."""

    text: str


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """What a pickle would call, and with which arguments; it is not called."""

    name: str
    args: tuple[object, ...]


def read_network(
    path: Path, which: Literal["G_ema", "G", "D"] = "G_ema"
) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Returns a network's weights and the keyword arguments that it was made with.

    Args:
        path: A network pickle.
        which: The averaged generator, the generator or the discriminator.

    Returns:
        What the network's ``state_dict()`` holds, by the same names and in the same order, on
        the CPU; and of its arguments the numbers and short texts, in at most two levels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is larger than a gigabyte, or holds anything but such networks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is too large for a network: more than {LARGEST} bytes")
    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools warns of odd escapes in names
            networks = follow(io.BytesIO(data), NAMES, INSTRUCTIONS)
            if not isinstance(networks, dict) or not isinstance(networks.get(which), Call):
                raise ValueError(f"there is no network {which}")
            return Reader(len(data)).network(networks[which])
    except (ValueError, IndexError, KeyError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is damaged"
        raise ValueError(
            f"{path} is no network pickle of StyleGAN2-ADA-PyTorch, and nothing in it was run: "
            + " ".join(why[:200].split())
        ) from error


def generator_arguments(given: Mapping[str, Json]) -> dict[str, Json]:
    """Returns what it takes to build a generator anew, under NVIDIA's names.

    Args:
        given: The keyword arguments that it was made with; what is not among them has
            NVIDIA's default.

    Returns:
        z_dim, w_dim, img_resolution, img_channels, and in mappings of their own
        mapping_kwargs (num_layers) and synthesis_kwargs (channel_base, channel_max,
        conv_clamp): positive integers, but conv_clamp any positive number, or None for no
        clamping.

    Raises:
        ValueError: If one is missing or not positive.
    """
    chosen: dict[str, Json] = {key: given.get(key) for key in REQUIRED}
    checked = dict(chosen)
    for group, defaults in DEFAULTS.items():
        own = given.get(group)
        inner = {k: own.get(k, v) if isinstance(own, dict) else v for k, v in defaults.items()}
        chosen[group] = dict(inner)
        checked |= inner
    if checked["conv_clamp"] is None:
        del checked["conv_clamp"]
    for key, value in checked.items():
        number = type(value) is int or (key == "conv_clamp" and isinstance(value, float))
        if not (number and isinstance(value, int | float) and 0 < value < 2**31):
            raise ValueError(f"the generator's {key} is no positive number")
    return chosen


def follow(
    file: io.BytesIO, names: frozenset[str], limit: int, *, checkpoint: bool = False
) -> object:
    """Returns the inert tree of the pickle that begins at the file's position.

    Mappings become dicts with texts as keys, sets lists; what was to be called, a :class:`Call`.

    Args:
        file: Positioned after the pickle when this returns.
        names: What it may name.
        limit: How many instructions it may have.
        checkpoint: Whether it may be what ``torch.save`` writes, where mappings have numbers as
            keys too, and attributes, which are left out.

    Raises:
        ValueError: If it names anything else, or does anything but build data.
        IndexError: If it takes more than it put on its stack.
        KeyError: If it recalls what it did not memorise.
    """
    stack: list[object] = []
    outer: list[list[object]] = []
    memo: dict[int, object] = {}
    size = len(file.getbuffer())
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if count == limit:
            raise ValueError(f"it has more than {limit} instructions")
        match instruction.name:
            case name if name in PUSHED:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in TUPLES:
                items = [stack.pop() for _ in range(TUPLES[name])]
                stack.append(tuple(reversed(items)))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "BINPUT" | "LONG_BINPUT":
                memo[int(argument or 0)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument or 0)])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items, stack = stack, outer.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _update(stack[-1], [key, value], numbers=checkpoint)
            case "SETITEMS":
                items, stack = stack, outer.pop()
                _update(stack[-1], items, numbers=checkpoint)
            case "GLOBAL":
                stack.append(_name(str(argument), names))
            case "STACK_GLOBAL":
                second, first = stack.pop(), stack.pop()
                stack.append(_name(f"{_text(first)} {_text(second)}", names))
            case "REDUCE" | "NEWOBJ":
                args, callee = stack.pop(), stack.pop()
                stack.append(_call(callee, args))
            case "BUILD":
                stack.pop()
                below = stack[-1]
                stateful = isinstance(below, Call) and below.name in STATEFUL
                if not stateful and not (checkpoint and isinstance(below, dict)):
                    raise ValueError("it sets the state of something")
            case "BINPERSID" if PERSISTENT in names:
                stack.append(Call(PERSISTENT, (stack.pop(),)))
            case "PROTO" if 2 <= int(argument or 0) <= 5:
                pass
            case "FRAME" if int(argument or 0) <= size - file.tell():
                pass
            case "STOP":
                pass
            case name:
                raise ValueError(f"its instruction {name} is not one that they need")
    return stack.pop()


class Reader:
    """Makes tensors of an inert tree, never more bytes than twice the file has.

    Args:
        size: The file's, in bytes.
    """

    def __init__(self, size: int) -> None:
        self._bytes = 2 * size
        self._entries = ENTRIES
        self._storages: dict[int, Tensor] = {}

    def network(self, network: object) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Returns the weights and keyword arguments of a whole network."""
        state = _state(network)
        arguments = state.get("_init_kwargs")
        if not isinstance(arguments, dict) or state.get("_init_args"):
            raise ValueError("a network was not made with keyword arguments alone")
        settings = dict(self._settings(arguments))
        for key, value in self._entries_of(arguments):
            if isinstance(value, dict):
                settings[key] = dict(self._settings(value))
        return dict(self._tensors(network, "")), settings

    def _tensors(self, module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
        state = _state(module)
        passing = state.get("_non_persistent_buffers_set", [])
        if not isinstance(passing, list):
            raise ValueError("the names of passing buffers are no set")
        self._visit(len(passing))
        left_out = {_text(name) for name in passing}
        for name, value in self._entries_of(state.get("_parameters")):
            if value is not None:
                yield _path(prefix, name), self._tensor(value)
        for name, value in self._entries_of(state.get("_buffers")):
            if value is not None and name not in left_out:
                yield _path(prefix, name), self._tensor(value)
        for name, value in self._entries_of(state.get("_modules")):
            if value is not None:
                yield from self._tensors(value, _path(prefix, name) + ".")

    def _tensor(self, value: object) -> Tensor:
        match value:
            case Call(name=name, args=(data, bool(), dict())) if name == PARAMETER:
                value = data
        match value:
            case Call(
                name=name, args=(source, offset, tuple(size), tuple(stride), bool(), dict())
            ) if name == TENSOR:
                storage = self._storage(source)
            case _:
                raise ValueError("what should be a tensor is none")
        if len(size) != len(stride) or len(size) > 8:
            raise ValueError("a tensor has other sizes than strides, or too many")
        shape, steps = [_count(n) for n in size], [_count(n) for n in stride]
        if 0 in shape:
            if math.prod(n or 1 for n in shape) > 2**20:
                raise ValueError("an empty tensor is too large")
            return storage.new_empty(shape)
        start = _count(offset)
        last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if last >= len(storage):
            raise ValueError("a tensor is larger than its storage")
        self._spend(math.prod(shape) * storage.element_size())
        view = storage.as_strided(shape, steps, start)
        return view.clone(memory_format=torch.contiguous_format)

    def _storage(self, value: object) -> Tensor:
        """Reads what ``torch.save`` writes for a storage: five pickles, a count, the numbers."""
        if id(value) in self._storages:
            return self._storages[id(value)]
        match value:
            case Call(name=name, args=(bytes(data),)) if name == STORAGE:
                self._spend(len(data))
            case Call(name=name, args=(Call(name=encode, args=(str(text), "latin1")),)) if (
                name == STORAGE and encode == ENCODE
            ):
                self._spend(len(text))
                data = text.encode("latin1")
            case _:
                raise ValueError("what should be a storage is none")
        file = io.BytesIO(data)
        match [follow(file, INNER, INNER_INSTRUCTIONS) for _ in range(5)]:
            case [
                int(), 1001, dict(),
                Call(args=(("storage", Name(text=kind), str(key), str(), int(count), None),)),
                [str(only)],
            ] if only == key:  # fmt: skip
                dtype = DTYPES[kind]
            case _:
                raise ValueError("the bytes of a storage are not what torch writes")
        numbers = memoryview(data)[file.tell() :]
        expected = 8 + _count(count) * dtype.itemsize
        if len(numbers) != expected or struct.unpack_from("<q", numbers) != (count,):
            raise ValueError("a storage has more or fewer bytes than it says")
        raw = bytearray(numbers[8:])
        storage = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        self._storages[id(value)] = storage
        return storage

    def _settings(self, mapping: dict[str, object]) -> Iterator[tuple[str, Json]]:
        for key, value in self._entries_of(mapping):
            match value:
                case None | bool() | int() | float():
                    yield key, value
                case str() if len(value) <= 256:
                    yield key, value

    def _entries_of(self, mapping: object) -> Iterator[tuple[str, object]]:
        if not isinstance(mapping, dict):
            raise ValueError("a module's entries are no mapping")
        self._visit(len(mapping))
        yield from mapping.items()

    def _visit(self, count: int) -> None:
        self._entries -= count
        if self._entries < 0:
            raise ValueError(f"its modules have more than {ENTRIES} entries")

    def _spend(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise ValueError("its tensors are larger than the file")


def _state(module: object) -> dict[str, object]:
    """Returns a module's attributes; its source code is left where it is."""
    match module:
        case Call(name=name, args=({"type": "class", "state": dict(state)},)) if name == NETWORK:
            return state
        case _:
            raise ValueError("what should be a module is none")


def _path(prefix: str, name: str) -> str:
    path = prefix + name
    if not re.fullmatch(r"[0-9a-zA-Z]\w*", name, re.ASCII) or len(path) > 200:
        raise ValueError("a parameter has an impossible name")
    return path


def _name(text: str, names: frozenset[str]) -> Name:
    if text not in names or text == PERSISTENT:
        raise ValueError(f"it names {text[:80]!r}")
    return Name(text)


def _call(callee: object, args: object) -> object:
    match callee, args:
        case Name(text=text), () if text in DICTS:
            return {}
        case Name(text=text), (list(items),) if text in SETS:
            return items
        case Name(text=text), tuple(values) if text in CALLS:
            return Call(text, values)
        case _:
            raise ValueError("it calls what is not to be called")


def _extend(target: object, items: list[object]) -> None:
    if not isinstance(target, list):
        raise ValueError("it appends to something else than a list")
    target.extend(items)


def _update(target: object, items: list[object], *, numbers: bool) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError("it sets items of something else than a mapping")
    for key, value in zip(items[::2], items[1::2], strict=True):
        number = numbers and type(key) is int and abs(key) < 2**63
        target[key if number else _text(key)] = value


def _text(value: object) -> str:
    """Returns a short text, so that a hostile key takes no time to hash or to compare."""
    if not isinstance(value, str) or len(value) > 256:
        raise ValueError("a key is no short text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise ValueError("a size is no count")
    return value
