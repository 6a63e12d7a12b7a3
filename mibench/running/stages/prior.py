"""Priors."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mibench.attacks.access import handed
from mibench.roles import PriorSpec
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.release import ReleaseStage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Work
from mibench.types import Prior


@dataclass(frozen=True)
class PriorStage(Stage):
    """A trained generative prior; ``target`` is None unless the prior sees it."""

    kind: ClassVar[str] = "prior"

    images: ImagesStage
    target: ClassifierStage | ReleaseStage | None
    spec: PriorSpec
    seed: int

    def describe(self) -> str:
        """Returns the prior's name, and of its target's defense."""
        seen = f" of {self.target.title}" if self.target else ""
        return f"prior {self.spec.name}{seen}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the weights, the history and how often the target was asked."""
        public = self.images.splits(load).public.to(work.device)
        target = None
        if self.target is not None:
            network = self.target.classifier(load, work.device)
            released = self.target.released(load, work.device)
            who = f"the prior {self.spec.name}"
            target = handed(network, self.spec.access, work, released=released, who=who)
        with seeded(self.seed, "init", self.spec.name):
            prior = self._build().to(work.device)
        with seeded(self.seed, "noise", self.spec.name):  # for targets that draw on their own
            self.spec.train(prior, public, target, generator(self.seed, self.spec.name), work)
        return {
            "state": prior.state_dict(),
            "history": prior.history,
            "queries": work.queries,
        }

    def prior(self, load: Load, device: torch.device) -> Prior:
        """Returns the trained prior, frozen and in eval mode."""
        with seeded("shapes only"):
            prior = self._build()
        prior.load_state_dict(load(self)["state"])
        return prior.to(device).eval().requires_grad_(requires_grad=False)

    def _build(self) -> Prior:
        return self.spec.build(self.images.task.shape, self.images.task.num_classes)
