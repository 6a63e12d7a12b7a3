"""The stages that checks run: on few drawn images, with networks that nobody has trained."""

import copy
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from mibench.attacks import WGANGP, PriorSamples
from mibench.attacks.access import NO_LIMIT, Query, Watched
from mibench.benchmarks.cell import Cell, Evaluator, Setting, Trials
from mibench.defenses import NoDefense, Recipe
from mibench.roles import Attack, Defense, PriorSpec
from mibench.running.checks.base import NETWORK, TASK, tiny
from mibench.running.stages import (
    ClassifierStage,
    ImagesStage,
    InversionStage,
    Load,
    PriorStage,
    record_stage,
)
from mibench.seeding import seeded
from mibench.store import Payload, Stage, Work
from mibench.types import Classifier, Images, Logits

IMAGES = ImagesStage(TASK, "drawn")
SETTING = Setting(TASK, NETWORK, (Evaluator(NETWORK, Recipe(epochs=1)),))
TRIALS = Trials(classes=4, samples=3, block=2)
_computed: dict[str, Payload] = {}


def load(stage: Stage) -> Payload:
    """Returns a stage's payload; those of networks have the weights of a fresh one."""
    if stage.key not in _computed:
        _computed[stage.key] = _payload(stage)
    return _computed[stage.key]


def _payload(stage: Stage) -> Payload:
    if isinstance(stage, PriorStage):
        with seeded("checks"):
            prior = stage.spec.build(TASK.shape, TASK.num_classes)
        return {"state": prior.state_dict(), "history": {}, "queries": 0}
    return stage.compute(load, Work())


class Tally(Classifier):
    """A target that counts for itself; its copies count together.

    Attributes:
        target: The network.
        answers: How many it gave, call by call.
        gradients: Of how many of its images a gradient was taken, call by call.
    """

    def __init__(self, target: Classifier) -> None:
        super().__init__()
        self.target = target
        self.num_classes, self.noise_dim = target.num_classes, target.noise_dim
        self.neck, self.last = target.neck, target.last
        self.answers: list[int] = []
        self.gradients: list[int] = []
        self.before = {k: v.clone() for k, v in target.state_dict().items()}
        self.eval()

    def __deepcopy__(self, memo: dict[int, object]) -> "Tally":
        twin = Tally(copy.deepcopy(self.target, memo))
        twin.answers, twin.gradients = self.answers, self.gradients
        return twin.train(self.training)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns the target's latents."""
        zs = self.target.latents(x)
        if zs[-1].requires_grad:
            zs[-1].register_hook(lambda g: self.gradients.append(len(g)))  # type: ignore[no-untyped-call]
        return zs

    def head(self, z: Tensor, noise: Tensor | None = None) -> Logits:
        """Returns the target's logits."""
        self.answers.append(len(z))
        return self.target.head(z, noise)

    def damage(self) -> str:
        """Returns what was done to the target and what to do instead; "" if nothing was."""
        for name, value in self.target.state_dict().items():
            if not torch.equal(value, self.before[name]):
                return (
                    f"it changes the target's {name}: work on a copy, copy.deepcopy(target), "
                    "whose answers are counted too"
                )
        for name, weight in self.target.named_parameters():
            if weight.grad is not None:
                return (
                    f"it leaves a gradient on the target's {name}: take gradients of what it "
                    "moves alone, torch.autograd.grad(loss, z)"
                )
            if weight.requires_grad:
                return (
                    f"it makes the target's {name} trainable: leave requires_grad of the target "
                    "as it is, or work on a copy, copy.deepcopy(target)"
                )
        if any(module.training for module in self.modules()):
            return (
                "it leaves the target in training mode: leave the mode as it is, or work on a "
                "copy, copy.deepcopy(target)"
            )
        return ""


class TargetStage(ClassifierStage):
    """A target that was made beforehand, so that it can be looked at afterwards."""

    made: ClassVar[Classifier]

    def classifier(self, load: Load, device: torch.device) -> Classifier:
        """Returns it."""
        return self.made


def target_stage(made: Classifier) -> TargetStage:
    """Returns a stage whose classifier is the one given."""
    stage = TargetStage(IMAGES, "private", NETWORK, NoDefense(), Recipe(epochs=1), 0)
    object.__setattr__(stage, "made", made)
    return stage


class LimitedInversion(InversionStage):
    """An attack whose target alone knows how many answers it gives."""

    limit: ClassVar[int] = NO_LIMIT

    def _handed(self, target: Classifier, load: Load, work: Work) -> Watched | Query:
        handed = super()._handed(target, load, work)
        handed._limit = min(self.limit, handed._limit)
        return handed


def inversion_stage(
    attack: Attack, made: Classifier, seed: int = 0, limit: int = NO_LIMIT
) -> InversionStage:
    """Returns the stage of an attack on the classifier given.

    Args:
        attack: The attack.
        made: What it attacks.
        seed: Of its streams.
        limit: Answers that the target gives, whatever the attack's ``max_queries``.
    """
    stage = LimitedInversion(
        target_stage(made), PriorStage(IMAGES, None, attack.prior, 0), attack, TRIALS.classes,
        TRIALS.samples, TRIALS.block, seed, 0,
    )  # fmt: skip
    object.__setattr__(stage, "limit", limit)
    return stage


def cell(attack: Attack | None = None, defense: Defense | None = None, epochs: int = 1) -> Cell:
    """Returns a small cell with the attack or the defense in it."""
    return Cell(
        SETTING, Recipe(epochs=epochs), defense or NoDefense(),
        attack or PriorSamples(prior=tiny(WGANGP)), TRIALS,
    )  # fmt: skip


def prior_stage(spec: PriorSpec, made: Classifier, seed: int = 0) -> PriorStage:
    """Returns the stage that trains a prior, on the classifier given where the prior needs one."""
    record = record_stage(cell(PriorSamples(prior=spec)), ("attack_acc",), "drawn")
    stage = replace(record.evidence[0].inversion.prior, seed=seed)
    return stage if stage.target is None else replace(stage, target=target_stage(made))
