"""Files that are on the disk when a function returns."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def sync(path: Path) -> None:
    """Returns when what was written to a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes a folder that others may make, and remove, at the same time."""
    for attempt in range(100):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it is no folder, or is gone by now
            if attempt == 99 or os.path.lexists(path):
                raise
        else:
            return


def put(path: Path, content: bytes | str) -> None:
    """Writes a file that appears whole or not at all: a full disk costs nothing of an older one.

    What is there and is no plain file, such as /dev/null, is written to and stays what it is.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    named, path = path, Path(os.path.realpath(path))  # a link stays a link
    fresh = path.with_name(f".{path.name}.part")  # what a kill leaves the next run takes away
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        if path.exists():
            path.open("r+b").close()  # what must not be written must not be replaced
            fresh.touch()
            fresh.chmod(path.stat().st_mode)
        fresh.write_bytes(data)
        with suppress(FileNotFoundError):  # a process beside this one has just put the same there
            fresh.replace(path)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(named), None
        raise


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes files and returns when they and the folder are on the disk.

    All are written before the first sync, which on most file systems takes the others along.
    """
    for name, data in files.items():
        (folder / name).write_bytes(data)
    for path in (*(folder / name for name in files), folder):
        sync(path)


def json_bytes(value: object) -> bytes:
    """Returns a value as indented JSON with sorted keys."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sha256(data: bytes) -> str:
    """Returns the digest of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
