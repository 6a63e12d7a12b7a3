"""How evidence is gathered: which reconstructions, which real images, which is most alike."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.data import Corpus
from mibench.evaluation.distance import nearest
from mibench.evaluation.evidence import Compared, UndefinedError
from mibench.evaluation.similarity import structural_similarity
from mibench.seeding import generator
from mibench.ties import in_top
from mibench.types import Classifier, Images, ImageSet, Labels, Logits, predict


def best_moment(
    moments: Float[Tensor, "moments samples classes c h w"], evaluator: Classifier
) -> tuple[Images, Logits, Float[Tensor, "n d"]]:
    """Returns each class's images at the moment when most of them hit, the first of equals.

    Args:
        moments: Images at several moments of an attack, or at one.
        evaluator: Says what hits.

    Returns:
        The images, pass by pass (samples * classes), and the evaluator's logits and features.
    """
    samples, classes = moments.shape[1:3]
    labels = torch.arange(classes).repeat(samples)
    judged, hits = [], []
    for images in moments:
        x = images.float().flatten(0, 1)
        judged.append((x, *predict(evaluator, x, generator("evaluation"))))
        hits.append(in_top(judged[-1][1], labels).view(samples, classes).sum(0))
    if len(moments) == 1:
        return judged[0]
    first = torch.stack(hits).argmax(0)[labels]  # argmax takes the first of equals
    image = torch.arange(len(labels))
    x, logits, features = (torch.stack(part)[first, image] for part in zip(*judged, strict=True))
    return x, logits, features


def real_images(
    corpus: Corpus, part: Literal["train", "all"], classes: int, most: int
) -> ImageSet:
    """Returns the real images that reconstructions are compared with, class by class.

    Args:
        corpus: The private one.
        part: Of which images: the "train" images, or "all", train before test.
        classes: How many classes are attacked, from class 0 on.
        most: How many images of each: the first, or all where there are fewer.
    """
    owned = corpus.train
    if part == "all":
        parts = (corpus.train, corpus.test)
        owned = ImageSet(
            *(torch.cat([getattr(p, f) for p in parts]) for f in ("pixels", "labels"))
        )
    places = [(owned.labels == c).nonzero()[:most, 0] for c in range(classes)]
    return owned.take(torch.cat(places))


def likeness(
    x: Images, labels: Labels, features: Compared, real: ImageSet
) -> Float[Tensor, " n"] | None:
    """Returns each image's structural similarity to the nearest real image of its class.

    Args:
        x: Reconstructions.
        labels: Their attacked classes.
        features: Decide which real image is nearest.
        real: The real images.

    Returns:
        Values from -1 to 1; None if a class has no real image.
    """
    try:
        place = nearest(features.reconstructed, labels, features.real, real.labels)[1]
    except UndefinedError:
        return None
    return structural_similarity(x, real.images[place])
