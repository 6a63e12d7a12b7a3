"""What every component promises; a new one is tested by being registered."""

import contextlib
import copy
import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.attacks import ATTACKS, CONTROLS, GMI, KEDMI, LOSSES, PRIORS, VIEWS, WGANGP, Goal
from mibench.attacks.access import NO_LIMIT, Query, handed
from mibench.attacks.losses import LogitMatching, MaxMargin
from mibench.attacks.views import Crop, Flip, Noise, Plain, Shift, affordable
from mibench.benchmarks.tables import TABLES
from mibench.data import TASKS, Splits
from mibench.data.synthetic import Blobs
from mibench.defenses import DEFENSES
from mibench.evaluation import METRICS, Compared, Evidence, Metric, summarise
from mibench.evaluation.evidence import STORED
from mibench.evaluation.fid import FIDS
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.lenses import EVALUATOR, STRETCHED
from mibench.evaluation.pixels import PIXELS
from mibench.networks import MLP, NETWORKS
from mibench.roles import Attack, Batch, Defense, PriorSpec, View
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import graph, record_stage
from mibench.seeding import generator, seeded
from mibench.spec import canonical, fingerprint
from mibench.store import Payload, Work
from mibench.types import Access, Classifier, Images, Logits, Prior, Reconstructions, Scalar

NUMBERS: dict[Any, float] = {float: 0.1, int: 2}
TASK = Blobs(num_classes=4)

OF_SUCCESSFUL = {name for name, (_, only_successful) in FIDS.items() if only_successful}
LENSES = dict.fromkeys((*STORED, *(lens for m in METRICS.values() for lens in m.needs)))
CASES: dict[str, set[str]] = {
    "one image": FIDS.keys() | {"fid_identity", "kid", "recall", "evaluator_kappa"},
    "one class": {"recall"},  # of two images
    "none successful": OF_SUCCESSFUL,
    "identical images": set(),
    "one real image": FIDS.keys()
    | {
        "fid_floor", "fid_identity", "fid_identity_floor", "kid", "knn_distance", "ssim",
        "knn_distance_squared", "feature_distance", "precision", "density", "coverage",
        "pixel_distance",
    },
    "nothing but the least": {
        "attack_acc_best", "attack_acc_corrected", "false_positives", "evaluator_agreement",
        "evaluator_kappa", "confidence", "fid_stretched", "fid_successful_stretched",
        "fid_inception", "fid_inception_successful", "ssim", "pixel_distance",
    },
}  # fmt: skip
"""Poor evidence → the metrics that have no value on it."""
A, B = (0, 2, 0, 2), (1, 2, -1, 2, 3, 5, 3, 5)
KID_REAL = sum((x * y + 1) ** 3 for i, x in enumerate(B) for j, y in enumerate(B) if i != j)
KID_BETWEEN = sum((x * y + 1) ** 3 for x in A for y in B)


def tiny(cls: type, **extra: Any) -> Any:
    """Returns the component at its defaults, as small as it says in ``small``.

    Numbers without a default are 0.1 or 2.
    """
    hints = get_type_hints(cls)
    missing = dataclasses.MISSING
    numbers = {
        f.name: NUMBERS[hints[f.name]]
        for f in dataclasses.fields(cls)
        if f.default is missing and f.default_factory is missing and hints[f.name] in NUMBERS
    }
    return cls(**numbers | dict(getattr(cls, "small", {})) | extra)


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


@pytest.mark.parametrize("name", DEFENSES)
class TestDefense:
    def test_terms_are_finite_and_reach_every_trainable_weight(
        self, name: str, splits: Splits
    ) -> None:
        defense = tiny(DEFENSES[name])
        with seeded("test"):
            network = defense.harden(MLP().build(TASK.shape, TASK.num_classes))
        batch = splits.private.train.take(torch.arange(16))
        x, y = batch.images, batch.labels
        with seeded("test"):
            terms = defense.loss_terms(network, Batch(x, y))
        total = torch.stack(list(terms.values())).sum()
        assert total.isfinite()
        assert "task" in terms
        trained = [p for p in network.parameters() if p.requires_grad]
        assert trained
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
        assert all(g is not None for g in gradients)

    def test_the_hardened_network_still_classifies(self, name: str, splits: Splits) -> None:
        with seeded("test"):
            network = tiny(DEFENSES[name]).harden(MLP().build(TASK.shape, TASK.num_classes))
            logits = network(splits.private.train.images[:3])
        assert logits.shape == (3, TASK.num_classes)

    def test_its_twin_changes_the_network_alike_and_is_its_own_twin(self, name: str) -> None:
        defense = tiny(DEFENSES[name])
        twin = defense.twin()
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
    freeze: bool, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEFENSES, "partly", Partly)
    monkeypatch.setattr(Partly, "small", {"freeze": freeze})
    expected = contextlib.nullcontext() if freeze else pytest.raises(AssertionError)
    with expected:
        TestDefense().test_terms_are_finite_and_reach_every_trainable_weight("partly", splits)


@pytest.mark.parametrize("name", PRIORS)
def test_prior_draws_images_of_the_task_and_judges_them(
    name: str, splits: Splits, target: Classifier
) -> None:
    spec = tiny(PRIORS[name])
    with seeded("test"):
        prior = spec.build(TASK.shape, TASK.num_classes)
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    work = Work()
    seen = None if spec.access == "none" else handed(target, spec.access, work)
    spec.train(prior, splits.public, seen, generator("prior"), work)
    trained = any(not torch.equal(v, before[k]) for k, v in prior.state_dict().items())
    assert trained == (spec.planned_steps(len(splits.public)) != 0)
    assert (work.queries > 0) == (spec.access != "none")
    prior.eval()
    z, y = prior.sample(6, generator("z")), torch.arange(6) % TASK.num_classes
    x = prior.generate(z, y)
    assert x.shape == (6, *TASK.shape)
    assert 0 <= x.min() <= x.max() <= 1
    assert bool(prior.surrogates) == ("surrogates" in spec.offers)
    if "critic" in spec.offers:
        assert prior.realism(x, y).shape == (6,)
    else:
        with pytest.raises(ValueError, match="has no critic"):
            prior.realism(x, y)


class KilledError(BaseException):
    """Stands for a death that no handler survives."""


class Doomed(Work):
    """Dies just after so many saves."""

    left: int

    def save(self, state: Callable[[], Payload]) -> None:
        super().save(state)
        self.left -= 1
        if self.left == 0:
            raise KilledError


class Tally(Classifier):
    """A target that counts for itself; its copies count together.

    Attributes:
        target: The network.
        answers: How many it gave.
        gradients: Of how many of its images a gradient was taken.
    """

    def __init__(self, target: Classifier) -> None:
        super().__init__()
        self.target = target
        self.num_classes, self.noise_dim = target.num_classes, target.noise_dim
        self.neck, self.last = target.neck, target.last
        self.answers: list[int] = []
        self.gradients: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Tally":
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


@pytest.mark.parametrize("name", ATTACKS)
class TestAttack:
    blocks = (torch.arange(2), torch.arange(2, 4))

    def invert(
        self,
        name: str,
        target: Classifier,
        seed: int = 0,
        work: Work | None = None,
        limit: int = NO_LIMIT,
        **change: Any,
    ) -> Tensor:
        attack = replace(tiny(ATTACKS[name]), **change)
        spec = tiny(type(attack.prior))
        with seeded("test"):
            prior: Prior = spec.build(TASK.shape, TASK.num_classes)
        prior.eval().requires_grad_(requires_grad=False)
        work = work or Work()
        seen: Any = handed(target, attack.access, work, limit)
        if name not in CONTROLS and attack.access == "white" and attack.identity.public:
            seen.look_at(TASK.load(Path()).public)
        rngs = [generator(seed, i) for i in range(2)]
        found = attack.invert(seen, prior, Goal(self.blocks, 3, rngs, TASK.shape), work)
        assert found.latents.shape[:2] == (3, 4)
        assert not found.images.requires_grad
        images: Tensor = found.images
        return images

    @pytest.mark.parametrize("saves", [1, 3])
    def test_interrupted_and_resumed_equals_uninterrupted(
        self, name: str, saves: int, target: Classifier, tmp_path: Path
    ) -> None:
        whole = self.invert(name, target)
        doomed = Doomed(tmp_path, every=0.0)
        doomed.left = saves
        with contextlib.suppress(KilledError):
            self.invert(name, target, work=doomed)
        optimises = tiny(ATTACKS[name]).planned_steps(len(self.blocks)) != 0
        assert doomed.left == (0 if optimises else saves)
        assert torch.equal(self.invert(name, target, work=Work(tmp_path)), whole)

    def test_images_of_the_task_in_unit_range(self, name: str, target: Classifier) -> None:
        x = self.invert(name, target)
        assert x.shape == (3, 4, *TASK.shape)
        assert 0 <= x.min() <= x.max() <= 1

    def test_same_seed_same_images(self, name: str, target: Classifier) -> None:
        a, b, c = (self.invert(name, target, seed) for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)

    def test_it_is_made_adaptive_by_fields_and_keeps_to_a_budget(
        self, name: str, target: Classifier
    ) -> None:
        if name in CONTROLS or name == "transfer":  # which is made so inside, and asks nothing
            return
        fields = {f.name: f for f in dataclasses.fields(tiny(ATTACKS[name]))}
        assert fields["max_queries"].default == 0
        if ATTACKS[name].access != "white":
            work, free = Work(), Work()
            self.invert(name, target, work=free)
            limit = free.queries // 4 * 2 // free.steps  # of each class, 2 steps
            self.invert(name, target, work=work, limit=4 * limit, max_queries=limit)
            assert free.steps > work.steps > 0
            assert 0.5 * 4 * limit < work.queries <= 4 * limit
            return
        assert "identity" in fields
        assert fields["views"].default == ()
        plain = self.invert(name, target)
        for change in (
            {"identity": MaxMargin()},
            {"identity": LogitMatching()},
            {"views": (Plain(), Shift(pixels=1), Noise(std=0.2))},
        ):
            assert not torch.equal(self.invert(name, target, **change), plain), change
        views: tuple[View, ...] = (Plain(draws=2), Flip())
        work, free = Work(), Work()
        self.invert(name, target, work=free, views=views)
        each = free.queries // free.steps  # of all classes
        limit = 2 * each // (2 if name == "vmi" else 4)  # 2 steps; VMI's has but one block's
        self.invert(name, target, work=work, limit=4 * limit, views=views, max_queries=limit)
        assert free.steps > work.steps > 0
        assert 0.5 * 4 * limit < work.queries <= 4 * limit

    @pytest.mark.parametrize("views", [(), (Plain(draws=2), Flip())])
    def test_what_is_counted_is_what_an_independent_counter_counts(
        self, name: str, views: tuple[View, ...], target: Classifier
    ) -> None:
        tally, work = Tally(target).eval(), Work()
        adapts = name not in CONTROLS and ATTACKS[name].access == "white"
        if views and not adapts:
            return
        change: dict[str, Any] = {"views": views, "identity": LogitMatching()} if views else {}
        self.invert(name, tally, work=work, **change)
        assert (work.queries, work.gradients) == (sum(tally.answers), sum(tally.gradients))

    @pytest.mark.parametrize("share", [0.5, 0.9, 1])
    def test_a_limit_is_kept_to_though_the_attack_was_told_of_none(
        self, name: str, share: float, target: Classifier
    ) -> None:
        free = Work()
        whole = self.invert(name, target, work=free)
        limit = int(share * free.queries)
        tally, work = Tally(target).eval(), Work()
        found = self.invert(name, tally, work=work, limit=limit)
        assert sum(tally.answers) == work.queries <= limit
        assert work.queries > limit / 2 or not free.queries
        if share == 1:
            assert (work.queries, work.steps) == (free.queries, free.steps)
            assert torch.equal(found, whole)

    def test_interrupted_and_resumed_within_a_limit_equals_uninterrupted(
        self, name: str, target: Classifier, tmp_path: Path
    ) -> None:
        free, paid, again = Work(), Work(), Work(tmp_path)
        self.invert(name, target, work=free)
        limit = int(0.7 * free.queries)
        whole = self.invert(name, target, work=paid, limit=limit)
        doomed = Doomed(tmp_path, every=0.0)
        doomed.left = 2
        with contextlib.suppress(KilledError):
            self.invert(name, target, work=doomed, limit=limit)
        assert torch.equal(self.invert(name, target, work=again, limit=limit), whole)
        assert (again.queries, again.steps) == (paid.queries, paid.steps)

    def test_interrupted_and_resumed_with_views_equals_uninterrupted(
        self, name: str, target: Classifier, tmp_path: Path
    ) -> None:
        if name in CONTROLS or ATTACKS[name].access != "white":
            return
        views: tuple[View, ...] = (Shift(pixels=2), Crop(), Noise(draws=2))
        paid = Work()
        whole = self.invert(name, target, work=paid, views=views)
        doomed = Doomed(tmp_path, every=0.0)
        doomed.left = 2
        with contextlib.suppress(KilledError):
            self.invert(name, target, work=doomed, views=views)
        assert doomed.left == 0
        again = Work(tmp_path)
        assert torch.equal(self.invert(name, target, work=again, views=views), whole)
        spent = [(w.steps, w.queries, w.gradients) for w in (paid, again)]
        assert spent[0] == spent[1]

    def test_target_is_left_as_it_was(self, name: str, target: Classifier) -> None:
        before = {k: v.clone() for k, v in target.state_dict().items()}
        self.invert(name, target)
        assert not target.training
        assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
        assert all(p.grad is None for p in target.parameters())


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
        },
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
    "attack_acc_mean": (100 + 50 + 50 + 0) / 4,
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
        score = summarise(METRICS[name], [poor(evidence, case)], "pass")
        assert (score.mean is None) == (name in CASES[case])
        if score.mean is None:
            assert score.undefined
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
        Evidence.restored(payload, (PIXELS,))


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
def test_a_black_box_attack_is_held_to_its_budget_alone(
    thrifty: bool, target: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ATTACKS, "blind", Blind)
    monkeypatch.setattr(Blind, "small", {"thrifty": thrifty})
    expected: Any = contextlib.nullcontext()
    if not thrifty:
        expected = pytest.raises(ValueError, match="12 more answers, but 0 remain of its limit")
    with expected:
        TestAttack().test_it_is_made_adaptive_by_fields_and_keeps_to_a_budget("blind", target)


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
    change: Callable[[Tensor], Tensor], sentence: str, tmp_path: Path, monkeypatch: Any
) -> None:
    settings = ["attack.prior.epochs=1", "attack.steps=1", "recipe.epochs=1"]
    cell = TABLES["smoke"].modified(settings).rows["GMI / No Def."]
    last = record_stage(cell, ("attack_acc",), cell.setting.task.digest(Path()))
    invert = GMI.invert

    def bad(*arguments: Any) -> Reconstructions:
        found = invert(*arguments)
        return Reconstructions(change(found.images), change(found.latents))

    monkeypatch.setattr(GMI, "invert", bad)
    outcome = execute(graph([last]), Bench(tmp_path, Path()), Watcher(), Serial())
    assert [s for s in outcome.failures.values() if sentence in s], outcome.failures
