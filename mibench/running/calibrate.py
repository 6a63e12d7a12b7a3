"""Times and memory of stages on this machine, from some twenty steps of each kind of stage.

Neither data nor trained weights are needed: images are drawn at random in the task's shape, and
networks start at random, which takes as long.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil, prod
from pathlib import Path

import torch
from torch import Tensor

from mibench import precision
from mibench.data import Sizes, Task
from mibench.machine import forget_peak, peak
from mibench.running.executors import Bench, prepare
from mibench.running.executors.base import explain
from mibench.running.plan import Taken, planned_steps, shape, snapshots, stored, told_time
from mibench.running.stages import (
    ClassifierStage,
    EvidenceStage,
    ImagesStage,
    InversionStage,
    LensEvidence,
    OutlierStage,
    PriorStage,
    StudentStage,
)
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Work
from mibench.training.samplers import SAMPLERS
from mibench.training.train import train_classifier
from mibench.types import Classifier, ImageSet

STEPS = 20
"""That are timed of each kind of stage."""
SECONDS = 20.0
"""After which a kind of stage is not timed any longer, once something of it is."""
BATCHES = {"cpu": 2, "cuda": 10}
"""In an epoch, while training is timed, by kind of device."""
AT_ONCE = {"cpu": 64, "cuda": 1024}
"""The most images that are attacked at once; the time of more is in proportion."""
JUDGED = 8
"""Classes whose evidence is timed."""


class EnoughError(BaseException):
    """Ends a stage of which enough is timed; no handler of errors is to stop it."""


class UnmeasuredError(Exception):
    """A kind of stage that cannot be timed."""


class Stopwatch(Work):
    """The work of a stage that is timed, and ended after some steps.

    Args:
        device: Where to compute.
        data: Folder of raw data sets.
        steps: The steps that the stage would take in all, by whose share its progress tells how
            many are done. None: every save is a step, as in the loops of attacks.
    """

    def __init__(self, device: str, data: Path, steps: int | None = None) -> None:
        super().__init__(device=device, data=data)
        self._steps = steps
        self._first = time.perf_counter()
        self._marks: list[tuple[float, float]] = []

    def save(self, state: Callable[[], Payload]) -> None:
        """Saves nothing."""
        if self._steps is None:
            self._mark(len(self._marks) + 1)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Reads the time."""
        if self._steps is not None and total:
            self._mark(self._steps * done / total)

    def _mark(self, done: float) -> None:
        now = self._now()
        if self._marks and done <= self._marks[-1][0]:  # another part of the stage begins
            raise EnoughError
        self._marks.append((done, now))
        first, begun = self._marks[0]
        enough = done > first and (done - first >= STEPS or now - begun > SECONDS)
        is_slow = self._steps is not None and now - self._first > 2 * SECONDS
        if enough or is_slow:  # of slow training the first epoch has to do
            raise EnoughError

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Returns the seconds of a step, and those before the first; without steps, all of them.

        The first step or epoch is left out where there are others: it warms up.
        """
        if not self._marks:
            return 0.0, self._now() - self._first
        (first, begun), (last, ended) = self._marks[0], self._marks[-1]
        if last == first:
            return (ended - self._first) / last, 0.0
        each = (ended - begun) / (last - first)
        return each, max(0.0, begun - self._first - each * first)


@dataclass(frozen=True)
class StandIn:
    """What stands in for finished stages: images drawn at random and networks that start so.

    Attributes:
        images: Number of train images, and of public ones.
        classes: The number of classes that these show.
    """

    images: int
    classes: int

    def __call__(self, stage: Stage) -> Payload:
        """Returns a payload like the stage's.

        Raises:
            UnmeasuredError: If there is nothing like it.
        """
        if isinstance(stage, ImagesStage):
            return self._images(stage.task)
        if isinstance(stage, OutlierStage):
            task = stage.images.task
            return _drawn(task, self.images, torch.zeros(self.images).long())
        if isinstance(stage, ClassifierStage):
            network = fresh(stage)
            return {"state": network.state_dict(), "num_classes": classes_of(stage)}
        if isinstance(stage, StudentStage):
            task = stage.images.task
            built = stage.student.network.build(task.shape, task.num_classes)
            return {"state": built.state_dict()}
        if isinstance(stage, PriorStage):
            task = stage.images.task
            return {"state": stage.spec.build(task.shape, task.num_classes).state_dict()}
        if isinstance(stage, InversionStage):
            front = (stage.samples, stage.classes)
            made = torch.rand(*front, *stage.target.images.task.shape).half()
            earlier = made.expand(snapshots(stage.attack), *made.shape)
            return {"images": made, "earlier": earlier}
        raise UnmeasuredError(f"it needs {stage.describe()}, which cannot be stood in for")

    def _images(self, task: Task) -> Payload:
        labels = torch.arange(self.images) % self.classes
        held_out = torch.arange(self.images) < round(task.validation * self.images)
        corpus = {
            "train": _drawn(task, self.images, labels),
            "validation": held_out,
            "test": _drawn(task, max(2, self.images // 9), labels[: max(2, self.images // 9)]),
            "num_classes": task.num_classes,
        }
        others = task.num_classes + torch.arange(self.images) % 10
        public = _drawn(task, self.images, others)
        return {"private": corpus, "evaluation": corpus, "public": public}


def _drawn(task: Task, count: int, labels: Tensor) -> dict[str, Tensor]:
    rng = generator("calibration", count)
    pixels = torch.randint(0, 256, (count, *task.shape), generator=rng, dtype=torch.uint8)
    return {"pixels": pixels, "labels": labels}


def classes_of(stage: ClassifierStage) -> int:
    """Returns how many classes the stage's network is built for: as many as are private."""
    return stage.images.task.num_classes


def fresh(stage: ClassifierStage) -> Classifier:
    """Returns the stage's network as it is before training, without the weights of others."""
    network = stage.network.build(stage.images.task.shape, classes_of(stage))
    return stage.defense.harden(network)


@dataclass
class Calibration:
    """What some steps of each kind of stage say.

    Attributes:
        taken: As of :func:`~mibench.running.plan.measured`, of whole stages.
        memory: Stage's name → the most bytes that it held at once, all images of its task
            included; empty where the system does not say.
        unmeasured: Kind → why none of it is timed.
        seconds: That all of it took.
    """

    taken: dict[object, list[tuple[int, float]]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def calibrate(
    stages: Iterable[Stage],
    steps: Mapping[str, int | None],
    sizes: Mapping[Task, Sizes | None],
    bench: Bench,
    known: Taken,
    tell: Callable[[str], object],
) -> Calibration:
    """Times the stages of which nothing alike has been timed.

    Args:
        stages: Those to be computed.
        steps: Key → planned steps.
        sizes: Number of images of each task.
        bench: Where; its device is one of this machine.
        known: What has been timed.
        tell: Takes a line about each kind of stage.
    """
    prepare(bench)
    made = Calibration()
    begun = time.perf_counter()
    for stage in stages:
        alike = shape(stage)
        timed = isinstance(
            stage, ClassifierStage | StudentStage | PriorStage | InversionStage | EvidenceStage
        )
        if alike in known or alike in made.taken:
            continue
        if not timed:
            made.unmeasured[stage.kind] = "it takes seconds to minutes"
            continue
        planned = steps[stage.key]
        device = torch.device(bench.device)
        forget_peak(device)
        try:
            with precision.at(bench.precision), seeded("calibration"):
                seconds = _seconds(stage, planned, sizes, bench)
        except Exception as error:
            made.unmeasured[stage.kind] = explain(error)
            made.taken[alike] = []  # not tried again
            continue
        made.taken[alike] = [(planned or 0, seconds)]
        tell(f"timed {stage.describe()}")
        size = sizes[task_of(stage)]
        if (held := peak(device)) is not None:
            whole = 0 if size is None else size.private + size.evaluation + size.public
            made.memory[stage.describe()] = held + whole * prod(task_of(stage).shape)
    made.taken = {alike: runs for alike, runs in made.taken.items() if runs}
    made.seconds = time.perf_counter() - begun
    return made


def task_of(stage: Stage) -> Task:
    """Returns the task of a stage that is timed."""
    if isinstance(stage, InversionStage):
        return stage.target.images.task
    assert isinstance(stage, ClassifierStage | StudentStage | PriorStage | EvidenceStage)
    return stage.images.task


def _seconds(
    stage: Stage, planned: int | None, sizes: Mapping[Task, Sizes | None], bench: Bench
) -> float:
    """Returns about how many seconds the whole stage takes."""
    if planned is None:
        raise UnmeasuredError("the number of its steps is not known beforehand")
    if isinstance(stage, InversionStage):
        return _inversion(stage, bench)
    if isinstance(stage, EvidenceStage):
        return _evidence(stage, sizes[stage.images.task], bench)
    if not planned:
        return 0.0
    if isinstance(stage, PriorStage):
        return planned * _prior(stage, bench)
    assert isinstance(stage, ClassifierStage | StudentStage)
    return planned * _classifier(stage, bench)


def batches_on(bench: Bench) -> int:
    """Returns how many batches an epoch has while training is timed."""
    return BATCHES[bench.device.partition(":")[0]]


def _classifier(stage: ClassifierStage | StudentStage, bench: Bench) -> float:
    """Returns the seconds of a step of training, its share of what an epoch ends with included."""
    task = stage.images.task
    recipe = stage.recipe if isinstance(stage, ClassifierStage) else stage.student.recipe
    count = ceil(batches_on(bench) * recipe.batch_size / (1 - task.validation))
    classes = min(task.num_classes, recipe.batch_size // recipe.instances + 1)
    load = StandIn(count, classes)
    splits = stage.images.splits(load)
    rng = generator("calibration")
    if isinstance(stage, StudentStage):
        steps = recipe.planned_steps(count)
        watch = Stopwatch(bench.device, bench.data, steps)
        network = stage.student.network.build(task.shape, task.num_classes)
        soft = torch.rand(count, task.num_classes, device=watch.device).softmax(1)
        public = splits.public.to(watch.device)
        return _timed(lambda: stage.student.train(network, public, soft, rng, watch), watch)[0]
    corpus = splits.private
    kept = ~corpus.validation if recipe.select == "validation" else slice(None)
    labels = corpus.train.labels[kept]
    batches = SAMPLERS[recipe.sampler](labels, recipe.batch_size, recipe.instances, rng)
    watch = Stopwatch(bench.device, bench.data, recipe.epochs * len(batches))
    others = None
    if stage.defense.wants_outliers:
        others = ImageSet(**load(OutlierStage(stage.images))), generator("calibration")
    network = fresh(stage)
    train = lambda: train_classifier(  # noqa: E731 - what is timed
        network, stage.defense, recipe, corpus, rng, watch, generator("calibration"), others
    )
    return _timed(train, watch)[0]


def _prior(stage: PriorStage, bench: Bench) -> float:
    """Returns the seconds of a step of a prior's training."""
    inner = getattr(stage.spec, "of", stage.spec)
    count = batches_on(bench) * getattr(inner, "batch_size", 64)
    steps = planned_steps(stage, Sizes(count, count, count))
    watch = Stopwatch(bench.device, bench.data, steps)
    load = StandIn(count, min(stage.images.task.num_classes, count))
    return _timed(lambda: stage.compute(load, watch), watch)[0]


def _inversion(stage: InversionStage, bench: Bench) -> float:
    """Returns the seconds of an attack: those on some classes, in proportion."""
    most = AT_ONCE[bench.device.partition(":")[0]] // stage.samples
    few = replace(stage, classes=max(1, min(stage.classes, stage.block, most)))
    steps = planned_steps(few, None)
    watch = Stopwatch(bench.device, bench.data)
    each, besides = _timed(lambda: few.compute(StandIn(64, few.classes), watch), watch)
    return (each * (steps or 0) + besides) * stage.classes / few.classes


def _evidence(stage: EvidenceStage, size: Sizes | None, bench: Bench) -> float:
    """Returns the seconds of evidence: those of some classes, in proportion."""
    if isinstance(stage, LensEvidence):
        raise UnmeasuredError("it looks through a lens that is trained first")
    run = stage.inversion
    few = replace(run, classes=min(run.classes, JUDGED))
    owned = 1 if size is None else size.private // stage.images.task.num_classes
    watch = Stopwatch(bench.device, bench.data)
    load = StandIn(few.classes * max(1, owned), few.classes)
    judged = replace(stage, inversion=few)
    return _timed(lambda: judged.compute(load, watch), watch)[1] * run.classes / few.classes


def _timed(run: Callable[[], object], watch: Stopwatch) -> tuple[float, float]:
    """Returns what the watch reads after the run, or after as much of it as is enough."""
    with suppress(EnoughError):
        run()
    return watch.read()


def lines(
    made: Calibration, stages: Iterable[Stage], sizes: Mapping[Task, Sizes | None], bench: Bench
) -> list[str]:
    """Returns what to say of memory, of room on the disk, and of what was not timed.

    Args:
        made: What was timed.
        stages: Those to be computed.
        sizes: Number of images of each task.
        bench: Where they will be.
    """
    stages = list(stages)
    said = [f"calibrated: {len(made.taken)} kinds of stage in {told_time(made.seconds)}"]
    said += [f"not timed: {kind} ({why})" for kind, why in made.unmeasured.items()]
    if made.memory:
        name, most = max(made.memory.items(), key=lambda item: item[1])
        whose = "of the GPU's" if bench.device.startswith("cuda") else "of the machine's"
        said.append(f"memory: {most / 1e9:.1f} GB {whose} for the largest stage, {name}")
    rooms = [stored(s, sizes[s.task] if isinstance(s, ImagesStage) else None) for s in stages]
    free = shutil.disk_usage(next(p for p in bench.store.absolute().parents if p.is_dir())).free
    least = "at least " * (None in rooms)
    said.append(
        f"disk: {least}{sum(room or 0 for room in rooms) / 1e9:.2f} GB in {bench.store}, where "
        f"{free / 1e9:.1f} GB are free"
    )
    return said
