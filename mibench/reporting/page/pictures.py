"""Reconstructions as sprites: one picture a row, cut into cells by the page's style sheet."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mibench.evaluation import UndefinedError, traits
from mibench.reporting.gallery import gallery, layout
from mibench.reporting.page.render import visible
from mibench.running.stages import EvidenceStage, RecordStage
from mibench.store import AbsentError, Store, tell
from mibench.ties import in_top

LOSSLESS = 32
"""Width in pixels up to which images are stored without loss; wider ones are compressed."""
MISTAKES = 12
"""Accepted reconstructions of a row with another person's traits that are shown at most."""


@dataclass(frozen=True)
class Tile:
    """A reconstruction and what the evaluator says of it.

    Attributes:
        label: The attacked class.
        sample: Which reconstruction of it.
        verdict: The class that the evaluator sees.
        confidence: How sure it is, in percent.
        hit: Whether the two are the same.
        nearest: Whether the nearest private image of the class is shown.
    """

    label: int
    sample: int
    verdict: int
    confidence: float
    hit: bool
    nearest: bool


@dataclass(frozen=True)
class Mistake:
    """A reconstruction that the evaluator accepts, with another person's traits.

    Attributes:
        label: The attacked class, which the evaluator sees.
        other: Whose traits are nearest, by the first regressor.
        confidence: How sure the evaluator is, in percent.
    """

    label: int
    other: int
    confidence: float


@dataclass(frozen=True)
class Sprite:
    """Images of one size side by side, as the address of a WebP picture.

    Attributes:
        uri: "data:image/webp;base64,..."
        columns: Images in a line.
        lines: 1, or more where private images stand below.
        height: Of one image, in pixels.
        width: Of one image, in pixels.
    """

    uri: str
    columns: int
    lines: int
    height: int
    width: int


def sprite(lines: Sequence[Tensor]) -> Sprite:
    """Returns lines of equally many images (n, c, h, w) in [0, 1] as one picture."""
    from PIL import Image

    n, channels, height, width = lines[0].shape
    joined = torch.cat([torch.cat(list(line), dim=2) for line in lines], dim=1)
    pixels = (joined.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    buffer = io.BytesIO()
    lossless = max(height, width) <= LOSSLESS
    picture.convert("RGB").save(buffer, "WEBP", lossless=lossless, quality=82, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Sprite(uri, n, len(lines), height, width)


def reconstructions(
    stage: EvidenceStage, store: Store, most: int, *, private: bool
) -> tuple[Sprite, list[Tile]]:
    """Returns a row's picture and what to say of each image; arguments as of ``gallery``."""
    shown = gallery(stage, store, most, private=private)
    shares = shown.logits.double().softmax(1)
    sure, verdicts = shares.max(1)
    hits = in_top(shown.logits, shown.labels) == 1
    tiles = [
        Tile(label, sample, verdict, 100 * confidence, hit, private)
        for label, sample, verdict, confidence, hit in zip(
            shown.labels.tolist(),
            shown.samples.tolist(),
            verdicts.tolist(),
            sure.tolist(),
            hits.tolist(),
            strict=True,
        )
    ]
    lines = [shown.images] if shown.nearest is None else [shown.images, shown.nearest]
    return sprite(lines), tiles


def examples(stage: EvidenceStage, store: Store, most: int) -> tuple[Sprite, list[int]]:
    """Returns the first private train images of the first classes, and their classes."""
    run = stage.inversion
    train = stage.images.splits(store.load).private.train
    classes, samples = layout(run.classes, run.samples, most)
    index = torch.cat([(train.labels == c).nonzero()[:samples, 0] for c in range(classes)])
    return sprite([train.take(index).images]), train.labels[index].tolist()


def grids(
    chapter: str,
    done: Mapping[str, RecordStage],
    store: Store,
    identities: int,
    *,
    private: bool,
) -> list[dict[str, Any]]:
    """Returns the private examples, once per task, then each row's reconstructions.

    A row of which a stage is not in the store has what is to be said of that in place of these.
    """
    strips: list[dict[str, Any]] = []
    shown: set[str] = set()
    for label, record in done.items():
        stage = record.evidence[0]
        try:
            if private and stage.images.key not in shown:
                picture, labels = examples(stage, store, identities)
                shown.add(stage.images.key)
                title = f"Private training images of {stage.images.task.name}"
                strips.append({"title": title, "sprite": picture, "labels": labels, "tiles": None})
            picture, tiles = reconstructions(stage, store, identities, private=private)
        except AbsentError as error:
            tell(f"no picture of {visible(label)}: {error.told}")
            strips.append({"title": visible(label), "gap": error.told})
            continue
        strips.append({"title": visible(label), "sprite": picture, "labels": [], "tiles": tiles})
    return [{"id": f"{chapter}g{i}", **grid} for i, grid in enumerate(strips)]


def mistakes(
    chapter: str, done: Mapping[str, RecordStage], store: Store, *, private: bool
) -> list[dict[str, Any]]:
    """Returns of each row the first accepted reconstructions that show another person's traits.

    Below each stand private images of the person it was accepted as, and of the one whose traits
    it shows. Rows in which there are none, or no traits were read, are left out, and all of them
    where private images may not be shown.
    """
    strips: list[dict[str, Any]] = []
    for label, record in done.items() if private else ():
        stage = record.evidence[0]
        e = stage.evidence(store.load)
        try:
            false = (in_top(e.logits, e.labels) == 1) & traits.shows_another(e)
        except UndefinedError:
            continue
        if not len(index := false.nonzero()[:MISTAKES, 0]):
            continue
        own, other = e.labels[index], e.through(traits.FIRST).reconstructed[index].argmin(1)
        try:
            train = stage.images.splits(store.load).private.train
            images = stage.judged(store.load)[index]
        except AbsentError:  # which the row's picture says
            continue
        examples = [
            torch.stack([train.images[train.labels == c][0] for c in persons.tolist()])
            for persons in (own, other)
        ]
        sure = 100 * e.logits[index].double().softmax(1).amax(1)
        tiles = [
            Mistake(*m) for m in zip(own.tolist(), other.tolist(), sure.tolist(), strict=True)
        ]
        picture = sprite([images, *examples])
        strips.append({"title": visible(label), "sprite": picture, "tiles": tiles})
    return [{"id": f"{chapter}f{i}", **strip} for i, strip in enumerate(strips)]
