"""What every component promises; a new one is tested by being registered."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.attacks import (
    ATTACKS,
    CONTROLS,
    GMI,
    KEDMI,
    LOSSES,
    PRIORS,
    VIEWS,
    WGANGP,
    Goal,
    WhiteBox,
)
from mibench.attacks.access import Query
from mibench.attacks.views import affordable
from mibench.benchmarks.tables import TABLES
from mibench.data import TASKS, Splits
from mibench.data.synthetic import Blobs
from mibench.defenses import DEFENSES, Release
from mibench.evaluation import METRICS, Compared, Evidence, Metric, measure, summarise
from mibench.evaluation.evidence import STORED
from mibench.evaluation.fid import FIDS
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.lenses import EVALUATOR, STRETCHED
from mibench.evaluation.pixels import PIXELS
from mibench.evaluation.traits import FIRST, SECOND
from mibench.networks import MLP, NETWORKS
from mibench.roles import Attack, Batch, Defense, NoDefense, PriorSpec
from mibench.running.checks import (
    BrokenPromiseError,
    Check,
    NotCheckedError,
    Trial,
    role_of,
    tiny,
    trial_of,
)
from mibench.running.checks.attacks import AttackTrial, answers, check_images, check_own_limit
from mibench.running.checks.training import DefenseTrial, check_weights
from mibench.seeding import generator, seeded
from mibench.spec import canonical, fingerprint
from mibench.store import Work
from mibench.types import Access, Classifier, Prior, Reconstructions, Scalar

TASK = Blobs(num_classes=4)

OF_SUCCESSFUL = {name for name, (_, only_successful) in FIDS.items() if only_successful}
TRAITS = {"trait_acc", "trait_acc_second", "trait_leakage", "trait_leakage_second", "trait_rank"}
TRAITS |= {"trait_agreement", "trait_acc_real", "attack_acc_false"}
LENSES = dict.fromkeys((*STORED, *(lens for m in METRICS.values() for lens in m.needs)))
CASES: dict[str, set[str]] = {
    "one image": FIDS.keys() | {"fid_identity", "kid", "recall", "evaluator_kappa"},
    "one class": {"recall"},  # of two images
    "none successful": OF_SUCCESSFUL | {"attack_acc_false"},
    "identical images": set(),
    "one real image": FIDS.keys()
    | {
        "fid_floor", "fid_identity", "fid_identity_floor", "kid", "knn_distance", "ssim",
        "knn_distance_squared", "feature_distance", "precision", "density", "coverage",
        "pixel_distance",
    },
    "nothing but the least": TRAITS
    | {
        "attack_acc_best", "attack_acc_corrected", "attack_acc_second", "false_positives",
        "evaluator_agreement",
        "evaluator_kappa", "confidence", "fid_stretched", "fid_successful_stretched",
        "fid_inception", "fid_inception_successful", "ssim", "pixel_distance",
    },
}  # fmt: skip
"""Poor evidence → the metrics that have no value on it."""
A, B = (0, 2, 0, 2), (1, 2, -1, 2, 3, 5, 3, 5)
KID_REAL = sum((x * y + 1) ** 3 for i, x in enumerate(B) for j, y in enumerate(B) if i != j)
KID_BETWEEN = sum((x * y + 1) ** 3 for x in A for y in B)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return TASK.load(Path())


@pytest.fixture
def target() -> Classifier:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


def components() -> list[type]:
    registries = (ATTACKS, LOSSES, PRIORS, VIEWS, DEFENSES, TASKS, NETWORKS)
    return [cls for registry in registries for cls in registry.values()]


@pytest.mark.parametrize("cls", components(), ids=lambda c: c.name)
class TestSpec:
    def test_it_is_frozen_documented_and_versioned(self, cls: type) -> None:
        spec = tiny(cls)
        assert dataclasses.is_dataclass(cls)
        assert cls.__doc__
        assert "(self" not in cls.__doc__
        assert isinstance(spec.version, int)
        with pytest.raises(dataclasses.FrozenInstanceError):
            spec.name = "other"

    def test_its_identity_is_plain_json_and_names_it(self, cls: type) -> None:
        plain = canonical(tiny(cls))
        assert isinstance(plain, dict)
        assert plain["is"] == cls.name  # type: ignore[attr-defined]
        assert fingerprint(tiny(cls)) == fingerprint(tiny(cls))

    def test_every_field_enters_its_key(self, cls: type) -> None:
        spec = tiny(cls)
        plain = canonical(spec)
        assert isinstance(plain, dict)
        assert {f.name for f in dataclasses.fields(spec)} <= set(plain)


TRIALS: dict[type, Trial] = {}
"""A component's runs, which its checks share."""
LARGE = {"vgg16", "vgg19", "resnet34", "facenet", "facenet64", "ir152", "irse50", "mobilefacenet"}
CHECKS = [
    pytest.param(
        cls, check, id=f"{cls.name}: {check.title}",  # type: ignore[attr-defined]
        marks=[pytest.mark.slow] if cls.name in LARGE else [],  # type: ignore[attr-defined]
    )
    for cls in components()
    if cls not in TASKS.values()
    for check in role_of(cls)[2]
]  # fmt: skip


@pytest.mark.parametrize(("cls", "check"), CHECKS)
def test_it_keeps_the_promises_of_its_role(cls: type, check: Check) -> None:
    with contextlib.suppress(NotCheckedError):
        check.run(TRIALS.setdefault(cls, trial_of(cls)))


@pytest.mark.parametrize("name", [n for n, d in DEFENSES.items() if not issubclass(d, Release)])
def test_a_defense_names_the_loss_of_the_task(name: str) -> None:
    history = TRIALS.setdefault(DEFENSES[name], trial_of(DEFENSES[name])).whole.payload["history"]
    assert all("task" in epoch for epoch in history)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_limit_is_spent_and_not_only_kept(name: str) -> None:
    trial = TRIALS.setdefault(ATTACKS[name], trial_of(ATTACKS[name]))
    assert isinstance(trial, AttackTrial)
    for share, run in trial.limited.items() if trial.needed else ():
        assert answers(run) > int(share * trial.needed) / 2
        assert (run.work.steps == trial.whole.work.steps) == (share == 1)
    assert len(trial.limited) == 3


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in CONTROLS])
def test_an_attack_has_the_fields_that_make_it_adaptive(name: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(tiny(ATTACKS[name]))}
    if name == "transfer":  # whose inner attack is made so, and which asks nothing
        return
    assert fields["max_queries"].default == 0
    if ATTACKS[name].access == "white":
        assert issubclass(ATTACKS[name], WhiteBox)
        assert "identity" in fields
        assert fields["views"].default == ()


@pytest.mark.parametrize("name", DEFENSES)
def test_its_twin_changes_the_network_alike_and_is_its_own_twin(name: str) -> None:
    defense = tiny(DEFENSES[name])
    twin = defense.twin()
    if isinstance(defense, NoDefense) and type(defense).twin is Defense.twin:
        # With the plain loss, what it does to the network is all of it.
        assert twin == NoDefense()
        return
    shapes = []
    for one in (defense, twin):
        with seeded("test"):
            network = one.harden(MLP().build(TASK.shape, TASK.num_classes))
        shapes.append({k: v.shape for k, v in network.state_dict().items()})
    assert shapes[0] == shapes[1]
    assert twin.twin() == twin


@dataclasses.dataclass(frozen=True)
class Partly(Defense):
    """Trains the last layer alone; the others are frozen, or trained but left out of the loss."""

    name: ClassVar[str] = "partly"

    freeze: bool = True

    def harden(self, network: Classifier) -> Classifier:
        """Freezes all but the last layer."""
        network.requires_grad_(requires_grad=not self.freeze)
        network.last.requires_grad_()
        return network

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy, of which no gradient reaches the latents."""
        logits = network.head(network.latents(batch.x)[-1].detach())
        return {"task": F.cross_entropy(logits, batch.y)}


@pytest.mark.parametrize("freeze", [True, False])
def test_a_defense_is_held_to_the_parameters_that_it_trains(
    freeze: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Partly, "small", {"freeze": freeze})
    expected: Any = contextlib.nullcontext()
    if not freeze:
        expected = pytest.raises(BrokenPromiseError, match="no gradient reaches layers")
    with expected:
        check_weights(DefenseTrial(Partly))


BY_TRAITS = {
    FIRST: torch.tensor([[1.0, 3, 5], [1, 2, 3], [2, 2, 4], [4, 1, 2]]),
    SECOND: torch.tensor([[2.0, 1, 3], [0, 1, 2], [1, 5, 5], [3, 1, 3]]),
}
"""Errors of four reconstructions, of persons 0, 1, 0 and 1, to three persons."""
REAL_BY_TRAITS = torch.tensor([[1.0, 2, 3]] * 4 + [[2.0, 1, 3]] * 3 + [[1.0, 1, 3]])


@pytest.fixture
def evidence() -> Evidence:
    """Two passes of two classes; the evaluator (six classes) hits three times out of four."""
    logits = -torch.arange(6.0).repeat(4, 1)
    logits[torch.arange(4), torch.tensor([0, 1, 0, 2])] = 1
    sure = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.2, 0.8]])
    reconstructed = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
    real = torch.tensor([[1.0], [2.0], [-1.0], [2.0], [3.0], [5.0], [3.0], [5.0]])
    return Evidence(
        labels=torch.tensor([0, 1, 0, 1]),
        block=torch.zeros(4, dtype=torch.long),
        passes=torch.tensor([0, 0, 1, 1]),
        logits=logits,
        features={
            lens: Compared(scale * reconstructed, scale * real)
            for lens in LENSES
            for scale in [{STRETCHED: 2, INCEPTION: 3, PIXELS: 0.25}.get(lens, 1)]
        }
        | {lens: Compared(by_traits, REAL_BY_TRAITS) for lens, by_traits in BY_TRAITS.items()},
        real_labels=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        test_logits=torch.eye(4, 5),
        test_labels=torch.tensor([0, 1, 2, 4]),
        others=50 * F.one_hot(torch.tensor([[0, 2, 1, 2]]), 6).float(),
        target_logits=F.pad(sure.log(), (0, 3), value=-1e3),
        ssim=torch.tensor([0.5, 0.1, 0.2, 0.4]),
        control_logits=torch.eye(6)[:4],
        control_labels=torch.tensor([0, 0, 0, 1]),
    )


FID = 1.5**2 + (2 - (4 / 3) ** 0.5) ** 2  # means 1 and 2.5, variances 4/3 and 4
FID_OF_THREE = (2.5 - 2 / 3) ** 2 + (2 - (4 / 3) ** 0.5) ** 2  # of 0, 2 and 0
KNOWN = {
    "accuracy": 75.0,
    "attack_acc": 75.0,
    "attack_acc5": 100.0,
    "attack_acc_identity": (100 + 50) / 2,
    "attack_acc_best": (100 + 0) / 2,  # the target is surest of images 0, a hit, and 3, a miss
    "attack_acc_any": 100.0,
    "most_frequent": 50.0,  # the evaluator's favourite is class 0
    "attack_acc_mean": (100 + 50 + 50 + 0) / 4,
    "attack_acc_second": 25.0,
    "attack_acc_vote": 25.0,  # the other evaluator, which is surer, decides
    "attack_acc_all": 25.0,
    "attack_acc_corrected": 100 * (0.75 - 0.25) / (1 - 0.25),
    "false_positives": 25.0,
    "evaluator_agreement": 50.0,  # on images 0 and 3
    "evaluator_kappa": (0.5 - 22 / 64) / (1 - 22 / 64),  # votes 3, 2 and 3 of 8
    "confidence": (90 + 20 + 60 + 80) / 4,
    "fid": FID,
    "fid_stretched": 4 * FID,
    "fid_successful": FID_OF_THREE,
    "fid_successful_stretched": 4 * FID_OF_THREE,
    "fid_inception": 9 * FID,
    "fid_inception_successful": 9 * FID_OF_THREE,
    "fid_floor": 2**2 + ((11 / 3) ** 0.5 - 3**0.5) ** 2,  # 1, -1, 3, 3 against 2, 2, 5, 5
    "fid_identity": (0.5**2 + 1) / 2,  # class 0: 0, 0 against 1, 1, -1, 1; class 1: all are 1
    "fid_identity_floor": (1 + 2) / 2,  # class 0: 1, -1 against 1, 1
    "kid": 260 / 12 + KID_REAL / 56 - 2 * KID_BETWEEN / 32,
    "knn_distance": 1.0,  # 0 to 1 or -1, 2 to 3
    "knn_distance_squared": 1.0,
    "feature_distance": (1 + 2) / 2,  # 0 to 1, 2 to 4
    "ssim": 0.3,
    "pixel_distance": 0.25,
    "trait_leakage": (100 * (1 - 1.5 / 3.5) + 100 * (1 - 1.5 / 2.5)) / 2,
    "trait_leakage_second": (100 * (1 - 1.5 / 3.5) + 50) / 2,
    "trait_acc": (75 + 50) / 2,  # image 2 is as near to person 1
    "trait_acc_second": 50.0,
    "trait_rank": (25 / 2 + 50 / 2) / 2,
    "trait_agreement": ((0 + 50) / 2 + 100) / 2,
    "trait_acc_real": 100 * 7.5 / 8,
    "attack_acc_false": 100 / 3,  # of images 0, 1 and 2, the second
    "precision": 100.0,
    "recall": 75.0,  # both 5 are further than 2 from 0 and 2
    "density": (4 + 8) / 2 / 5,
    "coverage": 100.0,
}


@pytest.mark.parametrize("name", METRICS)
class TestMetric:
    def test_it_has_its_known_value_on_evidence_made_by_hand(
        self, name: str, evidence: Evidence
    ) -> None:
        value = METRICS[name].compute(evidence)
        mean = value.mean().item() if isinstance(value, Tensor) else value
        assert mean == pytest.approx(KNOWN[name], rel=1e-6)

    def test_it_says_what_it_is_and_how_many_values_it_has(
        self, name: str, evidence: Evidence
    ) -> None:
        metric = METRICS[name]
        assert metric.compute.__doc__
        assert metric.better in ("lower", "higher", "")
        low, high = metric.range
        assert low < high
        assert (metric.range == (0, 100)) <= (metric.unit == "percent")
        value = metric.compute(evidence)
        count = len(value) if isinstance(value, Tensor) else None
        assert count == {"image": 4, "identity": 2, "attack": None, "target": None}[metric.per]

    @pytest.mark.parametrize("case", CASES)
    def test_where_evidence_is_poor_it_is_in_range_or_says_that_it_is_undefined(
        self, name: str, case: str, evidence: Evidence
    ) -> None:
        values = measure(METRICS[name], [poor(evidence, case)])
        score = summarise(METRICS[name], [poor(evidence, case)], "pass")
        assert (score.mean is None) == (name in CASES[case])
        if score.mean is None:
            assert isinstance(values, str)
            assert values
            assert score.n == 0
        else:
            low, high = METRICS[name].range
            assert low - 1e-9 <= score.mean <= high + 1e-9
            assert math.isfinite(score.mean)


def poor(e: Evidence, case: str) -> Evidence:
    """Returns evidence that hardly is any."""
    if case == "one image" or case == "one class":
        return e.take(torch.tensor([0]) if case == "one image" else torch.tensor([0, 2]))
    if case == "none successful":
        return replace(e, logits=e.logits.flip(1) - 9 * F.one_hot(e.labels, 6))
    if case == "identical images":
        same = {k: Compared(*map(torch.ones_like, v)) for k, v in e.features.items()}
        return replace(e, features=same)
    if case == "one real image":
        few = {k: Compared(v.reconstructed, v.real[:1]) for k, v in e.features.items()}
        return replace(e, features=few, real_labels=e.real_labels[:1], ssim=None)
    if case == "nothing but the least":
        least = {k: v for k, v in vars(e).items() if k in LEAST}
        return Evidence(**least, features={EVALUATOR: e.features[EVALUATOR]})
    raise KeyError(case)


LEAST = {"labels", "block", "passes", "logits", "real_labels", "test_logits", "test_labels"}


@pytest.mark.parametrize(
    "field",
    [
        "logits", "others", "target_logits", "ssim", "control_logits",
        *itertools.chain(*STORED.values()),
    ],
)  # fmt: skip
def test_evidence_that_is_not_finite_is_refused(field: str, evidence: Evidence) -> None:
    payload = evidence.stored()
    payload[field] = payload[field].clone()
    payload[field][0, ...] = float("nan")
    with pytest.raises(FloatingPointError, match=f"evidence's {field} is not finite"):
        Evidence.restored(payload, tuple(lens for lens in LENSES if lens not in STORED))


def test_a_metric_that_computes_nan_stops_the_record(evidence: Evidence) -> None:
    metric = Metric("m", "M", lambda e: float("nan"), per="attack", better="lower")
    with pytest.raises(FloatingPointError, match="M of an attack is not finite"):
        summarise(metric, [evidence], "pass")


@dataclasses.dataclass(frozen=True)
class Blind(Attack):
    """Asks once a step, keeping to its budget or not, and returns what the prior drew."""

    name: ClassVar[str] = "blind"
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = dataclasses.field(default_factory=WGANGP)
    steps: int = 4
    max_queries: int = 0
    thrifty: bool = True

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns what the budget pays for."""
        return affordable(self, self.steps, samples) if self.thrifty else self.steps

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Draws, and asks of it."""
        found = goal.reconstructions(prior, goal.draws(prior))
        for _ in range(self.planned_steps(len(goal.blocks), goal.samples)):
            target(found.images.flatten(0, 1))
            work.steps += 1
        return found


@pytest.mark.parametrize("thrifty", [True, False])
def test_a_black_box_attack_is_held_to_its_own_limit(
    thrifty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blind, "small", {"thrifty": thrifty})
    expected: Any = contextlib.nullcontext()
    if not thrifty:
        expected = pytest.raises(BrokenPromiseError, match="answers of its budget, and the target")
    with expected:
        check_own_limit(AttackTrial(Blind))


@pytest.mark.parametrize("access", ["scores", "labels"])
def test_a_query_counts_and_hides_gradients(access: Any, target: Classifier) -> None:
    work = Work()
    ask = Query(target, access, work)
    x = torch.rand(5, *TASK.shape, generator=generator("x")).requires_grad_()
    answer = ask(x)
    assert not answer.requires_grad
    assert work.queries == 5
    for part in ("latents", "head", "last", "parameters", "state_dict", "target"):
        assert not hasattr(ask, part)
    held = [*vars(ask).values(), *(getattr(v, "__self__", None) for v in vars(ask).values())]
    assert not any(isinstance(v, torch.nn.Module | Tensor) for v in held)
    if access == "scores":
        assert torch.is_floating_point(answer)
        torch.testing.assert_close(answer.sum(1), torch.ones(5))
    else:
        assert not torch.is_floating_point(answer)  # no score leaks
        assert torch.equal(answer, target(x).argmax(1))


def test_a_prior_that_looks_across_a_batch_judges_group_by_group() -> None:
    with seeded("test"):
        pooled = tiny(PRIORS["inversion-gan"]).build(TASK.shape, TASK.num_classes).eval()
    x = torch.rand(6, *TASK.shape, generator=generator("x"))
    x[3] = x[4]  # close to each other: the discriminator sees that
    apart = pooled.realism_by_group(x, [4, 2])
    torch.testing.assert_close(apart, torch.cat([pooled.realism(x[:4]), pooled.realism(x[4:])]))
    assert not torch.allclose(apart, pooled.realism(x))


def test_a_black_box_attack_cannot_have_a_prior_that_sees_the_target() -> None:
    class Blind(KEDMI):
        access: ClassVar[Access] = "labels"

    cell = TABLES["smoke"].rows["KED-MI / No Def."]
    with pytest.raises(ValueError, match="give it another prior"):
        replace(cell, attack=Blind()).check()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda x: x * float("nan"), "is not finite"),
        (lambda x: x + 1, "outside"),
        (lambda x: x[:1], "of shape"),
    ],
)
def test_what_an_attack_returns_is_checked(
    change: Callable[[Tensor], Tensor], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert = GMI.invert

    def bad(*arguments: Any) -> Reconstructions:
        found = invert(*arguments)
        return Reconstructions(change(found.images), change(found.latents))

    monkeypatch.setattr(GMI, "invert", bad)
    with pytest.raises(BrokenPromiseError, match=sentence):
        check_images(AttackTrial(GMI))
