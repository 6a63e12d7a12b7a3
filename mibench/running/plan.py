"""What a run would do: the steps of each stage and, from what like it took, the time."""

import dataclasses
import heapq
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mibench.data import Sizes, Task
from mibench.precision import FLOAT32
from mibench.roles import Attack, NetworkSpec, PriorSpec
from mibench.running.executors.base import Schedule
from mibench.running.stages import (
    ClassifierStage,
    EvidenceStage,
    ImagesStage,
    InversionStage,
    PriorStage,
    RecordStage,
    StudentStage,
)
from mibench.store import Stage, Store


def planned_steps(stage: Stage, sizes: Sizes | None) -> int | None:
    """Returns how many steps of optimisation a stage takes.

    Args:
        stage: Any stage.
        sizes: How many images its task has, if that is known.

    Returns:
        0 for a stage that optimises nothing; None if it is not known.
    """
    if isinstance(stage, InversionStage):
        return stage.attack.planned_steps(len(stage.blocks), stage.samples)
    if sizes is None:
        return None if isinstance(stage, ClassifierStage | PriorStage | StudentStage) else 0
    if isinstance(stage, StudentStage):
        return stage.student.recipe.planned_steps(sizes.public)
    if isinstance(stage, ClassifierStage):
        images = getattr(sizes, stage.part)
        if stage.recipe.select == "validation":
            images -= round(stage.images.task.validation * images)
        return stage.recipe.planned_steps(images)
    return stage.spec.planned_steps(sizes.public) if isinstance(stage, PriorStage) else 0


def known_sizes(task: Task, data: Path) -> Sizes | None:
    """Returns how many images a task has: as its files say, else as is known of them."""
    try:
        return task.sizes(data)
    except (OSError, ValueError):
        if task.official is None:  # as of a user's task, whose fields may have no default
            return None
        return task.official if task == type(task)() else None


# Room -------------------------------------------------------------------------------------


def stored(stage: Stage, sizes: Sizes | None) -> int | None:
    """Returns about how many bytes a finished stage takes: its tensors.

    Args:
        stage: Any stage.
        sizes: How many images its task has, if that is known.

    Returns:
        None if it is not known; 0 for evidence and records, whose logits, features and scores
        are small beside weights and images.
    """
    if isinstance(stage, ImagesStage):
        if sizes is None:
            return None
        return (sizes.private + sizes.evaluation + sizes.public) * prod(stage.task.shape)
    if isinstance(stage, ClassifierStage):
        return 4 * weights(stage.network, stage.images.task)
    if isinstance(stage, StudentStage):
        return 4 * weights(stage.student.network, stage.images.task)
    if isinstance(stage, PriorStage):
        return 4 * weights(stage.spec, stage.images.task)
    if isinstance(stage, InversionStage):
        moments = 1 + snapshots(stage.attack)
        return 2 * moments * stage.samples * stage.classes * prod(stage.target.images.task.shape)
    return 0


@cache
def weights(spec: NetworkSpec | PriorSpec, task: Task) -> int:
    """Returns how many numbers a network has, buffers included; made without memory."""
    with torch.device("meta"):
        network = spec.build(task.shape, task.num_classes)
    return sum(t.numel() for t in network.state_dict().values())


def snapshots(attack: Attack) -> int:
    """Returns of how many earlier moments of an attack images are kept."""
    return getattr(attack, "snapshots", 0)


# Time -------------------------------------------------------------------------------------

Taken: TypeAlias = Mapping[object, Sequence[tuple[int, float]]]
"""Shape → planned steps and seconds of each finished stage of it."""
FAR = 10
"""Ratio to the steps of the longest run measured above which an estimate is rough."""
LENGTHS = ("epochs", "milestones", "steps", "kimg", "seed", "repeat", "digest")
"""Fields that say how long a stage goes on, or which of several alike it is."""


def shape(value: object) -> object:
    """Returns what decides the time of a stage's step: its fields without lengths and weights.

    Weights and rates are the fields that hold a float, or are called lambda.
    """
    if isinstance(value, tuple):
        return tuple(map(shape, value))
    if isinstance(value, float):
        return None
    if isinstance(value, EvidenceStage):  # the same for every defense
        run = value.inversion
        networks = shape((value.images, run.target.network, value.evaluator.network))
        size = (run.classes, run.samples, value.real, value.select)
        return (value.kind, type(value).__qualname__, networks, *size)
    if isinstance(value, RecordStage):
        return (value.kind, shape(value.evidence), value.metrics)
    if not dataclasses.is_dataclass(value):
        return value
    names = (f.name for f in dataclasses.fields(value))
    fields = [n for n in names if n not in LENGTHS and not n.startswith("lambda")]
    return (type(value).__qualname__, *(shape(getattr(value, name)) for name in fields))


def measured(
    stages: Iterable[Stage],
    steps: Mapping[str, int | None],
    store: Store,
    device: str,
    precisions: Collection[str] = (FLOAT32,),
) -> Taken:
    """Returns shape → planned steps and seconds of each stage like it in the store.

    Args:
        stages: Among which to look for finished ones.
        steps: Key → steps.
        store: Where they are, with the seconds they took.
        device: "cpu" or "cuda": only stages computed on one count.
        precisions: Only stages computed at one of them count, where that makes a difference.
    """
    took: dict[object, list[tuple[int, float]]] = {}
    stages = list(stages)
    states = store.states(stages)
    for stage in stages:
        if states[stage.key] != "done" or (taken := steps[stage.key]) is None:
            continue
        meta: dict[str, Any] = store.meta(stage)
        on_cpu = str(meta["device"]).startswith("cpu")
        if meta["resumed"] or on_cpu != (device == "cpu"):  # what is resumed took longer
            continue
        if not stage.exact and meta.get("precision", FLOAT32) not in precisions:
            continue
        took.setdefault(shape(stage), []).append((taken, meta["seconds"]))
    return took


def estimate(stage: Stage, steps: int | None, took: Taken) -> float | None:
    """Returns a stage's seconds; None if nothing like it was measured.

    What a stage does besides its steps, such as to select among candidates, takes as long
    whatever their number. Runs of several lengths show how long, by a straight line through
    them; runs of one length do not, and all their time counts as that of steps.
    """
    runs = took.get(shape(stage))
    if not runs or steps is None:
        return None
    counts, seconds = [n for n, _ in runs], [s for _, s in runs]
    if len(set(counts)) > 1:
        line = statistics.linear_regression(counts, seconds)
        each, besides = float(line.slope), float(line.intercept)
        if each >= 0 and besides >= 0:  # else the times vary more than the lengths do
            return besides + each * steps
    return sum(seconds) / sum(max(n, 1) for n in counts) * max(steps, 1)


def doubts(stages: Iterable[Stage], steps: Mapping[str, int | None], took: Taken) -> list[str]:
    """Returns a line for each kind of stage whose time was guessed from much shorter runs.

    Args:
        stages: Those to be computed.
        steps: Key → planned steps.
        took: What was measured.
    """
    far: dict[str, tuple[int, int]] = {}
    for stage in stages:
        longest = max((n for n, _ in took.get(shape(stage), ())), default=0)
        planned = steps[stage.key] or 0
        if longest and planned > FAR * longest:
            far[stage.kind] = max(far.get(stage.kind, (0, 0)), (planned, longest))
    return [
        f"the time of {kind} is a rough guess: {planned:,} steps are planned, and the longest "
        f"run like it took {longest:,}"
        for kind, (planned, longest) in far.items()
    ]


def makespan(stages: Iterable[Stage], seconds: Mapping[str, float], slots: int) -> float:
    """Returns the seconds that the stages take on ``slots`` slots, in the order they would run.

    Args:
        stages: In an order where needs come first.
        seconds: Key → time of those that are to be computed.
        slots: Stages that run side by side.
    """
    stages = list(stages)
    schedule = Schedule(stages, [s.key for s in stages if s.key not in seconds])
    running: list[tuple[float, int, Stage]] = []
    now = 0.0
    count = 0
    while schedule.pending:
        while schedule.ready and len(running) < slots:
            stage = schedule.take()
            heapq.heappush(running, (now + seconds[stage.key], count, stage))
            count += 1
        now, _, stage = heapq.heappop(running)
        schedule.settle(stage, True)
    return now


def told_time(seconds: float) -> str:
    """Returns a length of time for people, with two digits that count."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.{int(seconds < 10 * unit)}f} {name}"
    return f"{seconds:.{int(seconds < 10)}f} s"


def time_lines(
    stages: Iterable[Stage], seconds: Mapping[str, float | None], slots: int | None
) -> list[str]:
    """Returns what to say of the time left: kind by kind, and overall.

    Args:
        stages: In an order where needs come first.
        seconds: Key → time of each stage to be computed, None where it is unknown.
        slots: Stages that run side by side, if that is known.
    """
    stages = list(stages)
    kinds: dict[str, list[float | None]] = {}
    for stage in stages:
        if stage.key in seconds:
            kinds.setdefault(stage.kind, []).append(seconds[stage.key])
    lines = []
    for kind, times in kinds.items():
        unknown = times.count(None)
        parts = [told_time(sum(t or 0 for t in times))] * (unknown < len(times))
        parts += [f"{unknown} of {len(times)} unknown: none like them in the store"] * bool(
            unknown
        )
        lines.append(f"time of {kind}: {', '.join(parts)}")
    if not kinds or not any(t is not None for times in kinds.values() for t in times):
        return lines
    known = {key: t or 0.0 for key, t in seconds.items()}
    least = "at least " * (None in seconds.values())
    total, longest = sum(known.values()), makespan(stages, known, len(known))
    line = f"time: {least}{told_time(total)} of work, {told_time(longest)} on the longest path"
    if slots is not None:
        side = f"{slots} at once" if slots > 1 else "one at a time"
        line += f", {told_time(makespan(stages, known, slots))} {side}"
    return [*lines, line]
