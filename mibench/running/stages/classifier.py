"""Targets and evaluators."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mibench.data import Corpus
from mibench.defenses import Recipe
from mibench.roles import Defense, NetworkSpec
from mibench.running.stages.base import Load, Part
from mibench.running.stages.images import ImagesStage
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
        who = "evaluator" if self.part == "evaluation" else f"target {brief(self.defense)}"
        return f"{who} {self.network.name}"

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
            trained = train_classifier(network, self.defense, self.recipe, corpus, rng, work, own)
        network.load_state_dict(trained["state"])
        logits, _ = predict(network, corpus.test, generator(self.seed, "test"))
        return trained | {
            "num_classes": corpus.num_classes,
            "accuracy": 100 * in_top(logits, corpus.test.labels).mean().item(),
        }

    def classifier(self, load: Load, device: torch.device) -> Classifier:
        """Returns the trained network, frozen and in eval mode."""
        payload = load(self)
        with seeded("shapes only"):
            network = self.network.build(self.images.task.shape, payload["num_classes"])
            network = self.defense.harden(network)
        network.load_state_dict(payload["state"])
        return network.to(device).eval().requires_grad_(requires_grad=False)
