"""Image files: which there are, whether they are whole, and their bytes."""

import contextlib
import errno
import hashlib
import json
import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mibench.machine import cores

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
    reasons: dict[str, list[Path]] = defaultdict(list)
    for entry in _entries(folder):
        path = Path(entry.path)
        if _is(entry, "dir"):
            if entry.name not in within:
                images = (p for p in path.rglob("*") if suffix(p.name) in formats())
                reasons["images in deeper or unknown folders"] += images
        elif not _is(entry, "file"):
            reasons["broken links"].append(path)
        elif suffix(entry.name) not in formats():
            reasons["files whose names do not end as an image's"].append(path)
        elif not own:
            reasons["images beside the folders"].append(path)
    return {reason: sorted(paths) for reason, paths in sorted(reasons.items()) if paths}


def counted(reasons: Mapping[str, Sequence[object]]) -> str:
    """Returns the reasons, each with how many there are."""
    return ", ".join(f"{reason} ({len(paths)})" for reason, paths in reasons.items())


def file_digests(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Returns path below ``root`` → sha256 of the content, sorted by path.

    Of sets larger than ``SMALL`` the digests are remembered in ``$XDG_CACHE_HOME/mibench`` (or
    ``~/.cache/mibench``), so that only new files are read. A digest is taken from memory if the
    file has the size, inode and times of then, and had been left alone for a minute when it was
    read: a later change then shows in its ctime, which no copying program can set.
    """
    begun = time.time_ns()
    paths = {path.relative_to(root).as_posix(): path for path in sorted(files)}
    stats = {name: path.stat() for name, path in paths.items()}
    large = sum(stat.st_size for stat in stats.values()) > SMALL
    notes = _notes(root) if large else None
    known = _remembered(notes)
    digests: dict[str, str] = {}
    fresh: dict[str, list[object]] = {}
    for name, path in paths.items():
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
    files: Sequence[Path],
    size: int,
    channels: int,
    cut: tuple[Frame, Box] | None = None,
    remarks: dict[str, list[Path]] | None = None,
) -> Tensor:
    """Returns the images as bytes (n, channels, size, size), bilinearly resized.

    Images are turned upright as their EXIF orientation says, and transparent pixels show
    white. As many are decoded at once as this process has cores. Images of which so many would
    have more than ``MAX_PIXELS`` pixels together are decoded after the others, one by one: an
    allocator keeps for each thread what its largest image took.

    Args:
        files: What to read.
        size: Height and width in pixels.
        channels: 3 for colour (grey images are taken as such), 1 for grey.
        cut: The size that all images have, and what to cut out before resizing; without it,
            the largest central square of images of any size.
        remarks: Gets what was read otherwise than it is stored → the files.

    Raises:
        ValueError: If a file is no whole image, is too large or of another size than ``cut``
            says, or if images are in colour where grey ones are asked for; the message names
            them.
    """
    out = torch.empty(len(files), channels, size, size, dtype=torch.uint8)
    facts: list[frozenset[str]] = [frozenset()] * len(files)

    threads = cores()

    def read(i: int, most: int = MAX_PIXELS // threads) -> bool:
        image = _decode(files[i], size, channels, cut, most)
        if image is not None:
            out[i], facts[i] = image
        return image is None

    with ThreadPoolExecutor(threads) as pool:
        left = list(pool.map(read, range(len(files))))
    for i in (i for i, is_left in enumerate(left) if is_left):
        read(i, MAX_PIXELS)
    remarks = {} if remarks is None else remarks
    for path, fact in zip(files, facts, strict=True):
        for what in sorted(fact):
            remarks.setdefault(what, []).append(path)
    if coloured := remarks.get(COLOURED):
        first = ", ".join(map(str, coloured[:3])) + ", ..." * (len(coloured) > 3)
        raise ValueError(
            f"{len(coloured)} of {len(files)} images are in colour where grey ones are asked for "
            f"({first}); convert them, or set setting.task.channels=3, which takes grey ones too"
        )
    return out


def _decode(
    path: Path, size: int, channels: int, cut: tuple[Frame, Box] | None, most: int = MAX_PIXELS
) -> tuple[Tensor, frozenset[str]] | None:
    """Returns one image, (channels, size, size), and what was read otherwise than stored.

    None, without decoding it, if it has more than ``most`` pixels.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path, formats=decoders()) as stored:
            width, height = stored.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{path} claims {width}x{height} pixels, more than mibench reads")
            if width * height > most:
                return None
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
