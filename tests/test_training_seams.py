"""What training offers to defenses: outliers, drawn batches, facts, twins, and a way to resume."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mibench.attacks import WGANGP
from mibench.attacks.controls import PriorSamples
from mibench.benchmarks.cell import Cell, Evaluator, Setting, Trials
from mibench.data import Corpus, Digits, Task
from mibench.data.synthetic import Blobs
from mibench.defenses import DEFENSES, MID, BiDO, NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import MLP
from mibench.roles import Batch, Defense
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.running.executors import Bench, Outcome, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import ClassifierStage, ImagesStage, OutlierStage, graph, record_stage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Store, Work
from mibench.training.augment import AUGMENTATIONS
from mibench.training.samplers import poisson
from mibench.training.train import train_classifier
from mibench.types import Classifier, ImageSet, Scalar

TASK = Blobs(num_classes=4)
RECIPE = Recipe(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return TASK.load(Path()).private


def train(
    corpus: Corpus,
    defense: Any,
    recipe: Recipe = RECIPE,
    work: Work | None = None,
    **given: Any,
) -> Payload:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    streams = generator("batches"), generator("own")
    work = work or Work()
    return train_classifier(
        network, defense, recipe, corpus, streams[0], work, streams[1], **given
    )


def run(last: Stage, root: Path) -> Outcome:
    return execute(graph([last]), Bench(root, Path()), Watcher(), Serial())


# Batches drawn image by image ---------------------------------------------------------------


def test_a_poisson_batch_has_each_image_by_a_draw_of_its_own() -> None:
    labels = torch.zeros(1000, dtype=torch.long)
    batches = poisson(labels, 10, 4, generator("poisson"))
    assert len(batches) == 100
    sizes = torch.tensor([len(b) for b in batches]).float()
    assert sizes.mean().item() == pytest.approx(10, abs=1)
    assert sizes.var().item() == pytest.approx(10 * 0.99, rel=0.5)  # of a binomial
    assert all(len(set(b.tolist())) == len(b) for b in batches)
    drawn = set(torch.cat(batches).tolist())
    assert 500 < len(drawn) < 800  # about 1 - 1/e: some come twice, some not at all
    again = poisson(labels, 10, 4, generator("poisson"))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_fewer_images_than_a_batch_are_all_drawn() -> None:
    (batch,) = poisson(torch.zeros(3, dtype=torch.long), 10, 4, generator("poisson"))
    assert batch.tolist() == [0, 1, 2]


@dataclass(frozen=True)
class Sizes(NoDefense):
    """Notes how large batches are, and how large they are expected to be."""

    name: ClassVar[str] = "sizes"

    seen: ClassVar[list[tuple[int, int]]] = []

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        self.seen.append((len(batch.y), batch.expected))
        return super().step(network, batch, optimizer)


def test_empty_batches_are_passed_over(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def shift(x: Tensor, rng: torch.Generator) -> Tensor:
        assert len(x), "an empty batch is augmented"
        return x

    monkeypatch.setitem(AUGMENTATIONS, "shift", shift)
    Sizes.seen.clear()
    recipe = Recipe(epochs=1, batch_size=2, sampler="poisson", augment=("shift",))
    trained = train(corpus, Sizes(), recipe)
    assert min(Sizes.seen) == (0, 2)
    assert max(Sizes.seen) > (2, 2)
    steps = recipe.planned_steps(int((~corpus.validation).sum()))
    assert len(Sizes.seen) == steps
    assert all(set(epoch) == {"task", "accuracy"} for epoch in trained["history"])


def test_an_epoch_of_empty_batches_has_no_terms_and_changes_nothing(corpus: Corpus) -> None:
    @dataclass(frozen=True)
    class Idle(NoDefense):
        name: ClassVar[str] = "idle"

        def step(self, network: Any, batch: Batch, optimizer: Any) -> dict[str, Scalar]:
            empty = replace(batch, x=batch.x[:0], y=batch.y[:0])
            return super().step(network, empty if batch.epoch else batch, optimizer)

    trained = train(corpus, Idle(), replace(RECIPE, select="last"))
    assert [set(epoch) for epoch in trained["history"]] == [{"task"}, set()]
    one = train(corpus, NoDefense(), replace(RECIPE, select="last", epochs=1))
    assert all(torch.equal(v, one["state"][k]) for k, v in trained["state"].items())


# Outliers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wild(Blobs):
    """Blobs with outliers of given classes, all of one grey."""

    name: ClassVar[str] = "wild"

    first: int = 100

    def outliers(self, root: Path) -> ImageSet:
        pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, *self.shape)
        return ImageSet(40 * pixels.contiguous(), torch.arange(self.first, self.first + 6))


@dataclass(frozen=True)
class Exposed(NoDefense):
    """Is made unsure of outliers, and notes their grey."""

    name: ClassVar[str] = "exposed"
    wants_outliers: ClassVar[bool] = True

    seen: ClassVar[list[Tensor]] = []

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        assert batch.outliers is not None
        assert batch.outliers.shape == batch.x.shape
        self.seen.append(batch.outliers.mean((1, 2, 3)))
        log = network(batch.outliers).log_softmax(1)
        terms: dict[str, Scalar] = super().loss_terms(network, batch)
        return terms | {"sure": 0.01 * (log.exp() * log).sum(1).mean()}


def stage(task: Blobs, defense: Defense, **recipe: Any) -> ClassifierStage:
    images = ImagesStage(task, task.digest(Path()))
    return ClassifierStage(images, "private", MLP(), defense, replace(RECIPE, **recipe), 0)


def test_outliers_come_with_each_batch_from_a_stream_of_their_own(tmp_path: Path) -> None:
    Exposed.seen.clear()
    last = stage(Wild(num_classes=4), Exposed(), augment=("flip",))
    assert [s.kind for s in graph([last])] == ["images", "outliers", "classifier"]
    assert not run(last, tmp_path).failures
    stream = generator(0, "outliers", "private")
    for grey in Exposed.seen:
        want = torch.randint(6, (16,), generator=stream)
        torch.rand(16, generator=stream)  # of the flip
        torch.testing.assert_close(grey, 40 / 255 * want)
    assert len(Exposed.seen) > 2


def test_what_draws_outliers_moves_nothing_else(corpus: Corpus, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Blind(NoDefense):
        name: ClassVar[str] = "blind"
        wants_outliers: ClassVar[bool] = True

    recipe = replace(RECIPE, augment=("flip",))
    pair = (Wild(num_classes=4).outliers(Path()), generator("outliers"))
    blind = train(corpus, Blind(), recipe, outliers=pair)
    plain = train(corpus, NoDefense(), recipe)
    assert all(torch.equal(v, plain["state"][k]) for k, v in blind["state"].items())


def test_training_with_outliers_resumes_to_the_same_bits(corpus: Corpus, tmp_path: Path) -> None:
    def exposed(work: Work) -> Payload:
        pair = (Wild(num_classes=4).outliers(Path()), generator("outliers"))
        return train(corpus, Exposed(), replace(RECIPE, epochs=3), work, outliers=pair)

    whole = exposed(Work())
    with pytest.raises(StoppedError):
        exposed(CheckedWork(tmp_path, 1))
    resumed = exposed(Work(tmp_path))
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(v, whole["state"][k]) for k, v in resumed["state"].items())


def test_only_defenses_that_want_outliers_have_a_stage_of_them() -> None:
    plain = stage(TASK, NoDefense())
    assert plain.needs == (plain.images,)
    assert [name for name, cls in DEFENSES.items() if cls.wants_outliers] == [
        "bido-plus",
        "bido-plus-er",
    ]


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Digits(), "digits has no images that are neither private nor public: a defense that "
                   "trains with outliers needs a task that has some"),
        (Wild(num_classes=4, first=3), "are among its outliers, and private or public as well"),
    ],
)  # fmt: skip
def test_a_task_without_outliers_is_refused(task: Task, sentence: str, tmp_path: Path) -> None:
    outcome = run(OutlierStage(ImagesStage(task, task.digest(Path()))), tmp_path)
    (told,) = outcome.failures.values()
    assert sentence in told


# What a defense says of itself --------------------------------------------------------------


@dataclass(frozen=True)
class Private(NoDefense):
    """Says how much of the privacy budget a recipe takes."""

    name: ClassVar[str] = "private"

    def facts(self, recipe: Recipe, images: int) -> dict[str, float]:
        return {"epsilon": recipe.epochs * recipe.batch_size / images, "delta": 1 / images}

    def refuse(self, cell: Any) -> str:
        return "private keeps the last epoch" if cell.recipe.select == "test" else ""


def cell(defense: Defense) -> Cell:
    setting = Setting(Digits(size=8), MLP(), (Evaluator(MLP(), RECIPE),))
    attack = PriorSamples(WGANGP(z_dim=4, generator_width=4, discriminator_width=4, epochs=1))
    protocol = Protocol(real=4)
    return Cell(setting, RECIPE, defense, attack, Trials(classes=5, samples=2), protocol)


def test_facts_are_stored_with_the_target_and_quoted_in_its_records(tmp_path: Path) -> None:
    last = record_stage(cell(Private()), ("accuracy",), Digits(size=8).digest(Path()))
    assert not run(last, tmp_path).failures
    store = Store(tmp_path)
    target = last.evidence[0].inversion.target
    private = target.images.splits(store.load).private
    images = len(private.train) - int(private.validation.sum())
    facts = {"epsilon": 2 * 16 / images, "delta": 1 / images}
    assert store.load(target)["facts"] == facts
    assert store.load(last)["facts"] == facts
    assert "facts" not in store.load(last.evidence[0].evaluator)


def test_facts_count_all_images_where_none_are_held_out(tmp_path: Path) -> None:
    last = stage(TASK, Private(), select="last")
    run(last, tmp_path)
    train = TASK.load(Path()).private.train
    assert Store(tmp_path).load(last)["facts"]["delta"] == 1 / len(train)


def test_a_cell_is_refused_in_the_words_of_its_defense() -> None:
    cell(Private()).check()
    with pytest.raises(ValueError, match=r"^private keeps the last epoch$"):
        replace(cell(Private()), recipe=replace(RECIPE, select="test")).check()


def test_a_twin_changes_the_network_alike_and_defends_nothing() -> None:
    assert MID(lambda_=0.3, ratio=0.25).twin() == MID(lambda_=0, ratio=0.25)
    assert BiDO("nhsic", 1, 2).twin() == NoDefense()


# A process that is ended ----------------------------------------------------------------------

TRAPDOOR = """
import os
import signal
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from mibench import Defense, Table
from mibench.benchmarks.tables import TABLES
from mibench.roles import Helper, NoDefense


class Discriminator(Helper):
    def __init__(self, network, recipe, classes, shape, rng):
        super().__init__(rng)
        self.register_buffer("triggers", torch.rand(classes, *shape, generator=rng))
        self.judge = nn.Linear(self.triggers[0].numel(), 1)
        for weight in self.judge.parameters():
            weight.data.uniform_(-0.1, 0.1, generator=rng)
        self.optimizers["judge"] = recipe.optimize(self.judge)

    def epoch_begins(self, epoch):
        self.triggers.add_(0.01 * torch.randn(self.triggers.shape, generator=self.rng))
        if epoch == 3 and "END" in os.environ:
            os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class Trapdoor(NoDefense):
    name: ClassVar[str] = "trapdoor"

    def assist(self, network, recipe, corpus, rng):
        shape = corpus.train.pixels.shape[1:]
        return Discriminator(network, recipe, corpus.num_classes, shape, rng)

    def step(self, network, batch, optimizer):
        helper, n = batch.helper, len(batch.y)
        traps = torch.randint(len(helper.triggers), (n,), generator=batch.rng)
        trapped = 0.98 * batch.x + 0.02 * helper.triggers[traps]
        both = helper.judge(torch.cat([batch.x, trapped]).flatten(1))[:, 0]
        loss = F.binary_cross_entropy_with_logits(both, torch.arange(2 * n).lt(n).float())
        helper.optimizers["judge"].zero_grad()
        loss.backward()
        helper.optimizers["judge"].step()
        x, y = torch.cat([batch.x, trapped]), torch.cat([batch.y, traps])
        terms = super().step(network, replace(batch, x=x, y=y), optimizer)
        return terms | {"judge": loss.detach()}


PLAIN = TABLES["smoke"].rows["GMI / No Def."]
TABLE = Table("trapdoor", "A trapdoor.", {"GMI / Trap": replace(PLAIN, defense=Trapdoor())})
"""
MAIN = """
import functools, sys
from mibench.cli import main
from mibench.store import store
store.Work = functools.partial(store.Work, every=0.0)  # every epoch is saved
main()
"""


@pytest.mark.slow
def test_a_process_that_is_ended_resumes_target_and_helper_to_the_same_bits(
    tmp_path: Path,
) -> None:
    file = tmp_path / "trapdoor.py"
    file.write_text(TRAPDOOR)

    def process(store: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["run", str(file), "--until", "classifier", "--executor", "serial"]
        places = ["--store", str(tmp_path / store), "--out", str(tmp_path / "out")]
        return subprocess.run(
            [sys.executable, "-c", MAIN, *command, *places, "--device", "cpu", "--quiet"],
            capture_output=True, text=True, check=False, env=os.environ | environment,
        )  # fmt: skip

    def targets(store: str) -> dict[str, dict[str, bytes]]:
        names = ("payload.safetensors", "payload.json")
        found = (tmp_path / store / "classifier").glob("*/meta.json")
        return {p.parent.name: {n: (p.parent / n).read_bytes() for n in names} for p in found}

    whole = process("whole")
    assert whole.returncode == 0, whole.stderr
    ended = process("ended", END="1")
    assert ended.returncode == -signal.SIGTERM
    kept = list((tmp_path / "ended" / "classifier").glob("*.partial/state.bin"))
    assert len(kept) == 1
    resumed = process("ended")
    assert resumed.returncode == 0, resumed.stderr
    assert targets("ended") == targets("whole")
    metas = (tmp_path / "ended" / "classifier").glob("*/meta.json")
    assert any(re.search(r'"resumed": true', meta.read_text()) for meta in metas)
