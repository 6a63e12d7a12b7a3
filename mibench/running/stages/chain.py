"""From a cell to its stages."""

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from mibench.benchmarks.cell import Cell
from mibench.defenses import NoDefense, Release
from mibench.evaluation.evidence import STORED
from mibench.evaluation.inception import INCEPTION
from mibench.roles import Attack
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.evidence import EvidenceStage, LensEvidence, LensStage
from mibench.running.stages.images import ImagesStage
from mibench.running.stages.inversion import InversionStage
from mibench.running.stages.prior import PriorStage
from mibench.running.stages.record import RecordStage
from mibench.running.stages.release import ReleaseStage
from mibench.store import Stage

S = TypeVar("S", bound=Stage)


def record_stage(
    cell: Cell,
    columns: Iterable[str],
    digest: str,
    inception: str = "",
    known: dict[object, Any] | None = None,
) -> RecordStage:
    """Returns the last stage of a cell; the others hang on it.

    Args:
        cell: The cell.
        columns: Names of metrics.
        digest: Of the task's raw data.
        inception: Of the weights of Inception-v3, if they are there; used where a column asks.
        known: Stages made before, which are shared where they are the same. Only so that a
            large grid is planned soon: equal stages have equal keys anyway.
    """
    s, trials, protocol = cell.setting, cell.trials, cell.protocol
    columns = tuple(columns)
    if protocol.least_fid and "fid" not in columns:
        columns = (*columns, "fid")  # so that its version is in the key, and its value in sight
    known = {} if known is None else known
    measured = tuple((c, protocol.metric(c).version) for c in columns)

    def one(cls: type[S], *fields: object) -> S:
        same = tuple(f if isinstance(f, int | str) else id(f) for f in fields)
        if (cls, same) not in known:
            known[cls, same] = cls(*fields)
        made: S = known[cls, same]
        return made

    images = one(ImagesStage, s.task, digest)
    release = cell.defense if isinstance(cell.defense, Release) else None
    defense = release.inner if release is not None else cell.defense
    trained = one(
        ClassifierStage, images, "private", s.network, defense, cell.recipe, cell.seeds.target
    )
    target = one(ReleaseStage, trained, release) if release is not None else trained
    none = known.setdefault(NoDefense, NoDefense())
    judges = tuple(
        one(
            ClassifierStage, images, "evaluation", e.network, none, e.recipe, s.evaluator_seed + i
        )
        for i, e in enumerate(s.evaluators)
    )  # fmt: skip
    others = known.setdefault(("others", *map(id, judges)), judges[1:])
    needed = dict.fromkeys(lens for c in columns for lens in protocol.metric(c).needs)
    lenses = tuple(
        one(LensStage, images, lens) if lens.trained else lens
        for lens in needed
        if lens not in STORED and lens.suits(s.task)
    )
    further = (known.setdefault(("lenses", lenses), lenses),) if lenses else ()

    def evidence(
        attack: Attack, select: Literal["last", "evaluator"]
    ) -> tuple[EvidenceStage, ...]:
        seen = target if attack.prior.access != "none" else None
        prior = one(PriorStage, images, seen, attack.prior, cell.seeds.prior)
        inversions = [
            one(
                InversionStage, target, prior, attack, trials.classes, trials.samples,
                trials.block, cell.seeds.attack, repeat,
            )
            for repeat in range(trials.repeats)
        ]  # fmt: skip
        return tuple(
            one(
                LensEvidence if lenses else EvidenceStage, images, i, judges[0], others,
                protocol.real, protocol.real_part, select,
                inception if INCEPTION in needed else "", *further,
            )
            for i in inversions
        )  # fmt: skip

    return RecordStage(
        cell,
        evidence(cell.attack, protocol.select),
        known.setdefault(measured, measured),
        evidence(cell.control, "last") if cell.control is not None else (),
    )
