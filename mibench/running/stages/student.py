"""Networks that learn a target's answers, for identity losses that name them."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mibench.attacks.access import Watched
from mibench.attacks.students import Student
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.images import ImagesStage
from mibench.seeding import generator, seeded
from mibench.spec import brief
from mibench.store import Payload, Stage, Work
from mibench.types import Classifier


@dataclass(frozen=True)
class StudentStage(Stage):
    """A network trained on public images to answer as a target does."""

    kind: ClassVar[str] = "student"

    images: ImagesStage
    target: ClassifierStage
    student: Student
    seed: int

    def describe(self) -> str:
        """Returns what learns from whom."""
        return f"student {self.student.network.name} of {brief(self.target.defense)}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the weights, the history and how many answers it learnt from."""
        public = self.images.splits(load).public.to(work.device)
        target = Watched(self.target.classifier(load, work.device), work)
        with seeded(self.seed, "init", "student"):
            network = self._build()
            self.student.start(network, work.data)
        soft = target.soft_answers(public)
        rng = generator(self.seed, "student")
        with seeded(self.seed, "noise", "student"):  # for layers that draw on their own
            trained = self.student.train(network, public, soft, rng, work)
        return trained | {"queries": work.queries}

    def classifier(self, load: Load, device: torch.device) -> Classifier:
        """Returns the trained network, frozen and in eval mode."""
        with seeded("shapes only"):
            network = self._build()
        network.load_state_dict(load(self)["state"])
        return network.to(device).eval().requires_grad_(requires_grad=False)

    def _build(self) -> Classifier:
        task = self.images.task
        return self.student.network.build(task.shape, task.num_classes)
