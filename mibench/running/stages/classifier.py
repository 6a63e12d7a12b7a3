"""Targets and evaluators."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from mibench.data import Corpus
from mibench.defenses import Recipe, Released
from mibench.roles import Defense, NetworkSpec
from mibench.running.stages.base import Load, Part
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.outliers import OutlierStage
from mibench.seeding import generator, seeded
from mibench.spec import brief
from mibench.store import Payload, Stage, Work
from mibench.ties import in_top
from mibench.training.train import train_classifier
from mibench.types import Classifier, predict


@dataclass(frozen=True)
class ClassifierStage(Stage):
    """A trained classifier: a target (private part) or an evaluator (evaluation part)."""

    kind: ClassVar[str] = "classifier"

    images: ImagesStage
    part: Part
    network: NetworkSpec
    defense: Defense
    recipe: Recipe
    seed: int

    def describe(self) -> str:
        """Returns what is trained."""
        who = "evaluator" if self.part == "evaluation" else f"target {self.title}"
        return f"{who} {self.network.name}"

    @property
    def title(self) -> str:
        """The defense and its values."""
        return brief(self.defense)

    @property
    def trained(self) -> "ClassifierStage":
        """The stage that trains the network: this one."""
        return self

    @cached_property
    def needs(self) -> tuple[Stage, ...]:
        """The images, and the outliers where the defense wants some."""
        return (self.images, *([self._outliers] if self.defense.wants_outliers else []))

    @property
    def _outliers(self) -> OutlierStage:
        return OutlierStage(self.images)

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the weights, the history and the accuracy on the part's test images."""
        splits = self.images.splits(load)
        corpus: Corpus = getattr(splits, self.part)
        with seeded(self.seed, "init", self.part):
            network = self.network.build(self.images.task.shape, corpus.num_classes)
            self.network.initialise(network, work.data)
            network = self.defense.harden(network)
            if not isinstance(network, Classifier):
                raise ValueError(
                    f"harden of {self.defense.name} must return the network to train, "
                    f"got {type(network).__name__}"
                )
            self.network.finish(network, work.data)
        rng = generator(self.seed, "batches", self.part)
        with seeded(self.seed, "noise", self.part):  # for layers that draw on their own
            own = generator(self.seed, "defense", self.part)
            outliers = None
            if self.defense.wants_outliers:
                others = generator(self.seed, "outliers", self.part)
                outliers = (self._outliers.outliers(load), others)
            trained = train_classifier(
                network, self.defense, self.recipe, corpus, rng, work, own, outliers
            )
        network.load_state_dict(trained["state"])
        logits, _ = predict(network, corpus.test, generator(self.seed, "test"))
        held_out = int(corpus.validation.sum()) if self.recipe.select == "validation" else 0
        facts = self.defense.facts(self.recipe, len(corpus.train) - held_out)
        return trained | {
            "num_classes": corpus.num_classes,
            "accuracy": 100 * in_top(logits, corpus.test.labels).mean().item(),
            **({"facts": facts} if facts else {}),
        }

    def classifier(self, load: Load, device: torch.device) -> Classifier:
        """Returns the trained network, frozen and in eval mode."""
        payload = load(self)
        with seeded("shapes only"):
            network = self.network.build(self.images.task.shape, payload["num_classes"])
            network = self.defense.harden(network)
        network.load_state_dict(payload["state"])
        return network.to(device).eval().requires_grad_(requires_grad=False)

    def released(self, load: Load, device: torch.device) -> Released | None:
        """Returns None: what the network says is let out as it is."""
        return None

    def facts(self, load: Load) -> dict[str, float]:
        """Returns what the defense says of every target trained so."""
        declares = type(self.defense).facts is not Defense.facts  # else nothing need be read
        facts: dict[str, float] = load(self).get("facts", {}) if declares else {}
        return facts
