"""Somebody's own trained model and images: laid out as a task, and checked for usual mistakes."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mibench.data import Corpus, Splits
from mibench.data.images import image_files, subfolders
from mibench.networks.foreign.given import NORMALISATIONS, Given
from mibench.seeding import generator
from mibench.ties import in_top
from mibench.types import ImageSet, Shape, predict

MOST_PUBLIC = 6400
"""Public images that are used at most, evenly over all: a hundred steps of a prior's training."""
MOST_CHECKED = 1000
"""Images of a part that are looked at to find mistakes, evenly over all."""
SURE = 0.001
"""Level of the tests by which a mistake is named."""
LEAST_GAIN = 5.0
"""By how many percent of the images another reading must be better to be called a mistake."""


@dataclass(frozen=True)
class Checked:
    """What was found before anything was attacked.

    Attributes:
        accuracy: Of the model on all test images, in percent.
        train_accuracy: On all train images.
        tests: How many test images there are.
        faults: Sentences: what makes every further number mean nothing.
        order: Names of the classes in the order of the model's outputs that fits best.
    """

    accuracy: float
    train_accuracy: float
    tests: int
    faults: tuple[str, ...]
    order: tuple[str, ...]


def lay_out(
    place: Path, train: Path, test: Path, public: Path, order: Sequence[str] = ()
) -> tuple[list[str], tuple[int, int]]:
    """Makes a folder of links as the task ``folder`` reads it: ``private``, ``public``.

    Args:
        place: The folder; links that were laid out there before are removed.
        train: A folder of images for each class.
        test: The same of images that the model was not trained on.
        public: Images, or folders of them, of others.
        order: Names of the classes in the order of the model's outputs; () for that of the names.

    Returns:
        The classes' names in that order; how many public images are used, and how many there are.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no class, the order names others, a class is public too, or the
            folder holds files that are no links, which are nobody's to remove.
    """
    for folder in (train, test, public):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
    names = [folder.name for folder in subfolders(train)]
    if len(names) < 2:
        raise ValueError(f"{train} has {len(names)} folders, and each class is a folder of images")
    if order and sorted(order) != names:
        wrong = sorted(set(order) ^ set(names)) or sorted({n for n in order if order.count(n) > 1})
        raise ValueError(
            f"the order must name each folder in {train} once: {', '.join(wrong[:3])} is not"
        )
    others = [folder.name for folder in subfolders(public)]
    if both := sorted(set(names) & set(others)):  # by their own names: an order makes others
        raise ValueError(
            f"identity {both[0]!r} is both private and public: take its folder out of {public}"
        )
    for inside, _, files_there in os.walk(place):
        if kept := [name for name in files_there if not Path(inside, name).is_symlink()]:
            raise ValueError(
                f"{Path(inside, kept[0])} would be removed: name another folder as out"
            )
    shutil.rmtree(place, ignore_errors=True)
    digits = len(str(len(names)))
    for part, source in (("train", train), ("test", test)):
        folder = place / "private" / part
        folder.mkdir(parents=True)
        for i, name in enumerate(order):
            if (source / name).is_dir():
                (folder / f"{i:0{digits}d} {name}").symlink_to((source / name).resolve())
        for found in () if order else subfolders(source):
            (folder / found.name).symlink_to(found.resolve())
    files = [(file, "") for file in image_files(public)]
    files += [(file, own.name) for own in subfolders(public) for file in image_files(own)]
    used = _evenly(len(files), MOST_PUBLIC).tolist()
    (place / "public").mkdir(parents=True)
    for file, own in (files[i] for i in used):
        (place / "public" / own).mkdir(exist_ok=True)
        (place / "public" / own / file.name).symlink_to(file.resolve())
    return list(order) or names, (len(used), len(files))


def check_model(spec: Given, splits: Splits, names: Sequence[str]) -> Checked:
    """Returns the model's accuracy, and which of the usual mistakes explain a low one.

    The order of the classes that fits best is found on train images; whether it is better than
    that of the names is judged on test images of the classes that change places. Normalisations
    are compared on all images. Each is a sign test over the images that only one of two readings
    gets right.

    Args:
        spec: The model.
        splits: Its images.
        names: Of its classes.
    """
    private = splits.private
    shape = _shape(private.train)
    readings = {"": (spec.mean, spec.std)}
    readings |= {k: v for k, v in _normalisations(private.train).items() if v != readings[""]}
    parts = [p.take(_evenly(len(p), MOST_CHECKED)) for p in (private.train, private.test)]
    fits: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, (mean, std) in readings.items():
        network = replace(spec, mean=mean, std=std).build(shape, private.num_classes).eval()
        seen = [predict(network, part, generator("check"))[0].argmax(1) for part in parts]
        fits[name] = _fit(seen, parts, private.num_classes)
    own = max(fits, key=lambda name: float(fits[name][1].float().mean()))
    faults = []
    if own and _better(fits[own][1], fits[""][1]):
        faults.append(
            f"normalisation: with {_said(own, readings[own])} the model is right about "
            f"{_percent(fits[own][1])} of the images, with the one that was given about "
            f"{_percent(fits[''][1])}"
        )
    else:
        own = ""
    order, mapped, plain = fits[own]
    count = len(parts[0])
    moved = (order != torch.arange(len(order)))[parts[1].labels]  # for others nothing changes
    if _better(mapped[count:][moved], plain[count:][moved]):
        wrong = next(i for i, c in enumerate(order.tolist()) if i != c)
        faults.append(
            "class order: the model's outputs are not in the order of the folders' names: output "
            f"{wrong} answers to {names[int(order[wrong])]}, not to {names[wrong]}; in the order "
            f"that fits best it is right about {_percent(mapped[count:])} of the test images, in "
            f"that of the names about {_percent(plain[count:])}"
        )
    accuracy, train_accuracy = _accuracies(spec, private)
    chance = 100 / private.num_classes
    if not faults and accuracy <= 2 * chance:
        faults.append(
            f"accuracy: the model is right about {accuracy:.2f} % of the test images, and a guess "
            f"about {chance:.2f} %: the images are not read as it was trained on them (size, "
            "colours, classes)"
        )
    ordered = tuple(names[i] for i in order.tolist())
    return Checked(accuracy, train_accuracy, len(private.test), tuple(faults), ordered)


def _shape(images: ImageSet) -> Shape:
    _, channels, height, width = images.pixels.shape
    return channels, height, width


def _accuracies(spec: Given, private: Corpus) -> tuple[float, float]:
    """Returns the accuracy on all test and all train images, in percent."""
    shape = _shape(private.train)
    network = spec.build(shape, private.num_classes).eval()
    test, train = (
        100 * in_top(predict(network, part, generator("check"))[0], part.labels).mean().item()
        for part in (private.test, private.train)
    )
    return test, train


def _normalisations(train: ImageSet) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Returns those that are common, and that of the images themselves."""
    x = train.take(_evenly(len(train), MOST_CHECKED)).images
    std, mean = torch.std_mean(x, dim=(0, 2, 3))
    if not (std > 1e-6).all():
        return dict(NORMALISATIONS)
    own = (tuple(mean.tolist()), tuple(std.tolist()))
    fitting = {k: v for k, v in NORMALISATIONS.items() if len(v[0]) in (1, x.shape[1])}
    return {**fitting, "own": own}


def _fit(
    seen: Sequence[Tensor], parts: Sequence[ImageSet], classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns output → class in the order that fits the train images best, and what is right.

    That is, of the train images and then the test images: right in that order, right as named.
    """
    from scipy.optimize import linear_sum_assignment

    counts = torch.zeros(classes, classes)
    counts.index_put_((seen[0], parts[0].labels), torch.ones(len(seen[0])), accumulate=True)
    counts += 0.5 * torch.eye(classes)  # of equals, the one by name
    order = torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])
    answers, labels = torch.cat(list(seen)), torch.cat([part.labels for part in parts])
    return order, order[answers] == labels, answers == labels


def _better(a: Tensor, b: Tensor) -> bool:
    """Whether a reading is right about significantly and clearly more images than another."""
    from scipy.stats import binomtest

    more, fewer = int((a & ~b).sum()), int((b & ~a).sum())
    if 100 * (more - fewer) < LEAST_GAIN * max(1, len(a)):
        return False
    return bool(binomtest(more, more + fewer, alternative="greater").pvalue < SURE)


def _said(name: str, numbers: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
    if name in NORMALISATIONS:
        return f"--mean {name}"
    mean, std = (",".join(f"{v:.3g}" for v in each) for each in numbers)
    return f"--mean {mean} --std {std}, those of the train images,"


def _percent(right: Tensor) -> str:
    return f"{100 * right.float().mean():.1f} %"


def _evenly(count: int, most: int) -> Tensor:
    """Returns at most ``most`` of ``count`` positions, evenly over all."""
    return torch.arange(count)[:: max(1, -(-count // most))]
