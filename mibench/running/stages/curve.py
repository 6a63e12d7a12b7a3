"""Query curves: Attack Acc against the answers of the target that were spent."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.inversion import InversionStage
from mibench.running.stages.record import RecordStage
from mibench.seeding import generator
from mibench.spec import field_values
from mibench.store import Payload, Stage, Work
from mibench.ties import in_top
from mibench.types import predict

MARKS = tuple(digit * 10**power for power in range(7) for digit in (1, 2, 5))
"""Answers for each class at which an attack is judged."""


@dataclass(frozen=True)
class CurveInversion(InversionStage):
    """The same run of an attack, which also keeps what it had at stated numbers of answers.

    Its last images are those of the other stage. A moment is the state after the first round at
    whose end that number was spent; what counts then is the attack's own choice.

    Attributes:
        marks: Answers for each attacked class.
    """

    marks: tuple[int, ...] = MARKS

    @property
    def moments_at(self) -> tuple[int, ...]:
        """The marks."""
        return self.marks


@dataclass(frozen=True)
class CurveStage(Stage):
    """What the evaluator says of each moment of one inversion."""

    kind: ClassVar[str] = "curve"

    inversion: CurveInversion
    evaluator: ClassifierStage

    def describe(self) -> str:
        """Returns whose curve it is."""
        return f"curve of {self.inversion.describe()}"

    @cached_property
    def needs(self) -> tuple[Stage, ...]:
        """The inversion, the evaluator, and what asked the target before the attack."""
        return (self.inversion, self.evaluator, *self.inversion.taught)

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns "points", and the answers "shared" by all classes before the attack.

        A point has the last "mark" passed, 0 for the attack's end; how many answers the attack
        has "asked" for until then, about all classes; and "attack_acc" in percent, of all
        images, whatever a protocol would keep of them.
        """
        run, attacked = self.inversion, load(self.inversion)
        end = {"images": attacked["images"], "asked": attacked["budget"]["queries"]}
        before = [m for m in attacked["moments"] if m["asked"] < end["asked"]]
        evaluator = self.evaluator.classifier(load, work.device)
        labels = torch.arange(run.classes).repeat(run.samples)
        points = []
        for moment in (*before, end):
            x = moment["images"].float().flatten(0, 1)
            logits, _ = predict(evaluator, x, generator("evaluation"))
            points.append(
                {
                    "mark": run.marks[moment["passed"] - 1] if "passed" in moment else 0,
                    "asked": moment["asked"],
                    "attack_acc": 100 * in_top(logits, labels).mean().item(),
                }
            )
        return {"points": points, "shared": sum(load(s)["queries"] for s in run.taught)}


def curve_stage(record: RecordStage) -> CurveStage:
    """Returns the stage of a record's curve, that of its first repeat."""
    evidence = record.evidence[0]
    return CurveStage(CurveInversion(**field_values(evidence.inversion)), evidence.evaluator)
