"""What steps of all defenses leave alone, where zero strength is the twin, and what is tested."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.data import Corpus
from mibench.data.synthetic import Blobs
from mibench.defenses import (
    DEFENSES,
    BiDO,
    BiDOPlus,
    BiDOPlusEnergy,
    LabelSmoothing,
    NoDefense,
    Recipe,
    Release,
    TransferLearning,
)
from mibench.networks import MCNN, MLP
from mibench.precision import BF16, at, laid_out
from mibench.roles import Batch, Defense, NetworkSpec
from mibench.running.checks import tiny
from mibench.running.checks.base import TASK
from mibench.running.checks.training import hardened
from mibench.seeding import generator, seeded
from mibench.store import Payload, Work
from mibench.training.train import train_classifier
from mibench.types import ImageSet
from perf import paths

TRAINED = [name for name, cls in DEFENSES.items() if not issubclass(cls, Release)]
TESTS = Path(__file__).parent


class Coloured(Blobs):
    """Images whose layouts in memory differ, unlike those of one channel."""

    channels = 3


def after_two_steps(
    defense: Defense, *, dirty: bool = False, on: NetworkSpec | None = None
) -> dict[str, Tensor]:
    """Returns the weights of network and helper; ``dirty`` leaves gradients of others around."""
    task = TASK if on is None else Coloured(num_classes=4)
    corpus = task.load(Path()).private
    data = corpus.train.take(torch.arange(16))
    outliers = task.outliers(Path()).images[:16] if defense.wants_outliers else None
    recipe = Recipe(epochs=100, lr=0.01)
    with seeded("test"):
        network = hardened(defense) if on is None else defense.harden(on.build(task.shape, 4))
        network.train()
        laid_out(network)
        helper = defense.assist(network, recipe, corpus, generator("test"))
        optimizer = recipe.optimize(network)
        modules = [network] if helper is None else [network, helper]
        for epoch in (0, 99):
            if helper is not None:
                helper.epoch_begins(epoch)
            for weight in (w for m in modules for w in m.parameters()):
                if dirty and weight.requires_grad:
                    weight.grad = torch.full_like(weight, 100.0)
            rng = generator("test", epoch)
            batch = Batch(data.images, data.labels, epoch, 100, 16, rng, helper, outliers)
            defense.step(network, batch, optimizer)
    return {f"{i} {k}": v for i, m in enumerate(modules) for k, v in m.state_dict().items()}


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_that_others_leave_move_nothing_in_a_step(name: str) -> None:
    clean, dirty = (after_two_steps(tiny(DEFENSES[name]), dirty=d) for d in (False, True))
    assert clean.keys() == dirty.keys()
    assert [k for k, v in clean.items() if not torch.equal(v, dirty[k])] == []


@pytest.mark.parametrize("name", TRAINED)
def test_every_defense_takes_steps_in_bf16_on_a_convolutional_network(name: str) -> None:
    defense: Defense = tiny(DEFENSES[name])
    if isinstance(defense, TransferLearning):
        defense = replace(defense, last_frozen="blocks.0")
    on = defense.checked_on or MCNN((8, 16), (3, 3), (1, 1))
    exact = after_two_steps(defense, on=on)
    with at(BF16):
        rounded = after_two_steps(defense, on=on)
    for key, weights in exact.items():
        assert rounded[key].dtype == weights.dtype, key
        assert rounded[key].isfinite().all(), key
    assert any(not torch.equal(rounded[key], weights) for key, weights in exact.items())


# Zero strength ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Blobs(num_classes=4).load(Path()).private


def train(corpus: Corpus, defense: Defense) -> dict[str, Tensor]:
    with seeded("test"):
        network = MLP().build(TASK.shape, 4)
        pixels = torch.randint(256, (40, *TASK.shape)).byte()
        outliers = (ImageSet(pixels, torch.arange(100, 140)), generator("outliers"))
        payload: Payload = train_classifier(
            network, defense, Recipe(epochs=2, batch_size=16), corpus, generator("batches"),
            Work(), generator("own"), outliers if defense.wants_outliers else None,
        )  # fmt: skip
    state: dict[str, Tensor] = payload["state"]
    return state


@pytest.mark.parametrize(
    ("defense", "twin"),
    [
        (LabelSmoothing(alpha=0), NoDefense()),
        (BiDOPlus("nhsic", 0.1, 0.2, gamma=0), BiDO("nhsic", 0.1, 0.2)),
        (BiDOPlusEnergy("nhsic", 0.1, 0.2, gamma=0), BiDO("nhsic", 0.1, 0.2)),
    ],
    ids=lambda d: d.name,
)
def test_at_zero_strength_it_trains_to_the_bits_of_what_it_builds_on(
    defense: Defense, twin: Defense, corpus: Corpus
) -> None:
    """Those of other defenses are tested beside their golden numbers."""
    ours, theirs = train(corpus, defense), train(corpus, twin)
    assert [k for k, v in ours.items() if not torch.equal(v, theirs[k])] == []


# What is tested and measured ----------------------------------------------------------------


def test_each_file_of_golden_numbers_is_read_by_a_test() -> None:
    text = "\n".join(path.read_text() for path in TESTS.glob("test_*.py"))
    read = set(re.findall(r'read\("defenses/([^"]+)"\)', text))
    assert read == {path.stem for path in (TESTS / "golden" / "defenses").glob("*.json")}


def test_the_cost_of_each_defense_in_training_is_measured_against_a_plain_step() -> None:
    every: dict[str, Any] = {
        p.name: p for p in paths.defenses(torch.device("cpu"), batch=4, steps=1)
    }
    assert {f"defenses: {name}" for name in TRAINED} <= every.keys()
    for name, path in every.items():
        plain = name.startswith("defenses: none")
        assert (path.against == "") == plain
        assert plain or every[path.against].against == ""
        with torch.random.fork_rng():  # some draw their noise from torch's own
            path.run()
