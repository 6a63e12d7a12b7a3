"""The files of a finished stage: read with their digests checked, sealed, moved aside."""

import errno
import hashlib
import json
import os
import shlex
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load as read_tensors
from torch import Tensor

from mibench.store.disk import json_bytes, sha256
from mibench.store.pack import Payload, restored
from mibench.store.stage import DamagedError, Stage
from mibench.store.work import NONSENSE

FILES = ("payload.safetensors", "payload.json", "spec.json")
QUARANTINE = "quarantine"
LARGE = 2**26
"""Bytes of tensors that are read whole at most; more are mapped into memory."""


def read_stage(path: Path) -> tuple[dict[str, bytes | None], dict[str, Any]]:
    """Returns the files of a finished stage, and its meta, if all is as it was written.

    None stands for tensors of more than ``LARGE`` bytes, which are hashed without being held,
    and once a process.

    Args:
        path: The stage's folder, ``<root>/<kind>/<key>``.

    Raises:
        DamagedError: If a file is missing or changed, or the folder holds another stage.
        OSError: If a file is there and cannot be read.
    """
    where = str(path)
    try:
        if not stat.S_ISDIR(os.lstat(where).st_mode):
            raise DamagedError(f"{path} is no folder")
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path} is no folder") from None
    files = {name: _read_or_hash(f"{where}/{name}") for name in FILES}
    meta = sealed_meta(path)
    del meta["digest"]
    own = meta.pop("stage")
    for name, (_, digest) in files.items():
        if digest != meta["sha256"][name]:
            raise DamagedError(f"{path / name} is damaged")
    if own != f"{path.parent.name}/{path.name}":
        raise DamagedError(f"{path} holds another stage, or one of an older version")
    return {name: data for name, (data, _) in files.items()}, meta


def sealed_meta(path: Path) -> dict[str, Any]:
    """Returns the meta.json of a finished stage with its seal, if it is as it was written.

    Raises:
        DamagedError: If it is missing or changed.
        OSError: If it is there and cannot be read.
    """
    text = read_plain(f"{path}/meta.json")
    try:
        meta: dict[str, Any] = json.loads(text)
        # Of the text without its line, as it was before that was put in.
        first, _, last = text.partition(f' "digest": "{meta["digest"]}",\n'.encode())
        if sha256(first + last) != meta["digest"] or meta["sha256"].keys() != set(FILES):
            raise ValueError
        meta["stage"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{path / 'meta.json'} is damaged") from None
    return meta


def told_meta(path: Path) -> dict[str, Any]:
    """Returns what :func:`sealed_meta` does; what it raises says what to do."""
    try:
        return sealed_meta(path)
    except DamagedError as error:
        repair = f"mibench store check --repair --store {shlex.quote(str(path.parent.parent))}"
        raise DamagedError(f"{error}: `{repair}` moves the stage aside, to be run anew") from None


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
        hook = partial(restored, tensors) if b'"$' in text else None  # which takes its time
        payload: Payload = dict(json.loads(text, object_hook=hook))
    except NONSENSE as error:
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


def seal(stage: Stage, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bytes:
    """Returns a stage's meta.json, by whose digests :func:`read_stage` knows the stage whole."""
    content = {
        **meta,
        "stage": f"{stage.kind}/{stage.key}",
        "sha256": {name: sha256(data) for name, data in files.items()},
    }
    return json_bytes({**content, "digest": sha256(json_bytes(content))})


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


def read_plain(path: Path | str) -> bytes:
    """Returns a file's bytes.

    Raises:
        DamagedError: If it is missing or no plain file.
        OSError: If it cannot be read.
    """
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
            return data, sha256(data)
        mark = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        if mark not in _hashed:
            with open(handle, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if info.st_ctime_ns > begun - 2 * 10**9:
                return None, digest
            _hashed[mark] = digest
        return None, _hashed[mark]


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
