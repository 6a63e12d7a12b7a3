"""Scores, with what they were computed from."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from mibench.benchmarks.cell import Cell
from mibench.evaluation import METRICS, Evidence, UndefinedError, measure, score, summarise
from mibench.evaluation.fid import compared
from mibench.evaluation.lenses import EVALUATOR
from mibench.running.stages.base import Load, graph
from mibench.running.stages.evidence import EvidenceStage
from mibench.spec import brief, canonical
from mibench.store import Payload, Stage, Work

OPTIMISTIC = (
    "The samples of each class are those the evaluator liked best of several moments of the "
    "attack: optimistic, since an attacker does not have the evaluator."
)


@dataclass(frozen=True)
class RecordStage(Stage):
    """A cell's scores, with what they were computed from.

    Attributes:
        cell: The cell.
        evidence: One per repeat of the attack.
        metrics: Columns, and the versions of the metrics that fill them.
        controls: Evidence of the cell's control, one per repeat, if it has one.
    """

    kind: ClassVar[str] = "record"
    exact: ClassVar[bool] = True
    version: ClassVar[int] = 3

    cell: Cell
    evidence: tuple[EvidenceStage, ...]
    metrics: tuple[tuple[str, int], ...]
    controls: tuple[EvidenceStage, ...] = ()

    def describe(self) -> str:
        """Returns whose record it is."""
        return f"record {self.evidence[0].inversion.describe()}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns scores, values, index, sizes, evaluators, cell, stages, budget and warnings.

        "values" has, per repeat that counts, each metric's value of every image or class, or of
        the whole, and nothing where it is undefined; "index", per such repeat, the pass, block
        and identity of every image, and the identities in the order of values per class;
        "sizes" how many images of each kind FID compares, in how many dimensions, and how many
        classes the evaluator knows; "panel" each evaluator's test accuracy and Attack Acc;
        "budget" what the attack spent, summed over repeats, and how often its prior asked the
        target; "facts", if there are any, what the defense says of the target, and what a
        release costs: see :class:`ReleaseStage`.
        Seconds and memory vary between runs, so they are in the ``meta.json`` of each stage.
        """
        protocol = self.cell.protocol
        trials = [e.evidence(load) for e in self.evidence]
        for i, control in enumerate(self.controls):
            other = protocol.view(control.evidence(load))  # selected as the attack's are
            trials[i] = replace(
                trials[i], control_logits=other.logits, control_labels=other.labels
            )
        trials = [protocol.view(e) for e in trials]
        counted = protocol.counted(trials)
        scores, values, warnings = {}, {}, [OPTIMISTIC] * (protocol.select == "evaluator")
        if 0 < (samples := self.cell.trials.samples) <= protocol.keep:
            warnings.append(
                f"All {samples} reconstructions of a class count: the protocol keeps as many as "
                f"{protocol.keep}."
            )
        dropped = f"have an FID below {protocol.least_fid:g} and do not count"
        if protocol.least_fid and isinstance(measure(METRICS[protocol.fid], trials), str):
            warnings.append("A repeat that has no FID counts, whatever the least.")
        if left_out := len(trials) - len(counted):
            warnings.append(f"{left_out} of {len(trials)} repeats of an attack {dropped}.")
        for name, _ in self.metrics:
            metric = protocol.metric(name)
            used = counted or (trials[:1] if metric.per == "target" else [])
            each = measure(metric, used) if used else f"all its repeats {dropped}"
            scores[name] = asdict(score(metric, each, used, protocol.spread))
            if isinstance(each, str):
                warnings.append(f"{metric.title}: {each}.")
                each = []
            values[name] = [v.tolist() if isinstance(v, Tensor) else v for v in each]
        facts = self.evidence[0].inversion.target.facts(load)
        return {
            "scores": scores,
            "values": values,
            "index": [
                {
                    "pass": e.passes.tolist(),
                    "block": e.block.tolist(),
                    "identity": e.labels.tolist(),
                    "identities": e.classes,
                }
                for e in counted
            ],
            "sizes": _sizes((counted or trials)[0], protocol.fid),
            "evaluator": {"accuracy": load(self.evidence[0].evaluator)["accuracy"]},
            "panel": _panel(self.evidence[0], counted or trials, load),
            "cell": canonical(self.cell),
            "stages": [f"{s.kind}/{s.key}" for s in graph([self]) if s is not self],
            "budget": self._budget(load),
            "warnings": warnings,
            **({"facts": facts} if facts else {}),
        }

    def _budget(self, load: Load) -> dict[str, int]:
        """Returns steps, queries, gradients, prior_queries, and shared if there are any."""
        spent = [load(e.inversion)["budget"] for e in self.evidence]
        return {
            **{name: sum(s.get(name, 0) for s in spent) for name in _names(spent)},
            "prior_queries": sum(load(s)["queries"] for s in self._taught),
        }

    @property
    def _taught(self) -> list[Stage]:
        return self.evidence[0].inversion.taught

    @cached_property
    def needs(self) -> tuple[Stage, ...]:
        """The evidence, and the classifiers, prior and inversions quoted in the record."""
        first = self.evidence[0]
        quoted = [first.evaluator, *first.others, *(e.inversion for e in self.evidence)]
        return (*self.evidence, *self.controls, *quoted, *self._taught)


def _names(spent: Iterable[Mapping[str, int]]) -> list[str]:
    """Returns what any of several counts names, optional ones last."""
    return list(dict.fromkeys(name for counts in spent for name in counts))


def _sizes(e: Evidence, fid: str) -> dict[str, int]:
    """Returns how many images an FID compares, in how many dimensions; of any if it has none."""
    try:
        reconstructed, real = compared(e, fid)
    except UndefinedError:
        reconstructed, real = e.through(EVALUATOR)
    return {
        "reconstructions": len(reconstructed),
        "real": len(real),
        "dimensions": real.shape[1],
        "classes": e.logits.shape[1],
    }


def _panel(stage: EvidenceStage, trials: list[Evidence], load: Load) -> list[Payload]:
    """Returns what each evaluator is, how good, and the Attack Acc it finds."""
    panel = []
    for i, judge in enumerate((stage.evaluator, *stage.others)):
        own = [replace(e, logits=e.others[i - 1]) if i and e.others is not None else e
               for e in trials]  # fmt: skip
        panel.append(
            {
                "network": brief(judge.network),
                "seed": judge.seed,
                "accuracy": load(judge)["accuracy"],
                "attack_acc": summarise(METRICS["attack_acc"], own, "pass").mean,
            }
        )
    return panel
