"""Defenses with networks of their own, steps of their own, and schedules."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.benchmarks.tables import TABLES
from mibench.data import Corpus
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.networks import MLP
from mibench.roles import Batch, Helper
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.seeding import generator, seeded
from mibench.store import Payload, Work
from mibench.training.train import train_classifier
from mibench.types import Classifier, Scalar

TASK = Blobs(num_classes=4)


class Judge(Helper):
    """Tells apart images and their noisy twins; trained with an optimiser of its own."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        super().__init__(rng)
        with seeded("judge"):
            self.score = nn.Linear(width, 1)
        self.optimizers["adam"] = torch.optim.Adam(self.score.parameters(), 0.01)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))

    def epoch_begins(self, epoch: int) -> None:
        self.scale.mul_(1 + torch.rand((), generator=self.rng))


@dataclass(frozen=True)
class Trapdoor(NoDefense):
    name: ClassVar[str] = "trapdoor"

    def assist(
        self, network: Classifier, recipe: Recipe, corpus: Corpus, rng: torch.Generator
    ) -> Helper:
        return Judge(TASK.shape[0] * TASK.shape[1] * TASK.shape[2], rng)

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        judge: Any = batch.helper
        twin = batch.x + 0.1 * judge.scale * torch.randn(batch.x.shape, generator=batch.rng)
        told = F.softplus(judge.score(batch.x.flatten(1)) - judge.score(twin.flatten(1))).mean()
        adam = judge.optimizers["adam"]
        adam.zero_grad()
        told.backward()  # type: ignore[no-untyped-call]
        adam.step()
        return super().step(network, replace(batch, x=twin), optimizer) | {"judge": told.detach()}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return TASK.load(Path()).private


def train(corpus: Corpus, defense: Any, work: Work, **change: Any) -> Payload:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    recipe = replace(Recipe(epochs=5, batch_size=16), **change)
    rng, own = generator("batches"), generator("defense", "private")
    return train_classifier(network, defense, recipe, corpus, rng, work, own)


def same(a: Payload, b: Payload) -> bool:
    weights = all(torch.equal(v, b["state"][k]) for k, v in a["state"].items())
    return weights and a["history"] == b["history"] and a["epoch"] == b["epoch"]


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_a_helper_with_its_own_optimiser_resumes_to_the_same_bits(
    saves: int, corpus: Corpus, tmp_path: Path
) -> None:
    whole = train(corpus, Trapdoor(), Work())
    with pytest.raises(StoppedError):
        train(corpus, Trapdoor(), CheckedWork(tmp_path, saves))
    assert same(train(corpus, Trapdoor(), Work(tmp_path)), whole)
    assert {"task", "judge", "accuracy"} == set(whole["history"][0])


def test_a_helper_is_no_part_of_the_target_and_moves_no_batch(corpus: Corpus) -> None:
    with_helper = train(corpus, Trapdoor(), Work())
    plain = train(corpus, NoDefense(), Work())
    assert with_helper["state"].keys() == plain["state"].keys()
    assert not same(with_helper, plain)


@dataclass(frozen=True)
class Late(NoDefense):
    """Begins with an epoch; notes what batches say of the training."""

    name: ClassVar[str] = "late"

    begins: int = 3

    def mature(self, epoch: int, epochs: int) -> bool:
        return epoch >= self.begins

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        terms = super().loss_terms(network, batch)
        late = {"late": terms["task"] * 0} if batch.epoch >= self.begins else {}
        return terms | late | {"epoch": terms["task"] * 0 + batch.epoch}


@pytest.mark.parametrize("select", ["last", "validation", "test"])
def test_an_epoch_before_a_schedule_begins_is_never_kept(select: str, corpus: Corpus) -> None:
    found = train(corpus, Late(begins=3), Work(), select=select)
    assert found["epoch"] in (4, 5)  # counted from 1
    assert [h["epoch"] for h in found["history"]] == [0, 1, 2, 3, 4]
    assert ["late" in h for h in found["history"]] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("select", ["last", "validation", "test"])
def test_a_schedule_that_never_begins_is_refused_before_the_run(
    select: str, corpus: Corpus
) -> None:
    with pytest.raises(ValueError, match=r"late lets the weights of no epoch be kept .* \(5\)"):
        train(corpus, Late(begins=5), Work(), select=select)
    cell = TABLES["smoke"].rows["GMI / No Def."]
    with pytest.raises(ValueError, match="late lets the weights of no epoch be kept"):
        replace(cell, defense=Late(begins=10_000)).check()


@dataclass(frozen=True)
class Fickle(NoDefense):
    """Returns a term at every other step, and does nothing at every third."""

    name: ClassVar[str] = "fickle"

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        draw = int(torch.randint(0, 3, (), generator=batch.rng))
        if draw == 2:
            return {}
        terms = super().step(network, batch, optimizer)
        return terms | ({"seldom": torch.tensor(7.0)} if draw else {})


def test_a_term_is_averaged_over_the_steps_that_returned_it(corpus: Corpus) -> None:
    history = train(corpus, Fickle(), Work())["history"]
    assert {h["seldom"] for h in history if "seldom" in h} == {7.0}


def test_loss_terms_of_x_and_y_are_taken_and_told_how_to_be_written(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Old(NoDefense):
        name: ClassVar[str] = "old"

        def loss_terms(self, network: Any, x: Any, y: Any) -> Any:  # type: ignore[override]
            return {"task": F.cross_entropy(network(x), y)}

    assert "write loss_terms(self, network, batch), with batch.x" in capsys.readouterr().err
    assert same(train(corpus, Old(), Work()), train(corpus, NoDefense(), Work()))
