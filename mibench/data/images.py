"""Image files: which there are, whether they are whole, and their bytes."""

import contextlib
import errno
import hashlib
import json
import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image as Pillow

NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow knows by name, but has no decoder for; PostScript is a program to run."""
ORIENTATION = 0x0112
"""The EXIF tag that says which side of the stored image is up, 1 to 8; 1 is the upper one."""
TURNED = "are stored lying and were turned upright, as their EXIF orientation says"
FLATTENED = "have transparent pixels, through which white was made to show"
GREY = "are grey and were taken as colour"
COLOURED = "are in colour"
FRAMES = "have several frames, of which the first was read"
MISNAMED = "are of another format than their names say"
MAX_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: a header can claim any size."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""


def image_files(folder: Path) -> list[Path]:
    """Returns the image files in a folder, in the order of their names; hidden ones are none.

    Raises:
        ValueError: If a name has a line break or another control character.
    """
    return sorted(
        Path(entry.path)
        for entry in _entries(folder)
        if suffix(entry.name) in formats() and _is(entry, "file")
    )


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, in the order of their names; hidden ones are none.

    Raises:
        ValueError: If a name has a line break or another control character.
    """
    return sorted(Path(e.path) for e in _entries(folder) if _is(e, "dir"))


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if any(map(is_control, entry.name)):
                raise ValueError(f"{folder} has a name with a control character: {entry.name!a}")
            if not entry.name.startswith("."):
                yield entry


def is_control(character: str) -> bool:
    """Whether it is a control character, a line break, or half of a character (a surrogate)."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def suffix(name: str) -> str:
    """Returns how a file's name ends, from its last dot on, in lower case."""
    return Path(name).suffix.lower()


@cache
def decoders() -> tuple[str, ...]:
    """Returns the formats that the installed Pillow decodes, those with a signature first."""
    from PIL import Image

    Image.preinit()
    Image.init()
    return tuple(form for form in Image.ID if form not in NOT_READ)


@cache
def formats() -> dict[str, str]:
    """Returns suffix → format of all images that the installed Pillow decodes."""
    from PIL import Image

    decoded = {*decoders(), "MPO"}  # the decoder of JPEG reads MPO
    return {s: f for s, f in Image.registered_extensions().items() if f in decoded}


def _is(entry: "os.DirEntry[str]", what: str) -> bool:
    try:
        return entry.is_file() if what == "file" else entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:  # a link to itself leads nowhere, as a broken one
            raise
        return False


def left_out(
    folder: Path, *, own: bool = True, within: Collection[str] = ()
) -> dict[str, list[Path]]:
    """Returns what is in a folder and is not read, by reason; hidden files are none.

    Args:
        folder: Where to look.
        own: Whether the images that lie in it directly are read.
        within: Names of the folders in it that are not to be looked at.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for entry in _entries(folder):
        path = Path(entry.path)
        if _is(entry, "dir"):
            if entry.name not in within:
                images = (p for p in path.rglob("*") if suffix(p.name) in formats())
                found["images in deeper or unknown folders"] += images
        elif not _is(entry, "file"):
            found["broken links"].append(path)
        elif suffix(entry.name) not in formats():
            found["files whose names do not end as an image's"].append(path)
        elif not own:
            found["images beside the folders"].append(path)
    return {reason: sorted(paths) for reason, paths in sorted(found.items()) if paths}


def counted(found: Mapping[str, Sequence[object]]) -> str:
    """Returns the reasons, each with how many there are."""
    return ", ".join(f"{reason} ({len(paths)})" for reason, paths in found.items())


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


def decode(
    files: Sequence[Path],
    size: int,
    channels: int,
    box: Box | None = None,
    told: dict[str, list[Path]] | None = None,
) -> Tensor:
    """Returns the images as bytes (n, channels, size, size), bilinearly resized.

    Images are turned upright as their EXIF orientation says, and transparent pixels show
    white.

    Args:
        files: What to read.
        size: Height and width in pixels.
        channels: 3 for colour (grey images are taken as such), 1 for grey.
        box: What to cut out before resizing; without it, the largest central square.
        told: Gets what was read otherwise than it is stored → the files.

    Raises:
        ValueError: If a file is no whole image or is too large, or if images are in colour
            where grey ones are asked for; the message names them.
    """
    out = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    facts: list[frozenset[str]] = [frozenset()] * len(files)

    def read(i: int) -> None:
        out[i], facts[i] = _decode(files[i], size, channels, box)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(read, range(len(files))))
    found: dict[str, list[Path]] = {} if told is None else told
    for path, fact in zip(files, facts, strict=True):
        for what in sorted(fact):
            found.setdefault(what, []).append(path)
    if coloured := found.get(COLOURED):
        first = ", ".join(map(str, coloured[:3])) + ", ..." * (len(coloured) > 3)
        raise ValueError(
            f"{len(coloured)} of {len(files)} images are in colour where grey ones are asked for "
            f"({first}); convert them, or set setting.task.channels=3, which takes grey ones too"
        )
    return out


def _decode(
    path: Path, size: int, channels: int, box: Box | None
) -> tuple[Tensor, frozenset[str]]:
    """Returns the image, (channels, size, size), and what was read otherwise than stored."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=decoders()) as stored:
            width, height = stored.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{path} claims {width}x{height} pixels, more than mibench reads")
            if stored.mode.startswith(("I", "F")):
                raise ValueError(f"{path} has more than 8 bits per pixel; convert it to 8")
            frames = stored.format != "MPO" and getattr(stored, "is_animated", False)
            image, turned = _upright(stored)
            image, flattened = _opaque(image)
            grey = image.mode in ("1", "L", "LA") or (channels == 1 and _is_grey(image))
            facts = {
                TURNED: turned,
                FLATTENED: flattened,
                GREY: grey and channels == 3,
                COLOURED: channels == 1 and not grey,
                FRAMES: frames,
                MISNAMED: _misnamed(path, stored.format),
            }
            width, height = image.size
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
    tensor = torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)
    return tensor, frozenset(what for what, true in facts.items() if true)


def _orientation(image: "Pillow.Image") -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF may raise anything, and viewers show the image all the same
        return 1


def _upright(image: "Pillow.Image") -> tuple["Pillow.Image", bool]:
    """Returns the image as viewers show it, and whether it is stored otherwise."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }  # fmt: skip
    turned = _orientation(image) in turns
    image.load()  # which turns a TIFF and forgets its tag
    left = _orientation(image)
    return (image.transpose(turns[left]) if left in turns else image), turned


def _opaque(image: "Pillow.Image") -> tuple["Pillow.Image", bool]:
    """Returns the image over white, and whether anything shows through."""
    from PIL import Image

    if not image.has_transparency_data:
        return image, False
    layer = image.convert("RGBA")
    through = layer.getchannel("A").tobytes().strip(b"\xff") != b""
    if through:
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return layer.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), through


def _is_grey(image: "Pillow.Image") -> bool:
    red, green, blue = (band.tobytes() for band in image.convert("RGB").split())
    return red == green == blue


def _misnamed(path: Path, form: str | None) -> bool:
    same = {"MPO": "JPEG", "DIB": "BMP"}  # a photo with a preview; a bitmap without its header
    said = formats().get(suffix(path.name), form)
    return same.get(said or "", said) != same.get(form or "", form)
