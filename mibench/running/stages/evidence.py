"""What the evaluators say of reconstructions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mibench.data import Corpus
from mibench.evaluation import Evidence, UndefinedError
from mibench.evaluation.inception import inception_features, inception_file
from mibench.evaluation.manifold import nearest
from mibench.evaluation.metrics import stretch
from mibench.evaluation.similarity import structural_similarity
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.inversion import InversionStage
from mibench.seeding import generator
from mibench.store import Payload, Stage, Work
from mibench.ties import in_top
from mibench.types import Classifier, ImageSet, predict


@dataclass(frozen=True)
class EvidenceStage(Stage):
    """What the evaluators say of the reconstructions, and the target of them and its test set.

    Attributes:
        images: The task's images.
        inversion: What is judged.
        evaluator: The classifier that gives the table's numbers.
        others: Further ones.
        real: How many real images of each attacked class it is compared with.
        real_part: Of which part.
        select: Which of an attack's moments count.
        inception: Digest of the weights of Inception-v3; "" if its features are not asked for,
            or the weights are not there.
    """

    kind: ClassVar[str] = "evidence"
    version: ClassVar[int] = 3

    images: ImagesStage
    inversion: InversionStage
    evaluator: ClassifierStage
    others: tuple[ClassifierStage, ...]
    real: int
    real_part: Literal["train", "all"]
    select: Literal["last", "evaluator"]
    inception: str = ""

    def describe(self) -> str:
        """Returns whose evidence it is."""
        return f"evidence {self.inversion.describe()}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the fields of :class:`Evidence`."""
        run = self.inversion
        private = self.images.splits(load).private
        evaluator = self.evaluator.classifier(load, work.device)
        target = run.target.classifier(load, work.device)
        found = load(run)
        moments = found["images"][None]
        if self.select == "evaluator":
            moments = torch.cat([found["earlier"], moments])
        x, logits, features = _best(moments, evaluator)
        labels = torch.arange(run.classes).repeat(run.samples)
        owned = self.compared(private)
        real = owned.images
        _, real_features = predict(evaluator, owned, generator("real"))
        _, stretched = predict(evaluator, stretch(x), generator("evaluation"))
        _, real_stretched = predict(evaluator, stretch(real), generator("real"))
        others = [
            predict(e.classifier(load, work.device), x, generator("evaluation"))[0]
            for e in self.others
        ]
        seed = run.target.seed
        target_logits, _ = predict(target, x, generator(seed, "reconstructions"))
        test_logits, _ = predict(target, private.test, generator(seed, "test"))
        if (released := run.target.released(load, torch.device("cpu"))) is not None:
            rng = generator(seed, "release", "reconstructions")
            target_logits = released.logits(target_logits, x, rng)
            rng = generator(seed, "release", "test")
            test_logits = released.logits(test_logits, private.test.images, rng)
        try:
            place = nearest(features, labels, real_features, owned.labels)[1]
            similar = structural_similarity(x, real[place])
        except UndefinedError:
            similar = None
        inception = real_inception = None
        if self.inception:
            path = inception_file(work.data)
            inception, real_inception = (
                inception_features(images, path, self.inception, work.device)
                for images in (x, real)
            )
        block = torch.cat([torch.full((len(b),), i) for i, b in enumerate(run.blocks)])
        evidence = Evidence(
            labels=labels,
            block=block.repeat(run.samples),
            passes=torch.arange(run.samples).repeat_interleave(run.classes),
            logits=logits,
            features=features,
            real=real_features,
            real_labels=owned.labels,
            test_logits=test_logits,
            test_labels=private.test.labels,
            others=torch.stack(others) if others else None,
            target_logits=target_logits,
            stretched=stretched,
            real_stretched=real_stretched,
            ssim=similar,
            inception=inception,
            real_inception=real_inception,
        )
        return vars(evidence).copy()

    def evidence(self, load: Load) -> Evidence:
        """Returns the evidence from the store."""
        return Evidence(**load(self))

    def compared(self, private: Corpus) -> ImageSet:
        """Returns the real images behind ``Evidence.real``, in their order."""
        owned = private.train if self.real_part == "train" else _joined(private)
        return owned.take(_first(owned.labels, self.inversion.classes, self.real))

    def judged(self, load: Load) -> Tensor:
        """Returns the reconstructions behind ``Evidence.logits``, (n, c, h, w), in their order."""
        found = load(self.inversion)
        if self.select == "last":
            last: Tensor = found["images"].float().flatten(0, 1)
            return last
        moments = torch.cat([found["earlier"], found["images"][None]])
        return _best(moments, self.evaluator.classifier(load, torch.device("cpu")))[0]


def _best(moments: Tensor, evaluator: Classifier) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each class's images at the moment when most of them hit, the first of equals.

    Args:
        moments: Images (moments, samples, classes, c, h, w).
        evaluator: Says what hits.

    Returns:
        The images, (samples * classes, c, h, w), and the evaluator's logits and features.
    """
    samples, classes = moments.shape[1:3]
    labels = torch.arange(classes).repeat(samples)
    seen, hits = [], []
    for images in moments:
        x = images.float().flatten(0, 1)
        seen.append((x, *predict(evaluator, x, generator("evaluation"))))
        hits.append(in_top(seen[-1][1], labels).view(samples, classes).sum(0))
    first = torch.stack(hits).argmax(0)[labels]  # argmax takes the first of equals
    if len(moments) == 1:
        return seen[0]
    x, logits, features = (torch.stack(part) for part in zip(*seen, strict=True))
    image = torch.arange(len(labels))
    return x[first, image], logits[first, image], features[first, image]


def _joined(corpus: Corpus) -> ImageSet:
    """Returns the train images, then the test images."""
    parts = (corpus.train, corpus.test)
    return ImageSet(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]))


def _first(labels: Tensor, classes: int, count: int) -> Tensor:
    """Returns the positions of the first ``count`` images of each class."""
    return torch.cat([(labels == c).nonzero()[:count, 0] for c in range(classes)])
