"""What owners let out of trained targets."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mibench.defenses import Release, Released
from mibench.roles import NetworkSpec
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.images import ImagesStage
from mibench.seeding import generator, seeded
from mibench.spec import brief
from mibench.store import Payload, Stage, Work
from mibench.ties import in_top
from mibench.types import Classifier, ImageSet, predict


@dataclass(frozen=True)
class ReleaseStage(Stage):
    """A trained target behind a release, in the place of a target for all that comes after.

    Attributes:
        trained: The target.
        defense: The release; the target's defense is its ``inner``.
    """

    kind: ClassVar[str] = "release"

    trained: ClassifierStage
    defense: Release

    def describe(self) -> str:
        """Returns what is let out of which target."""
        return f"release {self.title}"

    @property
    def title(self) -> str:
        """The release, the defense behind it, and their values."""
        return f"{brief(self.defense)} of {self.trained.title}"

    @property
    def images(self) -> ImagesStage:
        """The target's."""
        return self.trained.images

    @property
    def network(self) -> NetworkSpec:
        """The target's."""
        return self.trained.network

    @property
    def seed(self) -> int:
        """The target's."""
        return self.trained.seed

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the release's state, and what it costs on the private test images.

        "accuracy" is that of the released scores, in percent; "facts" has "score_distance", the
        mean L1 distance between an image's scores and what is let out of them, 0 to 2 where
        released scores sum to 1.

        Raises:
            ValueError: If the release learns and a class has no held-out image.
        """
        target = self.trained.classifier(load, work.device)
        private = self.images.splits(load).private
        state: dict[str, Tensor] = {}
        if self.defense.learns:
            held_out = private.train.take(private.validation)
            if empty := set(range(private.num_classes)) - set(held_out.labels.tolist()):
                raise ValueError(
                    f"{self.defense.name} learns from held-out images of every class, and class "
                    f"{min(empty)} has none: raise setting.task.validation"
                )
            noise = generator(self.seed, "release", "noise")

            def answer(images: ImageSet) -> Tensor:
                return predict(target, images, noise)[0].softmax(1)

            rng = generator(self.seed, "release", self.defense.name)
            with seeded(self.seed, "release", "init"):
                state = self.defense.fit(answer, held_out, rng, work)
        logits, _ = predict(target, private.test, generator(self.seed, "test"))
        scores = Released(self.defense, state)(
            logits, private.test.images, generator(self.seed, "release", "test")
        )
        return {
            "state": state,
            "accuracy": 100 * in_top(scores, private.test.labels).mean().item(),
            "facts": {"score_distance": (scores - logits.softmax(1)).abs().sum(1).mean().item()},
        }

    def classifier(self, load: Load, device: torch.device) -> Classifier:
        """Returns the trained network behind the release, frozen and in eval mode."""
        return self.trained.classifier(load, device)

    def released(self, load: Load, device: torch.device) -> Released:
        """Returns what turns the network's answers into those that are let out."""
        state = {name: value.to(device) for name, value in load(self)["state"].items()}
        return Released(self.defense, state)

    def facts(self, load: Load) -> dict[str, float]:
        """Returns those of the target, and what the release costs."""
        facts: dict[str, float] = load(self)["facts"]
        return self.trained.facts(load) | facts
