"""What ``torch.save`` and safetensors write, read without unpickling anything.

A checkpoint is a pickle, and a pickle is a program. It is only followed, as the pickles of
:mod:`mibench.networks.foreign.pickles` are: it may build plain data and name the few functions
that tensors are made with, and what it would call is read, not called. Tensors are made here, of
bytes that are there. Reading takes at most six times the file's size in memory, and two hundred
megabytes besides.
"""

import io
import json
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from mibench.networks.foreign import pickles
from mibench.networks.foreign.pickles import (
    INSTRUCTIONS,
    PARAMETER,
    PERSISTENT,
    TENSOR,
    Call,
    Name,
    Reader,
    follow,
)
from mibench.store import tell

LARGEST = 2**33
"""Bytes of the largest file that is read."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Under which of a checkpoint's names training scripts put the state dict, the first that fits."""
AVERAGED = frozenset({"ema", "swa", "avg", "averaged", "average"})
"""Words in the names under which they put an averaged copy, taken where there is no other."""
DEEPEST = 4
"""So many dictionaries may lie around it."""

DTYPES = pickles.DTYPES | {
    "torch BFloat16Storage": torch.bfloat16, "torch BoolStorage": torch.bool,
    "torch CharStorage": torch.int8, "torch ShortStorage": torch.int16,
}  # fmt: skip
NUMPY = {"numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "numpy dtype"}
NAMES = frozenset(
    {"collections OrderedDict", PARAMETER, TENSOR, PERSISTENT, "torch Size", *DTYPES, *NUMPY}
)
"""What a checkpoint may name; anything else would be somebody's code."""
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file, without the wrappers that training scripts put on it.

    What is taken off: dictionaries around the state dict, and the "module." that data
    parallelism and averaging put before each name. An averaged copy is read where the file has
    no other, and a note says so.

    Args:
        path: A .safetensors file, or what ``torch.save`` wrote, in its zip or its older form.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds anything but tensors in a mapping, is damaged, or claims more
            than it has.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is too large for weights: more than {LARGEST} bytes")
    data = path.read_bytes()
    try:
        state, average = _safetensors(data) if path.suffix == ".safetensors" else _torch(data)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything
        why = str(error) if isinstance(error, ValueError) else "it is damaged"
        raise ValueError(
            f"{path} holds more than tensors, or is damaged, and nothing in it is executed "
            f"({' '.join(why.split())[:200]}): if it is whole and you trust it, load it with "
            "torch and save its state dict as .safetensors"
        ) from error
    if average:
        tell(f"{path} has an averaged copy of the weights only ({average}): that is taken")
    return state


def _safetensors(data: bytes) -> tuple[dict[str, Tensor], str]:
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("its header is longer than the file")
    header = json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return _unwrapped(dict(sorted(load_safetensors(data).items())))


def _unwrapped(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Returns weights without the prefix of a wrapper module; and its name, if it averages."""
    counter = "n_averaged"  # of torch.optim.swa_utils
    rest = {name: value for name, value in state.items() if name != counter}
    if not rest or not all(name.startswith("module.") for name in rest):
        return state, ""
    bare = {name.removeprefix("module."): value for name, value in rest.items()}
    return bare, counter if counter in state else ""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return mapping


def _torch(data: bytes) -> tuple[dict[str, Tensor], str]:
    if data[:2] == b"PK":
        tree, find = _zipped(data)
    elif data[:1] == b"\x80":
        tree, find = _plain(data)
    else:
        raise ValueError("it is nothing that torch.save writes")
    return Checkpoint(len(data), find).state(tree)


def _zipped(data: bytes) -> tuple[object, Callable[[str], bytes]]:
    """Returns the inert tree of a zip archive, and what finds the bytes of a storage in it."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in entry.filename:
            raise ValueError(f"an entry has the path {entry.filename[:80]!r}")
        if entry.filename in entries:
            raise ValueError(f"its entry {entry.filename[:80]!r} occurs twice")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError("an entry is a link")
        stored = entry.compress_type == zipfile.ZIP_STORED
        if not stored or entry.file_size != entry.compress_size or entry.file_size > len(data):
            raise ValueError("an entry is compressed, which torch.save never does")
        entries[entry.filename] = entry
    mains = [name for name in entries if PurePosixPath(name).name == "data.pkl"]
    if len(mains) != 1:
        raise ValueError("it has not one data.pkl")
    root = PurePosixPath(mains[0]).parent
    if (order := entries.get(f"{root}/byteorder")) and archive.read(order) != b"little":
        raise ValueError("its bytes are in another order than this machine's")
    main = io.BytesIO(archive.read(entries[mains[0]]))
    tree = follow(main, NAMES, INSTRUCTIONS, checkpoint=True)

    def find(key: str) -> bytes:
        return archive.read(entries[f"{root}/data/{key}"])

    return tree, find


def _plain(data: bytes) -> tuple[object, Callable[[str], bytes]]:
    """Returns the same of the form before torch 1.6: five pickles, then the storages."""
    file = io.BytesIO(data)
    none: frozenset[str] = frozenset()
    if follow(file, none, 10) != MAGIC or follow(file, none, 10) != PROTOCOL:
        raise ValueError("it is nothing that torch.save writes")
    follow(file, none, 1000)
    tree = follow(file, NAMES, INSTRUCTIONS, checkpoint=True)
    keys = follow(file, none, INSTRUCTIONS)
    kinds = {key: dtype.itemsize for key, dtype, _ in map(_claim, _persistent(tree))}
    storages: dict[str, bytes] = {}
    if not isinstance(keys, list):
        raise ValueError("it does not list its storages")
    for key in keys:
        if not isinstance(key, str) or key in storages:
            raise ValueError("it lists a storage twice")
        (count,) = struct.unpack("<q", file.read(8))
        size = count * kinds[key]
        if not 0 <= size <= len(data):
            raise ValueError("a storage is larger than the file")
        storages[key] = file.read(size)
    return tree, storages.__getitem__


def _persistent(tree: object) -> Iterator[Call]:
    """Yields what stands for storages, each once."""
    todo, known = [tree], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, Call):
            if node.name == PERSISTENT:
                yield node
            todo += node.args
        elif isinstance(node, dict):
            todo += node.values()
        elif isinstance(node, list | tuple):
            todo += node


def _claim(value: object) -> tuple[str, torch.dtype, int]:
    """Returns a storage's key, type and number of elements, as its place in the pickle says."""
    match value:
        case Call(
            name=name, args=(("storage", Name(text=kind), str(key), str(), int(count), *_),)
        ) if name == PERSISTENT and kind in DTYPES and type(count) is int and count >= 0:
            return key, DTYPES[kind], count
        case _:
            raise ValueError("what should be a storage is none")


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


class Checkpoint(Reader):
    """Makes tensors of an inert tree, never more bytes than four times the file has.

    Args:
        size: The file's, in bytes.
        find: Gives the bytes of a storage.
    """

    def __init__(self, size: int, find: Callable[[str], bytes]) -> None:
        super().__init__(2 * size)
        self._find = find
        self._known: dict[str, Tensor] = {}

    def state(self, tree: object) -> tuple[dict[str, Tensor], str]:
        """Returns the state dict, by plain names, in the file's order.

        And the name of the averaged copy that it is; none if it is no such copy.
        """
        average = ""
        for _ in range(DEEPEST):
            entries = tree.items() if isinstance(tree, dict) else ()
            inner = {k: v for k, v in entries if isinstance(v, dict)}
            plain = [k for k in WRAPPERS if k in inner]
            averaged = [k for k in inner if isinstance(k, str) and AVERAGED & _words(k)]
            if not plain + averaged:
                break
            if not plain:
                average = averaged[0]
            tree = inner[(plain + averaged)[0]]
        if not (
            isinstance(tree, dict)
            and tree
            and all(isinstance(k, str) and isinstance(v, Call) for k, v in tree.items())
        ):
            raise ValueError("it holds no state dict, that is, no mapping of names to tensors")
        tensors = {name: self._tensor(v) for name, v in self._entries_of(tree)}
        bare, counter = _unwrapped(tensors)
        return bare, average or counter

    def _storage(self, value: object) -> Tensor:
        key, dtype, count = _claim(value)
        if key not in self._known:
            data = self._find(key)
            if len(data) != count * dtype.itemsize:
                raise ValueError("a storage has more or fewer bytes than it says")
            self._spend(len(data))
            buffer = bytearray(data)
            empty = torch.empty(0, dtype=dtype)
            self._known[key] = torch.frombuffer(buffer, dtype=dtype) if buffer else empty
        known = self._known[key]
        if known.dtype != dtype or len(known) != count:
            raise ValueError("one storage is claimed to be of two kinds")
        return known


def places(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` under the names of ``own``, entry by entry in their order, unchecked.

    Raises:
        ValueError: If there are more or fewer.
    """
    counted = any(name.endswith("num_batches_tracked") for name in state)
    names = [n for n in own if counted or not n.endswith("num_batches_tracked")]
    if len(names) != len(state):
        raise ValueError(f"there are {len(state)} weights, not {len(names)}")
    return dict(zip(names, state.values(), strict=True))


def same_places(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns ``state`` under the names of ``own``, entry by entry in their order.

    Args:
        state: Weights under somebody's names, in the order of their modules.
        own: Weights of the same modules in the same order.

    Raises:
        ValueError: If an entry is of another kind (weight, bias, running_mean, …) or shape than
            the one in its place, there are more or fewer, or ``state`` is sorted by name.
    """
    renamed = places(state, own)
    for other, (name, value) in zip(state, renamed.items(), strict=True):
        kinds = name.rpartition(".")[2], other.rpartition(".")[2]
        if kinds[0] != kinds[1] or value.shape != own[name].shape:
            raise ValueError(
                f"{other} {tuple(value.shape)} is where {name} {tuple(own[name].shape)} should be"
            )
    if len(state) > 1 and list(state) == sorted(state):  # as safetensors files are
        raise ValueError("the weights are sorted by name, which says nothing of their places")
    return renamed
