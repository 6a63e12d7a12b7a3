"""Image files: which there are, whether they are whole, and their bytes."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mibench.machine import cores

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image, in lower case."""
MAX_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: a header can claim any size."""

SMALL = 2**26
"""Sets of fewer bytes are hashed anew each time, which takes less than a second."""
SETTLED_NS = 60 * 10**9
"""A file that changed less than this before it was hashed may change again within one tick of
a coarse clock, so its digest is not remembered."""

Frame = tuple[int, int]
"""(width, height) of an image in pixels."""
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""


def image_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder, in the order of their names; hidden ones are none.

    Raises:
        ValueError: If a name has a line break or another sign that cannot be printed.
    """
    return sorted(
        Path(entry.path)
        for entry in _entries(folder)
        if Path(entry.name).suffix.lower() in SUFFIXES and entry.is_file()
    )


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, in the order of their names; hidden ones are none.

    Raises:
        ValueError: If a name has a line break or another sign that cannot be printed.
    """
    return sorted(Path(e.path) for e in _entries(folder) if e.is_dir())


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.isprintable():
                raise ValueError(f"{folder} has a name that cannot be printed: {entry.name!a}")
            if not entry.name.startswith("."):
                yield entry


def file_digests(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Returns path below ``root`` → sha256 of the content, sorted by path.

    Of sets larger than ``SMALL`` the digests are remembered in ``$XDG_CACHE_HOME/mibench`` (or
    ``~/.cache/mibench``), so that only new files are read. A digest is taken from memory if the
    file has the size, inode and times of then, and had been left alone for a minute when it was
    read: a later change then shows in its ctime, which no copying program can set.
    """
    begun = time.time_ns()
    found = {path.relative_to(root).as_posix(): path for path in sorted(files)}
    stats = {name: path.stat() for name, path in found.items()}
    large = sum(stat.st_size for stat in stats.values()) > SMALL
    notes = _notes(root) if large else None
    known = _remembered(notes)
    digests: dict[str, str] = {}
    fresh: dict[str, list[object]] = {}
    for name, path in found.items():
        stat = stats[name]
        mark = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(name)
        if isinstance(entry, list) and entry[:-1] == mark:
            digests[name] = str(entry[-1])
            continue
        digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if stat.st_ctime_ns < begun - SETTLED_NS:
            fresh[name] = [*mark, digests[name]]
    if notes is not None and fresh:
        with contextlib.suppress(OSError):  # a memory that cannot be written only costs time
            notes.parent.mkdir(parents=True, exist_ok=True)
            aside = notes.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(known | fresh))
            aside.replace(notes)
    return digests


def _notes(root: Path) -> Path | None:
    """Returns where digests are remembered; None for a user without a home directory."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mibench"
    except RuntimeError:
        return None
    return cache / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"


def _remembered(notes: Path | None) -> dict[str, object]:
    """Returns what the memory holds; nothing if there is none, or none that can be read."""
    try:
        known = json.loads(notes.read_text()) if notes else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def manifest_digest(digests: Mapping[str, str]) -> str:
    """Returns the sha256 of the sorted (path, sha256) pairs."""
    lines = [f"{name}\n{digest}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decode(
    files: Sequence[Path], size: int, channels: int, cut: tuple[Frame, Box] | None = None
) -> Tensor:
    """Returns the images as bytes (n, channels, size, size), bilinearly resized.

    As many are decoded at once as this process has cores. Images of which so many would have
    more than ``MAX_PIXELS`` pixels together are decoded after the others, one by one: an
    allocator keeps for each thread what its largest image took.

    Args:
        files: What to read.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey.
        cut: The size that all images have, and what to cut out before resizing; without it,
            the largest central square of images of any size.

    Raises:
        ValueError: If a file is no whole image, is too large or of another size than ``cut``
            says, or is grey where colour is asked for or the other way round; the message
            names it.
    """
    out = torch.empty(len(files), channels, size, size, dtype=torch.uint8)

    threads = cores()

    def read(i: int, most: int = MAX_PIXELS // threads) -> bool:
        pixels = _decode(files[i], size, channels, cut, most)
        if pixels is not None:
            out[i] = pixels
        return pixels is None

    with ThreadPoolExecutor(threads) as pool:
        left = list(pool.map(read, range(len(files))))
    for i in (i for i, is_left in enumerate(left) if is_left):
        read(i, MAX_PIXELS)
    return out


def _decode(
    path: Path, size: int, channels: int, cut: tuple[Frame, Box] | None, most: int = MAX_PIXELS
) -> Tensor | None:
    """Returns one image; None, without decoding it, if it has more than ``most`` pixels."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{path} claims {width}x{height} pixels, more than mibench reads")
            if width * height > most:
                return None
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has more than 8 bits per pixel; convert it to 8")
            grey = image.mode in ("1", "L", "LA")
            if grey != (channels == 1):
                kind, wanted = ("grey", "colour") if grey else ("in colour", "grey")
                raise ValueError(
                    f"{path} is {kind} where {wanted} images are asked for; convert it, or set "
                    f"setting.task.channels={1 if grey else 3}"
                )
            if cut is None:
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                box = (left, top, left + side, top + side)
            else:
                frame, box = cut
                if image.size != frame:
                    raise ValueError(
                        f"{path} has {width}x{height} pixels, and what is cut out fits images of "
                        f"{frame[0]}x{frame[1]} alone: take the images as they were published"
                    )
            part = image.convert("L" if channels == 1 else "RGB").crop(box)
            pixels = np.array(part.resize((size, size), Image.Resampling.BILINEAR))
    except (ValueError, MemoryError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is not a whole image: {error}") from error
    except Exception as error:  # a damaged image may raise anything
        raise ValueError(f"{path} is not a whole image: {error}") from error
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)
