"""Algorithm 1: what it trains on, what it keeps, and that it survives a kill."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mibench.data import Blobs, Corpus
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.networks import MCNN, MLP
from mibench.roles import Batch, Defense
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.seeding import generator, seeded
from mibench.store import Payload, Work
from mibench.store.errors import keeping
from mibench.training import train as training
from mibench.training.augment import AUGMENTATIONS, crop, cutout, flip
from mibench.training.train import train_classifier
from mibench.types import Classifier, ImageSet, Scalar


class Spy(Defense):
    """No defense; notes the images of every batch, and what ``look`` sees then."""

    name = "spy"

    def __init__(self, look: Callable[[], float] = float) -> None:
        self.seen: list[bytes] = []
        self.looks: list[float] = []
        self.look = look

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        self.seen += images(batch.x.mul(255).round().to(torch.uint8))
        self.looks.append(self.look())
        return NoDefense().loss_terms(network, batch)


def images(pixels: Tensor) -> list[bytes]:
    return [p.numpy().tobytes() for p in pixels]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Blobs().load(Path()).private  # 200 train images, 20 of them held out


def fresh(defense: Defense) -> Classifier:
    with seeded("init"):
        network = MCNN(widths=(4, 8), kernels=(3, 3), paddings=(1, 1)).build((1, 8, 8), 5)
        return defense.harden(network)


def train(
    corpus: Corpus,
    recipe: Recipe,
    defense: Defense | None = None,
    work: Work | None = None,
) -> Payload:
    defense = defense or NoDefense()
    network = fresh(defense)
    with seeded("noise"):
        return train_classifier(
            network, defense, recipe, corpus, generator("batches"), work or Work()
        )


# What is learnt, and from what --------------------------------------------------------------


@pytest.mark.parametrize(
    "defense", [NoDefense(), MID(0.01), BiDO("nhsic", 0.05, 0.5)], ids=lambda d: d.name
)
def test_the_loss_decreases(corpus: Corpus, defense: Defense) -> None:
    history = train(corpus, Recipe(epochs=4, lr=5e-3), defense)["history"]
    first, last = (sum(v for k, v in e.items() if k != "accuracy") for e in history[::3])
    assert last < first


def test_the_history_holds_the_mean_of_each_term(corpus: Corpus) -> None:
    recipe = Recipe(epochs=1, batch_size=50, lr=1e-12, optimizer="sgd", select="last")
    with seeded("init"):
        network = MLP(width=4).build((1, 8, 8), 5)
    everything = NoDefense().loss_terms(network, Batch(corpus.train.images, corpus.train.labels))
    history = train_classifier(network, NoDefense(), recipe, corpus, generator("b"), Work())
    assert history["history"] == [{"task": pytest.approx(everything["task"].item())}]


def test_validation_selection_trains_on_what_is_not_held_out(corpus: Corpus) -> None:
    spy = Spy()
    train(corpus, Recipe(epochs=1, batch_size=20, select="validation"), spy)
    kept = images(corpus.train.pixels[~corpus.validation])
    assert len(kept) == 180
    assert sorted(spy.seen) == sorted(kept)


@pytest.mark.parametrize("select", ["last", "test"])
def test_other_selections_train_on_every_image(corpus: Corpus, select: str) -> None:
    spy = Spy()
    recipe = Recipe(epochs=1, batch_size=20, select="last" if select == "last" else "test")
    train(corpus, recipe, spy)
    assert sorted(spy.seen) == sorted(images(corpus.train.pixels))


def test_the_last_smaller_batch_of_an_epoch_is_dropped(corpus: Corpus) -> None:
    spy = Spy()
    train(corpus, Recipe(epochs=1, batch_size=64, select="last"), spy)
    assert len(spy.seen) == 192


@pytest.mark.parametrize(("select", "count"), [("validation", 20), ("test", 200)])
def test_an_epoch_is_selected_by_the_images_that_the_recipe_names(
    corpus: Corpus, select: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[ImageSet] = []

    def accuracy(network: Classifier, data: ImageSet, epoch: int) -> float:
        judged.append(data)
        return 0.0

    monkeypatch.setattr(training, "_accuracy", accuracy)
    train(corpus, Recipe(epochs=1, select="test" if select == "test" else "validation"))
    expected = corpus.test if select == "test" else corpus.train.take(corpus.validation)
    assert len(judged[0]) == count
    assert torch.equal(judged[0].pixels, expected.pixels)


def test_the_best_epoch_is_kept_and_of_equals_the_latest(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [10.0, 30.0, 30.0, 20.0]
    monkeypatch.setattr(training, "_accuracy", lambda network, data, epoch: scores[epoch])
    kept = train(corpus, Recipe(epochs=4))
    stopped_then = train(corpus, Recipe(epochs=3))
    assert kept["epoch"] == 3
    assert [e["accuracy"] for e in kept["history"]] == scores
    torch.testing.assert_close(kept["state"], stopped_then["state"], rtol=0, atol=0)


def test_last_keeps_the_last_epoch_without_an_accuracy(corpus: Corpus) -> None:
    trained = train(corpus, Recipe(epochs=3, select="last"))
    assert trained["epoch"] == 3
    assert list(trained["history"][-1]) == ["task"]


def test_classes_that_no_selection_sees_are_remarked(corpus: Corpus) -> None:
    remarks: list[str] = []
    mask = corpus.validation & (corpus.train.labels < 2)
    few = Corpus(corpus.train, mask, corpus.test, corpus.num_classes)
    with keeping(remarks):
        for select in ("last", "test"):
            train(few, Recipe(epochs=1, select=select))
        train(corpus, Recipe(epochs=1))
        assert not remarks
        train(few, Recipe(epochs=1))
    (told,) = remarks
    held_out = int(mask.sum())
    assert f"by: {held_out}; classes of which none is: 3 of 5." in told


def test_validation_selection_without_held_out_images_is_refused(corpus: Corpus) -> None:
    bare = Corpus(corpus.train, torch.zeros(200, dtype=torch.bool), corpus.test, 5)
    with pytest.raises(ValueError, match=r"set recipe\.select=last"):
        train(bare, Recipe(epochs=1))


# The optimiser ------------------------------------------------------------------------------


def test_the_learning_rate_falls_after_each_milestone(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    optimize = Recipe.optimize

    def remember(recipe: Recipe, network: torch.nn.Module) -> torch.optim.Optimizer:
        made.append(optimize(recipe, network))
        return made[-1]

    monkeypatch.setattr(Recipe, "optimize", remember)
    spy = Spy(lambda: float(made[0].param_groups[0]["lr"]))
    recipe = Recipe(epochs=4, batch_size=100, milestones=(1, 3), gamma=0.1, lr=1, select="last")
    train(corpus, recipe, spy)
    assert spy.looks == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_an_sgd_recipe_makes_nesterov_sgd_with_its_values() -> None:
    recipe = Recipe(1, optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    optimizer = recipe.optimize(fresh(NoDefense()))
    group = optimizer.param_groups[0]
    values = [group[k] for k in ("lr", "momentum", "nesterov", "weight_decay", "dampening")]
    assert isinstance(optimizer, torch.optim.SGD)
    assert values == [0.1, 0.9, True, 1e-4, 0]


def test_an_adam_recipe_makes_adam_with_its_values() -> None:
    optimizer = Recipe(1, lr=0.1, weight_decay=1e-4).optimize(fresh(NoDefense()))
    assert isinstance(optimizer, torch.optim.Adam)
    assert [optimizer.param_groups[0][k] for k in ("lr", "weight_decay")] == [0.1, 1e-4]


def test_frozen_weights_are_left_to_themselves() -> None:
    network = fresh(NoDefense())
    network.last.requires_grad_(requires_grad=False)
    moved = [p for g in Recipe(1).optimize(network).param_groups for p in g["params"]]
    frozen = {id(p) for p in network.last.parameters()}
    assert frozen.isdisjoint(map(id, moved))


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a momentum above 0"):
        Recipe(1, optimizer="sgd", nesterov=True)


def test_a_diverging_run_stops(corpus: Corpus) -> None:
    recipe = Recipe(epochs=3, optimizer="sgd", lr=1e30, select="last")
    with pytest.raises(FloatingPointError, match="the loss in epoch 1"):
        train(corpus, recipe)


def test_weights_that_the_very_last_step_ruined_are_not_returned(corpus: Corpus) -> None:
    """One step in all: its loss is finite, the weights it leaves are not."""
    recipe = Recipe(epochs=1, batch_size=200, optimizer="sgd", lr=1e38, momentum=0.0,
                    weight_decay=1e10, select="last")  # fmt: skip
    with pytest.raises(FloatingPointError):
        train(corpus, recipe)


# A kill -------------------------------------------------------------------------------------


@pytest.mark.parametrize("saves", [1, 2, 4])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_and_resumed_equals_uninterrupted(
    corpus: Corpus, saves: int, optimizer: str, tmp_path: Path
) -> None:
    """With noise from the global generator (MID) and with augmentation."""
    recipe = Recipe(
        epochs=4, optimizer="adam" if optimizer == "adam" else "sgd",
        momentum=0.0 if optimizer == "adam" else 0.9, lr=0.01,
        milestones=(2,), augment=("flip", "crop", "cutout"),
    )  # fmt: skip
    defense = MID(lambda_=0.01)
    whole = train(corpus, recipe, defense)
    with pytest.raises(StoppedError):
        train(corpus, recipe, defense, CheckedWork(tmp_path, saves))
    resumed = train(corpus, recipe, defense, Work(tmp_path, every=0.0))
    torch.testing.assert_close(resumed["state"], whole["state"], rtol=0, atol=0)
    assert resumed["history"] == whole["history"]
    assert resumed["epoch"] == whole["epoch"]


def test_a_resumed_run_does_not_train_finished_epochs_again(
    corpus: Corpus, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=3, batch_size=100, select="last")
    with pytest.raises(StoppedError):
        train(corpus, recipe, None, CheckedWork(tmp_path, 2))
    spy = Spy()
    train(corpus, recipe, spy, Work(tmp_path))
    assert len(spy.seen) == 200


# Augmentation -------------------------------------------------------------------------------


def test_flip_mirrors_some_images_whole_and_leaves_the_others(rng: torch.Generator) -> None:
    x = torch.rand(40, 2, 3, 5, generator=rng)
    flipped = flip(x, rng)
    same = [torch.equal(a, b) for a, b in zip(flipped, x, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, x, strict=True)]
    assert [a != b for a, b in zip(same, mirrored, strict=True)] == [True] * 40
    assert 10 < sum(mirrored) < 30


@pytest.mark.parametrize(("size", "pad"), [(8, 1), (32, 4)])
def test_crop_shifts_each_image_by_its_own_amount(
    size: int, pad: int, rng: torch.Generator
) -> None:
    x = torch.rand(60, 2, size, size, generator=rng)
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    cropped = crop(x, rng)
    shifts = []
    for image, wide in zip(cropped, padded, strict=True):
        windows = wide.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4)
        found = (windows == image).all(-1).all(-1).all(-1).nonzero().tolist()
        assert len(found) == 1
        shifts.append(tuple(found[0]))
    assert {s[0] for s in shifts} == set(range(2 * pad + 1))
    assert {s[1] for s in shifts} == set(range(2 * pad + 1))
    assert any(down != right for down, right in shifts)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (5, 7)])
def test_cutout_blackens_half_a_side_around_a_middle_anywhere(
    height: int, width: int, rng: torch.Generator
) -> None:
    """The counts of each interval are those of a uniform middle; the axes are independent."""
    n = 6000
    holes = cutout(torch.ones(n, 2, height, width), rng) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    rows, columns = holes[:, 0].any(2), holes[:, 0].any(1)
    assert torch.equal(holes[:, 0], rows[:, :, None] & columns[:, None, :])
    middles = []
    for covered, side in ((rows, height), (columns, width)):
        length = (side + 1) // 2
        odd = length % 2
        wanted = torch.zeros(side + 1 - odd, side, dtype=torch.bool)
        for middle in range(len(wanted)):
            wanted[middle, max(0, middle - length // 2) : middle + length // 2 + odd] = True
        which = (covered[:, None] == wanted).all(2)
        assert which.sum(1).eq(1).all()
        mean = n / len(wanted)
        assert ((which.sum(0) - mean).abs() < 5 * mean**0.5).all()
        middles.append(which.int().argmax(1).double())
    correlation = torch.corrcoef(torch.stack(middles))[0, 1]
    assert abs(correlation) < 5 / n**0.5


def test_cutout_leaves_the_rest_and_its_input_as_they_were(rng: torch.Generator) -> None:
    x = 0.5 + torch.rand(20, 3, 8, 8, generator=rng) / 2
    before = x.clone()
    y = cutout(x, rng)
    assert torch.equal(x, before)
    assert torch.equal(y[y > 0], x[y > 0])
    assert len(set((y == 0).sum((1, 2, 3)).tolist())) > 3  # each image its own place


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_augmentation_keeps_shape_and_range(
    augment: Callable[[Tensor, torch.Generator], Tensor], rng: torch.Generator
) -> None:
    x = torch.rand(9, 3, 16, 16, generator=rng)
    y = augment(x, rng)
    assert y.shape == x.shape
    assert y.min() >= 0
    assert y.max() <= 1


def test_momentum_belongs_to_sgd() -> None:
    with pytest.raises(ValueError, match="adam has its own"):
        Recipe(epochs=1, momentum=0.9)
