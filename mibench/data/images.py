"""Image files: which there are, whether they are whole, and their bytes."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""What counts as an image, in lower case."""
MAX_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: a header can claim any size."""

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

    What a file's content hashes to is remembered by its path, size and time of change, in
    ``$XDG_CACHE_HOME/mibench`` (or ``~/.cache/mibench``), so that only new files are read.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mibench"
    notes = cache / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    try:
        known: dict[str, list[object]] = json.loads(notes.read_text())
    except (OSError, ValueError):
        known = {}
    fresh: dict[str, list[object]] = {}
    for path in sorted(files):
        name = path.relative_to(root).as_posix()
        stat = path.stat()
        entry = known.get(name)
        if not isinstance(entry, list) or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entry = [stat.st_size, stat.st_mtime_ns, digest]
        fresh[name] = entry
    if fresh != {name: known.get(name) for name in fresh}:
        with contextlib.suppress(OSError):  # a memory that cannot be written only costs time
            cache.mkdir(parents=True, exist_ok=True)
            aside = notes.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(known | fresh))
            aside.replace(notes)
    return {name: str(entry[2]) for name, entry in fresh.items()}


def manifest_digest(digests: Mapping[str, str]) -> str:
    """Returns the sha256 of the sorted (path, sha256) pairs."""
    lines = [f"{name}\n{digest}\n" for name, digest in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def decode(files: Sequence[Path], size: int, channels: int, box: Box | None = None) -> Tensor:
    """Returns the images as bytes (n, channels, size, size), bilinearly resized.

    Args:
        files: What to read.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey.
        box: What to cut out before resizing; without it, the largest central square.

    Raises:
        ValueError: If a file is no whole image, is too large, or is grey where colour is
            asked for or the other way round; the message names it.
    """
    out = torch.empty(len(files), channels, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        out[i] = _decode(files[i], size, channels, box)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(read, range(len(files))))
    return out


def _decode(path: Path, size: int, channels: int, box: Box | None) -> Tensor:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{path} claims {width}x{height} pixels, more than mibench reads")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has more than 8 bits per pixel; convert it to 8")
            grey = image.mode in ("1", "L", "LA")
            if grey != (channels == 1):
                kind, wanted = ("grey", "colour") if grey else ("in colour", "grey")
                raise ValueError(
                    f"{path} is {kind} where {wanted} images are asked for; convert it, or set "
                    f"setting.task.channels={1 if grey else 3}"
                )
            if box is None:
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                box = (left, top, left + side, top + side)
            elif box[2] > width or box[3] > height:
                raise ValueError(f"{path} has {width}x{height} pixels, too few to cut {box} out")
            cut = image.convert("L" if channels == 1 else "RGB").crop(box)
            pixels = np.array(cut.resize((size, size), Image.Resampling.BILINEAR))
    except (ValueError, MemoryError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is not a whole image: {error}") from error
    except Exception as error:  # a damaged image may raise anything
        raise ValueError(f"{path} is not a whole image: {error}") from error
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)
