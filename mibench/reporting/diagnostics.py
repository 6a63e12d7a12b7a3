"""Does a defense lower the dependence that it says it lowers, and does that go with less leakage?

d(X, Z_j) and d(Z_j, Y) of trained targets, by every measure, layer by layer, on train and on
test images; and their rank correlation with Attack Acc over the defenses of a table.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F

from mibench.benchmarks.row import Row
from mibench.defenses.dependence import KERNELS, MEASURES
from mibench.running.stages import ClassifierStage, Load, RecordStage
from mibench.seeding import generator
from mibench.spec import brief, choose, require
from mibench.store import Payload, Stage, Store, Work, check_finite
from mibench.types import Classifier, ImageSet

BATCHES = 8
"""Batches that a dependence is averaged over, at most."""
FEWEST = 5
"""Defenses that a rank correlation needs."""
PAIRS = ("xz", "zy")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class DependenceStage(Stage):
    """The dependences of a target's latents, by the default kernels and ridges of the measures.

    Kernels are those of Appendix C, Gaussian for X and Z_j and linear for one-hot Y, whatever
    the target was trained with, so that all targets are measured alike. The network is in eval
    mode and images are not augmented.

    Attributes:
        target: Whose.
        measures: Names in MEASURES.
        batch: Images per batch, as in training: the measures depend on it.
        batches: At most so many, of different images.
        seed: Draws the images, the same for every target of a task.
    """

    kind: ClassVar[str] = "dependence"

    target: ClassifierStage
    measures: tuple[str, ...]
    batch: int
    batches: int = BATCHES
    seed: int = 0

    def __post_init__(self) -> None:
        choose(self, measures=MEASURES)
        require(self, batch=(2, math.inf), batches=(1, math.inf))

    @property
    def needs(self) -> tuple[Stage, ...]:
        """The target and its images."""
        return (self.target, self.target.images)

    def describe(self) -> str:
        """Returns whose latents are measured."""
        return f"dependence in {brief(self.target.defense)}"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns "values" and, per split, "images": how many they rest on.

        A value is a dict of "layer" (j, from 1), "measure", "pair" ("xz" for d(X, Z_j), "zy"
        for d(Z_j, Y)), "split" ("train", without what selection held out, or "test") and
        "value", the mean over batches.

        Raises:
            FloatingPointError: If a dependence is not finite.
        """
        corpus = self.target.images.splits(load).private
        held_out = self.target.recipe.select == "validation"
        train = corpus.train.take(~corpus.validation) if held_out else corpus.train
        network = self.target.classifier(load, work.device)
        values, images = [], {}
        for i, (split, part) in enumerate(zip(SPLITS, (train, corpus.test), strict=True)):
            found, images[split] = self._mean(network, part, split)
            values += [{**value, "split": split} for value in found]
            work.progress(i + 1, len(SPLITS))
        return {"values": values, "images": images}

    def _mean(
        self, network: Classifier, part: ImageSet, split: str
    ) -> tuple[list[dict[str, str | int | float]], int]:
        order = torch.randperm(len(part), generator=generator(self.seed, "dependence", split))
        size = min(self.batch, len(part))
        starts = range(0, len(part) - size + 1, size)[: self.batches]
        device = next(network.parameters()).device
        rows = [
            dependences(network, part.take(order[s : s + size]).to(device), self.measures)
            for s in starts
        ]
        mean = torch.stack(rows).mean(0)
        check_finite(mean, f"a dependence in {brief(self.target.defense)}")
        values: list[dict[str, str | int | float]] = [
            {"layer": j + 1, "measure": name, "pair": pair, "value": mean[m, p, j].item()}
            for m, name in enumerate(self.measures)
            for p, pair in enumerate(PAIRS)
            for j in range(mean.shape[2])
        ]
        return values, size * len(starts)


@torch.no_grad()
def dependences(network: Classifier, batch: ImageSet, measures: Sequence[str]) -> torch.Tensor:
    """Returns d(X, Z_j) and d(Z_j, Y) of one batch, float64, shape (measures, 2, layers)."""
    x = batch.images
    zs = network.latents(x)
    labels = F.one_hot(batch.labels, network.num_classes).to(x.dtype)
    K_x, *K_zs = KERNELS["gaussian"]([z.flatten(1) for z in (network.own_input(x), *zs)])
    (K_y,) = KERNELS["linear"]([labels])
    K, L = torch.stack(K_zs), torch.stack([K_x, K_y])[:, None]
    return torch.stack([MEASURES[name](K, L).cpu() for name in measures])


def dependence_stages(
    records: Mapping[str, Sequence[RecordStage]],
) -> dict[str, list[DependenceStage]]:
    """Returns defense → its stages, one per seed; rows of several attacks share a target.

    The defense is the last part of a row's label. Where rows of one label defend other targets
    (two tasks in a table), the whole label stands for them.
    """
    stages = {
        label: [dependence_stage(r.evidence[0].inversion.target) for r in rows]
        for label, rows in records.items()
    }
    keys: dict[str, set[str]] = {}
    for label, own in stages.items():
        keys.setdefault(Row.of(label).defended, set()).add(own[0].key)
    named: dict[str, list[DependenceStage]] = {}
    for label, own in stages.items():
        short = Row.of(label).defended
        named.setdefault(short if len(keys[short]) == 1 else label, own)
    return named


def dependence_stage(target: ClassifierStage) -> DependenceStage:
    """Returns what measures a target: every measure, in batches of the size of its training."""
    return DependenceStage(target, tuple(MEASURES), target.recipe.batch_size)


# Over seeds and defenses ------------------------------------------------------------------

Where = tuple[str, str, int, str]
"""(measure, pair, layer, split)."""


@dataclass(frozen=True)
class Diagnosis:
    """What the store knows of a table's targets.

    Attributes:
        values: Defense → where → one value per seed.
        targets: Defense → its first target.
        images: Split → images that each value rests on.
        leakage: Attack → defense → Attack Acc in percent, one per seed.
        missing: Records that are not in the store, by label and seed.
        seeds: Defense → the seeds of its values, in their order.
    """

    values: Mapping[str, Mapping[Where, Sequence[float]]]
    targets: Mapping[str, ClassifierStage]
    images: Mapping[str, Sequence[int]]
    leakage: Mapping[str, Mapping[str, Sequence[float]]]
    missing: Sequence[str]
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)


def diagnose(records: Mapping[str, Sequence[RecordStage]], store: Store) -> Diagnosis:
    """Returns dependences and leakage; computes nothing.

    A defense without any finished dependence is left out; leakage is of the seeds whose records
    are there, and the others are named.
    """
    stages = dependence_stages(records)
    values: dict[str, dict[Where, list[float]]] = {}
    images: dict[str, set[int]] = {split: set() for split in SPLITS}
    defenses: dict[str, str] = {}
    done: dict[str, list[int]] = {}
    for defense, own in stages.items():
        done[defense] = [i for i, s in enumerate(own) if store.state(s) == "done"]
        for payload in (store.load(own[i]) for i in done[defense]):
            for split in SPLITS:
                images[split].add(payload["images"][split])
            for v in payload["values"]:
                where = (v["measure"], v["pair"], v["layer"], v["split"])
                values.setdefault(defense, {}).setdefault(where, []).append(v["value"])
        defenses |= {s.target.key: defense for s in own}
    leakage: dict[str, dict[str, list[float]]] = {}
    missing = []
    for label, rows in records.items():
        attack = Row.of(label).attack
        for seed, record in enumerate(rows):
            if store.state(record) != "done":
                missing.append(f"{label}, seed {seed}")
                continue
            score = store.load(record)["scores"].get("attack_acc")
            if score is not None and score["mean"] is not None:
                defense = defenses[record.evidence[0].inversion.target.key]
                leakage.setdefault(attack, {}).setdefault(defense, []).append(score["mean"])
    targets = {defense: stages[defense][0].target for defense in values}
    told = {split: sorted(counts) for split, counts in images.items()}
    return Diagnosis(values, targets, told, leakage, missing, done)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        rho: In [-1, 1].
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end.
        n: Pairs it rests on.
    """

    rho: float
    low: float | None
    high: float | None
    n: int


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    r"""Returns Spearman's ρ with the interval of Fisher's z.

    .. math:: \tanh(\operatorname{artanh} \rho \pm 1.96 \sqrt{1.06 / (n - 3)})

    The variance is that of Fieller, Hartley and Pearson, Biometrika 44, 1957. At ρ = ±1 it
    has no interval.

    Raises:
        ValueError: If there are fewer than FEWEST pairs, or one side is constant.
    """
    from scipy.stats import norm, spearmanr

    n = len(xs)
    if n < FEWEST:
        raise ValueError(f"a rank correlation needs {FEWEST} or more defenses, there are {n}")
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        raise ValueError("a rank correlation needs values that differ")
    rho = float(spearmanr(xs, ys).statistic)
    if abs(rho) > 1 - 1e-12:
        return Correlation(round(rho), None, None, n)
    half = float(norm.ppf(0.975)) * math.sqrt(1.06 / (n - 3))
    z = math.atanh(rho)
    return Correlation(rho, math.tanh(z - half), math.tanh(z + half), n)


def correlate(found: Diagnosis, attack: str, where: Where) -> Correlation:
    """Returns the correlation of a dependence with Attack Acc over defenses, means over seeds.

    The defense is the unit: seeds of one defense are no further defenses.

    Raises:
        ValueError: As :func:`rank_correlation` does.
    """
    leaks = found.leakage.get(attack, {})
    both = [d for d in found.values if d in leaks and where in found.values[d]]
    return rank_correlation(
        [statistics.fmean(found.values[d][where]) for d in both],
        [statistics.fmean(leaks[d]) for d in both],
    )
