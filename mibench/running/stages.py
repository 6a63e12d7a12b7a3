"""A cell's stages, from data to record.

    images ──┬─ classifier (evaluator) ───────────────────────┐
             ├─ classifier (target) ──┬───────────┐           │
             │                        └ if seen ┐ │           │
             └─ prior ──────────────────────────┴─┴ inversion ┴ evidence ── record

A stage is a pure function of its fields: specs, seeds and the stages it needs. None runs
inside another, so none inherits another's ``no_grad``, seed or timer.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from mibench.attacks.access import NO_LIMIT, Query, Watched
from mibench.attacks.bases import WhiteBox
from mibench.attacks.goal import Goal
from mibench.benchmarks.cell import Cell
from mibench.data import Corpus, Splits, Task
from mibench.defenses import NoDefense, Recipe
from mibench.evaluation import METRICS, Evidence, UndefinedError, measure, score, summarise
from mibench.evaluation.inception import inception_features, inception_file
from mibench.evaluation.manifold import nearest
from mibench.evaluation.metrics import compared, stretch
from mibench.evaluation.similarity import structural_similarity
from mibench.roles import Attack, Defense, NetworkSpec, PriorSpec
from mibench.seeding import generator, seeded
from mibench.spec import brief, canonical
from mibench.store import Payload, Stage, Work, check_finite
from mibench.ties import in_top
from mibench.training.train import train_classifier
from mibench.types import Classifier, ImageSet, Prior, Reconstructions, predict

Load = Callable[[Stage], Payload]
Part = Literal["private", "evaluation"]
S = TypeVar("S", bound=Stage)


@dataclass(frozen=True)
class ImagesStage(Stage):
    """A task's images, decoded and resized once into bytes."""

    kind: ClassVar[str] = "images"

    task: Task
    digest: str

    def describe(self) -> str:
        """Returns the task's name."""
        return f"images {self.task.name}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the splits, tensor by tensor."""
        if self.task.digest(work.data) != self.digest:
            raise ValueError(f"the files of {self.task.name} changed while it ran; start again")
        splits = self.task.load(work.data)
        return {
            **{part: _unbuild(getattr(splits, part)) for part in ("private", "evaluation")},
            "public": {"pixels": splits.public.pixels, "labels": splits.public.labels},
        }

    def splits(self, load: Load) -> Splits:
        """Returns the splits from the store."""
        payload = load(self)
        private, evaluation = (_rebuild(payload[p]) for p in ("private", "evaluation"))
        return Splits(private, evaluation, ImageSet(**payload["public"]))


def _unbuild(corpus: Corpus) -> Payload:
    return {
        "train": {"pixels": corpus.train.pixels, "labels": corpus.train.labels},
        "validation": corpus.validation,
        "test": {"pixels": corpus.test.pixels, "labels": corpus.test.labels},
        "num_classes": corpus.num_classes,
    }


def _rebuild(payload: Payload) -> Corpus:
    return Corpus(
        ImageSet(**payload["train"]),
        payload["validation"],
        ImageSet(**payload["test"]),
        payload["num_classes"],
    )


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


@dataclass(frozen=True)
class PriorStage(Stage):
    """A trained generative prior; ``target`` is None unless the prior sees it."""

    kind: ClassVar[str] = "prior"

    images: ImagesStage
    target: ClassifierStage | None
    spec: PriorSpec
    seed: int

    def describe(self) -> str:
        """Returns the prior's name, and of its target's defense."""
        seen = f" of {brief(self.target.defense)}" if self.target else ""
        return f"prior {self.spec.name}{seen}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the weights, the history and how often the target was asked."""
        public = self.images.splits(load).public.to(work.device)
        target = Watched(self.target.classifier(load, work.device), work) if self.target else None
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


@dataclass(frozen=True)
class InversionStage(Stage):
    """One run of an attack on a target.

    The random stream is named by the seed, the attack, the repeat and the block, not by the
    defense: every defense meets the same initial latents.
    """

    kind: ClassVar[str] = "inversion"
    version: ClassVar[int] = 2

    target: ClassifierStage
    prior: PriorStage
    attack: Attack
    classes: int
    samples: int
    block: int
    seed: int
    repeat: int

    def describe(self) -> str:
        """Returns the attack and the defense it meets."""
        return f"{self.attack.name} on {brief(self.target.defense)}"

    @property
    def blocks(self) -> list[Tensor]:
        """The classes of each block."""
        return list(torch.arange(self.classes).split(self.block))  # type: ignore[no-untyped-call]

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns images (samples, classes, c, h, w) as float16, and their latents."""
        target = self.target.classifier(load, work.device)
        prior = self.prior.prior(load, work.device)
        name = (self.seed, self.attack.name, self.repeat)
        rngs = [generator(*name, i) for i in range(len(self.blocks))]
        seen = self._handed(target, load, work)
        steps = self.attack.planned_steps(len(rngs), self.samples) or 0
        shape = self.target.images.task.shape
        goal = Goal(self.blocks, self.samples, rngs, shape, work.device, planned=steps)
        with seeded(*name, "noise"):  # for targets that draw on their own
            found = self.attack.invert(seen, prior, goal, work)
        self._check(found)
        return {
            "images": found.images.half(),
            "earlier": None if found.earlier is None else found.earlier.half(),
            "latents": found.latents,
            "budget": {
                **{name: getattr(work, name) for name in ("steps", "queries", "gradients")},
                **({"shared": seen.shared} if seen.shared else {}),
            },
        }

    def _check(self, found: object) -> None:
        """Refuses what an attack must not return."""
        name = self.attack.name
        if not isinstance(found, Reconstructions):
            raise ValueError(
                f"invert of {name} must return mibench.Reconstructions(images, latents), "
                f"got {type(found).__name__}"
            )
        shape = (self.samples, self.classes, *self.target.images.task.shape)
        expected: dict[str, tuple[int, ...]] = {"images": shape}
        if found.earlier is not None:
            expected["earlier"] = (len(found.earlier), *shape)
        for which, wanted in expected.items():
            x = getattr(found, which)
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise ValueError(
                    f"{name} must return {which} as a tensor of floats in [0, 1], "
                    f"got {getattr(x, 'dtype', type(x).__name__)}"
                )
            if x.shape != wanted:
                raise ValueError(
                    f"{name} returned {which} of shape {tuple(x.shape)}, not {wanted}: samples, "
                    "classes, channels, height, width"
                )
            check_finite(x, f"a reconstruction of {name}")
            if ((x < 0) | (x > 1)).any():
                raise ValueError(f"{name} returned {which} with pixels outside [0, 1]; clamp them")
        front = getattr(found.latents, "shape", ())[:2]
        if front != shape[:2]:
            raise ValueError(
                f"{name} must return latents as a tensor (samples, classes, ...) that begins "
                f"with {shape[:2]}, got {tuple(front) or type(found.latents).__name__}"
            )

    def _handed(self, target: Classifier, load: Load, work: Work) -> Watched | Query:
        """Returns what the attack's access lets it have of the target."""
        limit = self.attack.max_queries * self.classes or NO_LIMIT
        if self.attack.access != "white":
            return Query(target, self.attack.access, work, limit)
        watched = Watched(target, work, limit)
        if isinstance(self.attack, WhiteBox) and self.attack.identity.public:
            watched.look_at(self.target.images.splits(load).public)
        return watched


@dataclass(frozen=True)
class EvidenceStage(Stage):
    """What the evaluators say of the reconstructions, and the target of them and its test set.

    Attributes:
        images: The task's images.
        inversion: What is judged.
        evaluator: The classifier that gives the table's numbers.
        others: Further ones.
        real: How many real images of each attacked class it is compared with.
        real_part: Of which part.
        select: Which of an attack's moments count.
        inception: Digest of the weights of Inception-v3; "" if its features are not asked for,
            or the weights are not there.
    """

    kind: ClassVar[str] = "evidence"
    version: ClassVar[int] = 3

    images: ImagesStage
    inversion: InversionStage
    evaluator: ClassifierStage
    others: tuple[ClassifierStage, ...]
    real: int
    real_part: Literal["train", "all"]
    select: Literal["last", "evaluator"]
    inception: str = ""

    def describe(self) -> str:
        """Returns whose evidence it is."""
        return f"evidence {self.inversion.describe()}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the fields of :class:`Evidence`."""
        run = self.inversion
        private = self.images.splits(load).private
        evaluator = self.evaluator.classifier(load, work.device)
        target = run.target.classifier(load, work.device)
        found = load(run)
        moments = found["images"][None]
        if self.select == "evaluator":
            moments = torch.cat([found["earlier"], moments])
        x, logits, features = _best(moments, evaluator)
        labels = torch.arange(run.classes).repeat(run.samples)
        owned = self.compared(private)
        real = owned.images
        _, real_features = predict(evaluator, owned, generator("real"))
        _, stretched = predict(evaluator, stretch(x), generator("evaluation"))
        _, real_stretched = predict(evaluator, stretch(real), generator("real"))
        others = [
            predict(e.classifier(load, work.device), x, generator("evaluation"))[0]
            for e in self.others
        ]
        seed = run.target.seed
        target_logits, _ = predict(target, x, generator(seed, "reconstructions"))
        test_logits, _ = predict(target, private.test, generator(seed, "test"))
        try:
            place = nearest(features, labels, real_features, owned.labels)[1]
            similar = structural_similarity(x, real[place])
        except UndefinedError:
            similar = None
        inception = real_inception = None
        if self.inception:
            path = inception_file(work.data)
            inception, real_inception = (
                inception_features(images, path, self.inception, work.device)
                for images in (x, real)
            )
        block = torch.cat([torch.full((len(b),), i) for i, b in enumerate(run.blocks)])
        evidence = Evidence(
            labels=labels,
            block=block.repeat(run.samples),
            passes=torch.arange(run.samples).repeat_interleave(run.classes),
            logits=logits,
            features=features,
            real=real_features,
            real_labels=owned.labels,
            test_logits=test_logits,
            test_labels=private.test.labels,
            others=torch.stack(others) if others else None,
            target_logits=target_logits,
            stretched=stretched,
            real_stretched=real_stretched,
            ssim=similar,
            inception=inception,
            real_inception=real_inception,
        )
        return vars(evidence).copy()

    def evidence(self, load: Load) -> Evidence:
        """Returns the evidence from the store."""
        return Evidence(**load(self))

    def compared(self, private: Corpus) -> ImageSet:
        """Returns the real images behind ``Evidence.real``, in their order."""
        owned = private.train if self.real_part == "train" else _joined(private)
        return owned.take(_first(owned.labels, self.inversion.classes, self.real))

    def judged(self, load: Load) -> Tensor:
        """Returns the reconstructions behind ``Evidence.logits``, (n, c, h, w), in their order."""
        found = load(self.inversion)
        if self.select == "last":
            last: Tensor = found["images"].float().flatten(0, 1)
            return last
        moments = torch.cat([found["earlier"], found["images"][None]])
        return _best(moments, self.evaluator.classifier(load, torch.device("cpu")))[0]


def _best(moments: Tensor, evaluator: Classifier) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each class's images at the moment when most of them hit, the first of equals.

    Args:
        moments: Images (moments, samples, classes, c, h, w).
        evaluator: Says what hits.

    Returns:
        The images, (samples * classes, c, h, w), and the evaluator's logits and features.
    """
    samples, classes = moments.shape[1:3]
    labels = torch.arange(classes).repeat(samples)
    seen, hits = [], []
    for images in moments:
        x = images.float().flatten(0, 1)
        seen.append((x, *predict(evaluator, x, generator("evaluation"))))
        hits.append(in_top(seen[-1][1], labels).view(samples, classes).sum(0))
    first = torch.stack(hits).argmax(0)[labels]  # argmax takes the first of equals
    if len(moments) == 1:
        return seen[0]
    x, logits, features = (torch.stack(part) for part in zip(*seen, strict=True))
    image = torch.arange(len(labels))
    return x[first, image], logits[first, image], features[first, image]


def _joined(corpus: Corpus) -> ImageSet:
    """Returns the train images, then the test images."""
    parts = (corpus.train, corpus.test)
    return ImageSet(torch.cat([p.pixels for p in parts]), torch.cat([p.labels for p in parts]))


def _first(labels: Tensor, classes: int, count: int) -> Tensor:
    """Returns the positions of the first ``count`` images of each class."""
    return torch.cat([(labels == c).nonzero()[:count, 0] for c in range(classes)])


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
        target.
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
        if lost := len(trials) - len(counted):
            warnings.append(f"{lost} of {len(trials)} repeats of an attack {dropped}.")
        for name, _ in self.metrics:
            metric = protocol.metric(name)
            seen = counted or (trials[:1] if metric.per == "target" else [])
            each = measure(metric, seen) if seen else f"all its repeats {dropped}"
            found = asdict(score(metric, each, seen, protocol.spread))
            if isinstance(each, str):
                warnings.append(f"{metric.title}: {each}.")
                each = []
            del found["undefined"]
            scores[name] = found
            values[name] = [v.tolist() if isinstance(v, Tensor) else v for v in each]
        return {
            "scores": scores,
            "values": values,
            "index": [
                {
                    "pass": e.passes.tolist(),
                    "block": e.block.tolist(),
                    "identity": e.labels.tolist(),
                    "identities": sorted(set(e.labels.tolist())),
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
        }

    def _budget(self, load: Load) -> dict[str, int]:
        """Returns steps, queries, gradients, prior_queries, and shared if there are any."""
        spent = [load(e.inversion)["budget"] for e in self.evidence]
        prior = self.evidence[0].inversion.prior
        return {
            **{name: sum(s[name] for s in spent) for name in spent[0]},
            "prior_queries": load(prior)["queries"] if prior.target else 0,
        }

    @cached_property
    def needs(self) -> tuple[Stage, ...]:
        """The evidence, and the classifiers, prior and inversions quoted in the record."""
        first = self.evidence[0]
        quoted = [first.evaluator, *first.others, *(e.inversion for e in self.evidence)]
        prior = [first.inversion.prior] * (first.inversion.prior.target is not None)
        return (*self.evidence, *self.controls, *quoted, *prior)


def _sizes(e: Evidence, fid: str) -> dict[str, int]:
    """Returns how many images an FID compares, in how many dimensions; of any if it has none."""
    try:
        found, real = compared(e, fid)
    except UndefinedError:
        found, real = e.features, e.real
    return {
        "reconstructions": len(found),
        "real": len(real),
        "dimensions": real.shape[1],
        "classes": e.logits.shape[1],
    }


def _panel(stage: EvidenceStage, trials: list[Evidence], load: Load) -> list[Payload]:
    """Returns what each evaluator is, how good, and the Attack Acc it finds."""
    panel = []
    for i, judge in enumerate((stage.evaluator, *stage.others)):
        seen = [replace(e, logits=e.others[i - 1]) if i and e.others is not None else e
                for e in trials]  # fmt: skip
        panel.append(
            {
                "network": brief(judge.network),
                "seed": judge.seed,
                "accuracy": load(judge)["accuracy"],
                "attack_acc": summarise(METRICS["attack_acc"], seen, "pass").mean,
            }
        )
    return panel


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
    target = one(
        ClassifierStage, images, "private", s.network, cell.defense, cell.recipe, cell.seeds.target
    )
    none = known.setdefault(NoDefense, NoDefense())
    judges = tuple(
        one(
            ClassifierStage, images, "evaluation", e.network, none, e.recipe, s.evaluator_seed + i
        )
        for i, e in enumerate(s.evaluators)
    )  # fmt: skip
    others = known.setdefault(("others", *map(id, judges)), judges[1:])
    asked = any("inception" in protocol.metric(c).name for c in columns)

    def evidence(
        attack: Attack, select: Literal["last", "evaluator"]
    ) -> tuple[EvidenceStage, ...]:
        seen = target if attack.prior.sees_target else None
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
                EvidenceStage, images, i, judges[0], others, protocol.real, protocol.real_part,
                select, inception if asked else "",
            )
            for i in inversions
        )  # fmt: skip

    return RecordStage(
        cell,
        evidence(cell.attack, protocol.select),
        known.setdefault(measured, measured),
        evidence(cell.control, "last") if cell.control is not None else (),
    )


def graph(last: Iterable[Stage]) -> list[Stage]:
    """Returns every stage that the given ones rest on, once each, needs before needers."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for need in stage.needs:
                visit(need)
            found[stage.key] = stage

    for stage in last:
        visit(stage)
    return list(found.values())
