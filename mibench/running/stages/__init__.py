"""A cell's stages, from data to record.

    images ──┬─ classifier (evaluator) ───────────────────────┐
             ├─ classifier (target) ──┬ (release) ┐           │
             │                        └ if seen ┐ │           │
             └─ prior ──────────────────────────┴─┴ inversion ┴ evidence ── record

A release stands between a target and the attacks on it, where a cell has one. A defense that
trains with outliers has a stage of theirs beside the images.

A stage is a pure function of its fields: specs, seeds and the stages it needs. None runs
inside another, so none inherits another's ``no_grad``, seed or timer.
"""

from mibench.running.stages.base import Load, graph
from mibench.running.stages.chain import record_stage
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.evidence import EvidenceStage, LensEvidence, LensStage
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.inversion import InversionStage
from mibench.running.stages.outliers import OutlierStage
from mibench.running.stages.prior import PriorStage
from mibench.running.stages.record import RecordStage
from mibench.running.stages.release import ReleaseStage
from mibench.running.stages.student import StudentStage

__all__ = [
    "ClassifierStage",
    "EvidenceStage",
    "ImagesStage",
    "InversionStage",
    "LensEvidence",
    "LensStage",
    "Load",
    "OutlierStage",
    "PriorStage",
    "RecordStage",
    "ReleaseStage",
    "StudentStage",
    "graph",
    "record_stage",
]
