"""Reads a task's images, and says which are read otherwise than one would think."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from mibench.data.images import Box, Frame, counted, decode, left_out
from mibench.store import remark
from mibench.types import ImageSet

File = tuple[Path, int]
"""An image and its label."""


def read_images(
    parts: Mapping[str, Sequence[File]],
    size: int,
    channels: int,
    cut: tuple[Frame, Box] | None = None,
) -> dict[str, ImageSet]:
    """Decodes the parts of a task; remarks on images read otherwise than stored, and on copies.

    Args:
        parts: "train", "test" and, where it is a part of its own, "public" → the files.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey.
        cut: The size that all images have, and what to cut out before resizing; without it,
            the largest central square.

    Raises:
        ValueError: As :func:`decode` does.
    """
    sets = {}
    for part, files in parts.items():
        remarks: dict[str, list[Path]] = {}
        pixels = decode([path for path, _ in files], size, channels, cut, remarks)
        sets[part] = ImageSet(pixels, torch.tensor([label for _, label in files]))
        for what, paths in remarks.items():
            remark(f"{len(paths)} of {len(files)} {part} images {what}.", _such_as(paths))
    _remark_on_copies(parts, sets)
    return sets


def remark_on_left_out(part: str, top: Path, read: Collection[str], known: Iterable[str]) -> None:
    """Remarks on what lies in a part's folder and is not read.

    Args:
        part: "train", "test" or "public".
        top: Its folder.
        read: Names of the folders in it whose images are read; "" for its own images.
        known: Names of folders in it that are not read on purpose.
    """
    if (sentence := said_of_left_out(part, top, read, known)) is not None:
        remark(*sentence)


def said_of_left_out(
    part: str, top: Path, read: Collection[str], known: Iterable[str] = ()
) -> tuple[str, str] | None:
    """Returns the sentence of :func:`remark_on_left_out`, and examples; None if all is read."""
    looks = [left_out(top, own="" in read, within={*read, *known})]
    looks += [left_out(top / name) for name in read if name]
    reasons: dict[str, list[Path]] = defaultdict(list)
    for look in looks:
        for reason, paths in look.items():
            reasons[reason] += paths
    if not reasons:
        return None
    examples = [paths[0] for paths in reasons.values()]
    return f"Left out of the {part} images: {counted(reasons)}.", _such_as(examples)


def _such_as(paths: Iterable[object]) -> str:
    return f"Such as {', '.join(map(str, list(paths)[:3]))}."


def _remark_on_copies(parts: Mapping[str, Sequence[File]], sets: Mapping[str, ImageSet]) -> None:
    """Remarks on images that are equal, pixel by pixel, as they are read."""
    equal: dict[bytes, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))
    contents: dict[int, list[bytes]] = defaultdict(list)  # of the train images, by label
    for part, files in parts.items():
        for pixels, file in zip(sets[part].pixels, files, strict=True):
            digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
            equal[digest][part].append(file)
            if part == "train":
                contents[file[1]].append(digest)
    pairs: dict[str, list[tuple[Path, Path]]] = defaultdict(list)  # of equal files
    for group in equal.values():
        train, test = group["train"], group["test"]
        private = train + test
        pairs["seen"] += [(path, train[0][0]) for path, _ in test if train]
        pairs["public"] += [(path, private[0][0]) for path, _ in group["public"] if private]
        for part in ("train", "test"):
            first: dict[int, Path] = {}
            for path, label in group[part]:
                if label in first:
                    pairs[part].append((path, first[label]))
                first.setdefault(label, path)
        firsts: dict[int, Path] = {}
        for path, label in private:
            firsts.setdefault(label, path)
        for path, label in private if len(firsts) > 1 else ():
            other = next(twin for owner, twin in firsts.items() if owner != label)
            pairs["classes"].append((path, other))
    total = {part: len(files) for part, files in parts.items()}
    sentences = {
        "seen": "of {test} test images are train images too: Accuracy counts them as unseen",
        "train": "of {train} train images repeat one of their class: they weigh more, and what "
        "is held out for validation may be trained on",
        "test": "of {test} test images repeat one of their class: they weigh more in Accuracy",
        "classes": "train and test images are found under another class too: nobody can tell "
        "whose they are",
        "public": "of {public} public images are private ones too: the prior has seen what it "
        "is to find",
    }
    for what, sentence in sentences.items():
        if copies := pairs[what]:
            examples = [f"{path} (as {other})" for path, other in copies]
            remark(f"{len(copies)} {sentence.format(**total)}.", _such_as(examples))
    owners = {digest: {label for _, label in group["train"]} for digest, group in equal.items()}
    twins = sorted(
        label
        for label, mine in contents.items()
        if set.intersection(*(owners[digest] for digest in mine)) - {label}
    )
    if twins:
        remark(
            f"Classes of which every train image is found under another class too: {len(twins)}. "
            "An attack on one is an attack on the other.",
            _such_as(f"class {label}" for label in twins),
        )
