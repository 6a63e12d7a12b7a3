"""What the evaluators say of reconstructions."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mibench.data import Corpus
from mibench.evaluation import Compared, Evidence, Lens, Tools
from mibench.evaluation.gathering import best_moment, likeness, real_images
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.lenses import EVALUATOR, STRETCHED
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.inversion import InversionStage
from mibench.seeding import generator
from mibench.store import Payload, Stage, Work
from mibench.types import ImageSet, predict


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
        """Returns :meth:`Evidence.stored`."""
        run = self.inversion
        private = self.images.splits(load).private
        evaluator = self.evaluator.classifier(load, work.device)
        target = run.target.classifier(load, work.device)
        x, logits, own_features = best_moment(self._moments(load), evaluator)
        labels = torch.arange(run.classes).repeat(run.samples)
        real = self.compared(private)
        features: dict[Lens, Compared] = {
            EVALUATOR: Compared(own_features, predict(evaluator, real, generator("real"))[1])
        }
        for lens, state in self._lenses(load).items():
            features[lens] = Compared(
                *(
                    lens.features(images, Tools(evaluator, stream, work, self.inception, state))
                    for stream, images in (("evaluation", x), ("real", real.images))
                )
            )
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
        block = torch.cat([torch.full((len(b),), i) for i, b in enumerate(run.blocks)])
        return Evidence(
            labels=labels,
            block=block.repeat(run.samples),
            passes=torch.arange(run.samples).repeat_interleave(run.classes),
            logits=logits,
            features=features,
            real_labels=real.labels,
            test_logits=test_logits,
            test_labels=private.test.labels,
            others=torch.stack(others) if others else None,
            target_logits=target_logits,
            released=released is not None,
            ssim=likeness(x, labels, features[EVALUATOR], real),
        ).stored()

    def evidence(self, load: Load) -> Evidence:
        """Returns the evidence from the store."""
        return Evidence.restored(load(self))

    def compared(self, private: Corpus) -> ImageSet:
        """Returns the real images behind the evidence's features, in their order."""
        return real_images(private, self.real_part, self.inversion.classes, self.real)

    def judged(self, load: Load) -> Tensor:
        """Returns the reconstructions behind ``Evidence.logits``, (n, c, h, w), in their order."""
        if self.select == "last":
            last: Tensor = load(self.inversion)["images"].float().flatten(0, 1)
            return last
        evaluator = self.evaluator.classifier(load, torch.device("cpu"))
        return best_moment(self._moments(load), evaluator)[0]

    def _moments(self, load: Load) -> Tensor:
        """Returns the images among which are those that count, the last moment's last."""
        attacked = load(self.inversion)
        last: Tensor = attacked["images"][None]
        if self.select == "last" or attacked["earlier"] is None:  # such as of a single stage
            return last
        return torch.cat([attacked["earlier"], last])

    def _lenses(self, load: Load) -> dict[Lens, Payload]:
        """Returns the lenses beside the evaluator, each with what its training returned."""
        return {STRETCHED: {}} | ({INCEPTION: {}} if self.inception else {})


@dataclass(frozen=True)
class LensStage(Stage):
    """What a lens fits to a task's images before it can be used."""

    kind: ClassVar[str] = "lens"

    images: ImagesStage
    lens: Lens

    def describe(self) -> str:
        """Returns the lens's name."""
        return f"lens {self.lens.name}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns what the lens's training returns."""
        return self.lens.train(self.images.task, self.images.splits(load), work)


@dataclass(frozen=True)
class LensEvidence(EvidenceStage):
    """Evidence with features by further lenses, where a column asks for them.

    Attributes:
        lenses: The further ones; in the place of one that is trained, the stage that trains it.
    """

    lenses: tuple[Lens | LensStage, ...] = ()

    def evidence(self, load: Load) -> Evidence:
        """Returns the evidence from the store."""
        further = tuple(v.lens if isinstance(v, LensStage) else v for v in self.lenses)
        return Evidence.restored(load(self), further)

    def _lenses(self, load: Load) -> dict[Lens, Payload]:
        trained = {v.lens: load(v) for v in self.lenses if isinstance(v, LensStage)}
        plain: dict[Lens, Payload] = {v: {} for v in self.lenses if isinstance(v, Lens)}
        return super()._lenses(load) | plain | trained
