"""A GPU rehearsed without one: nothing mixes devices, and no step waits for the device."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mibench.attacks import ATTACKS, CONTROLS, GMI, LOSSES, PRIORS, VIEWS
from mibench.benchmarks.tables import TABLES
from mibench.data import Avatars, Task
from mibench.defenses import DEFENSES, NoDefense, Recipe, Release
from mibench.evaluation import METRICS, Evidence, Lens, Metric, Tools, UndefinedError
from mibench.evaluation.evidence import STORED
from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.regressors import TraitReader
from mibench.networks import NETWORKS
from mibench.roles import Attack, Batch, Defense, IdentityLoss
from mibench.running.checks import tiny
from mibench.running.checks.base import NETWORK, TASK
from mibench.running.checks.stages import IMAGES, load
from mibench.running.checks.training import needed_epochs
from mibench.running.grid import record_stages
from mibench.running.stages import (
    ClassifierStage,
    InversionStage,
    PriorStage,
    ReleaseStage,
    graph,
)
from mibench.seeding import generator, seeded
from mibench.store import Stage, Store, Work
from mibench.types import Classifier, Scalar, predict
from tests.elsewhere import AWAY, Elsewhere, MixedError, WaitError, away
from tests.made import fill, smoke

TARGET = ClassifierStage(IMAGES, "private", NETWORK, NoDefense(), Recipe(1, batch_size=32), 0)
LENSES = {lens.name: lens for m in METRICS.values() for lens in m.needs} | {
    lens.name: lens for lens in STORED
}


def rehearse(last: Stage, root: Path) -> Store:
    """Computes a stage and what it needs on the device that is none.

    What asks for labels or scores decides by them, so it waits for them.
    """
    store = Store(root)
    for stage in graph([last]):
        role = getattr(stage, "attack", None) or getattr(stage, "spec", None)
        asks = getattr(role, "access", "none") in ("labels", "scores")
        with away(patient=asks):
            store.complete(stage, str(AWAY), Path("data"))
    return store


def inversion(attack: Attack) -> InversionStage:
    seen = TARGET if attack.prior.access != "none" else None
    return InversionStage(TARGET, PriorStage(IMAGES, seen, attack.prior, 0), attack, 4, 3, 2, 0, 0)


def small(cls: Any, **fields: Any) -> Any:
    """Returns an attack with a small prior."""
    attack = tiny(cls, **fields)
    return dataclasses.replace(attack, prior=tiny(type(attack.prior)))


# What a device would do ---------------------------------------------------------------------


@pytest.fixture
def device() -> Iterator[torch.device]:
    with away():
        yield AWAY


def test_arithmetic_is_real_and_stays_there(device: torch.device) -> None:
    x = torch.arange(4.0).to(device)
    y = (x * 2 + 1).sum()
    assert isinstance(y, Elsewhere)
    assert x.device.type == y.device.type == AWAY.type
    assert y.cpu().item() == y.item() == 16
    z = torch.ones(3, device=device, requires_grad=True)
    (gradient,) = torch.autograd.grad((z * z).sum(), z)
    assert gradient.tolist() == [2, 2, 2]


def test_two_devices_do_not_meet_but_in_moves_numbers_and_indices(device: torch.device) -> None:
    x, y = torch.ones(3).to(device), torch.ones(3)
    with pytest.raises(MixedError, match=r"aten\.add\.Tensor takes tensors of two devices"):
        _ = x + y
    with pytest.raises(MixedError):
        F.mse_loss(x, y)
    assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
    assert x[torch.tensor([0, 2])].shape == (2,)
    y.copy_(x * 5)
    assert y.tolist() == [5, 5, 5]
    assert torch.tensor([1, 2], device=device).tolist() == [1, 2]


# Each a change that somebody may make, and must not ----------------------------------------


@dataclass(frozen=True)
class Loss(IdentityLoss):
    """Makes a tensor on the CPU."""

    name: ClassVar[str] = "made here"

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none") + torch.zeros(len(labels))


@dataclass(frozen=True)
class Here(GMI):
    """Makes a tensor on the CPU in its loop."""

    name: ClassVar[str] = "here"

    def wrong(self, target: Classifier, x: Tensor, rows: Any) -> Tensor:
        return super().wrong(target, x, rows) * torch.ones(len(x))


@dataclass(frozen=True)
class Reading(NoDefense):
    """Reads a number at every step."""

    name: ClassVar[str] = "reading"

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        terms = super().loss_terms(network, batch)
        HOW[0](terms["task"])
        return terms


HOW: list[Any] = [None]


def made_here(e: Evidence) -> Tensor:
    """Makes a tensor on the CPU."""
    return e.labels.double() + torch.arange(len(e.labels))


def test_a_loss_that_makes_a_tensor_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixedError):
        rehearse(inversion(small(GMI, identity=Loss())), tmp_path)


def test_an_attack_whose_loop_makes_a_tensor_on_the_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixedError):
        rehearse(inversion(small(Here)), tmp_path)


def test_a_metric_that_makes_a_tensor_on_the_cpu_is_refused(tmp_path: Path) -> None:
    made = Metric("made here", "Made here", made_here, "image", "lower")
    with pytest.raises(MixedError):
        value_of(made, evidence(tmp_path))


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.item(), lambda x: x.cpu(), bool, float, lambda x: x.tolist(),
        lambda x: x[x > 0] if x.dim() else x.reshape(1)[x.reshape(1) > 0],
        lambda x: x.reshape(1).nonzero(),
    ],
    ids=["item", "cpu", "bool", "float", "tolist", "mask", "nonzero"],
)  # fmt: skip
def test_a_step_that_waits_for_the_device_is_refused(how: Any, tmp_path: Path) -> None:
    HOW[0] = how
    stage = dataclasses.replace(TARGET, defense=Reading())
    with pytest.raises(WaitError, match=r"inside .*step"):
        rehearse(stage, tmp_path)


def test_between_steps_a_loop_may_read(tmp_path: Path) -> None:
    assert rehearse(TARGET, tmp_path).state(TARGET) == "done"


# Everything that is registered --------------------------------------------------------------


def evidence(root: Path) -> Evidence:
    """Returns the evidence of a made-up store."""
    store = Store(root)
    record = fill(smoke("KED-MI / No Def."), store)["KED-MI / No Def."][0]
    return record.evidence[0].evidence(store.load)


def value_of(metric: Metric, e: Evidence) -> Any:
    """Returns what a metric makes of evidence that lies on the device."""

    def there(v: Any) -> Any:
        return tree_map_only(Tensor, lambda x: x.to(AWAY), v)

    with away():
        fields = {f.name: getattr(e, f.name) for f in dataclasses.fields(e)}
        features = {lens: type(v)(*map(there, v)) for lens, v in e.features.items()}
        moved = Evidence(**{k: there(v) for k, v in fields.items()} | {"features": features})
        return metric.compute(moved)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [*ATTACKS.values(), *CONTROLS.values()], ids=lambda c: c.name)
def test_every_attack(cls: Any, tmp_path: Path) -> None:
    rehearse(inversion(small(cls)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cls", LOSSES.values(), ids=lambda c: c.name)
def test_every_loss(cls: Any, tmp_path: Path) -> None:
    rehearse(inversion(small(GMI, identity=tiny(cls))), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cls", VIEWS.values(), ids=lambda c: c.name)
def test_every_view(cls: Any, tmp_path: Path) -> None:
    rehearse(inversion(small(GMI, views=(tiny(cls),))), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cls", PRIORS.values(), ids=lambda c: c.name)
def test_every_prior(cls: Any, tmp_path: Path) -> None:
    spec = tiny(cls)
    rehearse(PriorStage(IMAGES, TARGET if spec.access != "none" else None, spec, 0), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cls", DEFENSES.values(), ids=lambda c: c.name)
def test_every_defense_and_release(cls: Any, tmp_path: Path) -> None:
    defense: Defense = tiny(cls)
    if isinstance(defense, Release):
        trained = dataclasses.replace(TARGET, defense=defense.inner)
        rehearse(ReleaseStage(trained, defense), tmp_path)
    else:
        recipe = Recipe(needed_epochs(defense), batch_size=32)
        network = defense.checked_on or TARGET.network
        target = dataclasses.replace(TARGET, network=network, defense=defense, recipe=recipe)
        rehearse(target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("cls", NETWORKS.values(), ids=lambda c: c.name)
def test_every_network(cls: Any) -> None:
    fields = {f.name for f in dataclasses.fields(cls)}
    narrow: dict[str, Any] = {"width": 0.05} if "width" in fields and cls.name != "mlp" else {}
    narrow |= {"pretrained": False} if "pretrained" in fields else {}
    shape = (1, 32, 32) if cls.name in ("mcnn", "scnn", "mlp") else (3, 64, 64)
    with seeded("rehearsal"):
        network = tiny(cls, **narrow).build(shape, 4)
    x = torch.rand(4, *shape, generator=generator("x"))
    with away(), seeded("rehearsal"):
        network.to(AWAY).train()
        terms = NoDefense().loss_terms(network, Batch(x.to(AWAY), torch.arange(4).to(AWAY)))
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        predict(network, x, generator("y"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LENSES)
def test_every_lens(name: str) -> None:
    lens: Lens = LENSES[name]
    if lens == INCEPTION:
        pytest.skip("its weights are not there")
    with seeded("rehearsal"):
        evaluator = NETWORK.build(TASK.shape, TASK.num_classes)
    task: Task = TASK
    splits = IMAGES.splits(load)
    if isinstance(lens, TraitReader):
        lens = replace(lens, images=32, steps=3, batch=8, held_out=8)
        task = Avatars(num_classes=4, size=16, images=4, tests=4, evaluation=4, strangers=4)
        splits = task.load(Path())
        with seeded("rehearsal"):
            evaluator = NETWORK.build(task.shape, task.num_classes)
    with away(), seeded("rehearsal"):
        evaluator.to(AWAY)
        work = Work(device=AWAY)
        state = lens.train(task, splits, work) if lens.trained else {}
        x = splits.private.test.images[:12]
        lens.features(x, Tools(evaluator, "real", work, "", state))


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name: str, tmp_path: Path) -> None:
    try:
        value_of(METRICS[name], evidence(tmp_path))
    except UndefinedError:
        pytest.skip("the evidence has no value of it")


@pytest.mark.slow
def test_every_stage_of_smoke(tmp_path: Path) -> None:
    records = record_stages(TABLES["smoke"], 1, Path())
    stages = graph(r for rs in records.values() for r in rs)
    store = Store(tmp_path)
    for stage in stages:
        with away():
            store.complete(stage, str(AWAY), Path("data"))
    assert set(store.states(stages).values()) == {"done"}
