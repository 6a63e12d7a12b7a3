"""Private images of one task and public images of another."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mibench.attacks import PriorSamples
from mibench.attacks.priors.gan import WGANGP
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import MNIST, Blobs, Digits, Folder, Pair
from mibench.override import override
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import graph, record_stage

PAIR = Pair(Digits(size=8, validation=0.2), Blobs(num_classes=3))
ROOT = Path()


def test_what_is_attacked_comes_from_one_task_and_what_is_public_from_the_other() -> None:
    made, mine, other = PAIR.load(ROOT), PAIR.private.load(ROOT), PAIR.public.load(ROOT).public
    for part in ("private", "evaluation"):
        corpus, want = getattr(made, part), getattr(mine, part)
        assert torch.equal(corpus.train.pixels, want.train.pixels)
        assert torch.equal(corpus.test.labels, want.test.labels)
    assert torch.equal(made.public.pixels, other.pixels)
    assert sorted(set(made.public.labels.tolist())) == [10, 11, 12]  # after the ten digits
    assert torch.equal(made.public.labels - 10, other.labels - 3)
    assert PAIR.sizes(ROOT) == made.sizes
    assert (PAIR.num_classes, PAIR.shape, PAIR.validation) == (5, (1, 8, 8), 0.2)
    assert PAIR.classes(ROOT) == PAIR.private.classes(ROOT)


def test_its_digest_is_that_of_both() -> None:
    digests = {
        pair.digest(ROOT)
        for pair in (PAIR, Pair(Blobs(num_classes=3), PAIR.private), Pair(Blobs(), Blobs()))
    }
    assert len(digests) == 3


def test_images_of_two_shapes_are_refused() -> None:
    sentence = (
        "Pair.private and Pair.public must have images of one shape (channels x height x width), "
        "got 1x16x16 of digits and 1x8x8 of blobs: set the size of one of them"
    )
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Pair(Digits(), Blobs())
    with pytest.raises(ValueError, match="must have images of one shape"):
        override(PAIR, "private.size", "16")
    assert Pair().shape == (1, 32, 32)


def test_people_are_in_it_if_they_are_in_what_is_attacked() -> None:
    faces = Folder()
    other = Folder(folder="other", faces=False)
    assert (Pair(faces, other).faces, Pair(other, faces).faces) == (True, False)


def test_what_is_missing_of_either_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(MNIST, "download", lambda self, root: fetched.append(self.name))
    Pair(Digits(size=32), MNIST()).download(tmp_path)
    Pair(MNIST(), Digits(size=32)).download(tmp_path)
    assert fetched == ["mnist", "mnist"]


def test_a_prior_of_another_data_set_is_trained_and_drawn_from(tmp_path: Path) -> None:
    settings: Any = ["recipe.epochs=1", "trials.samples=2", "setting.evaluators.0.recipe.epochs=1"]
    cell = TABLES["smoke"].modified(settings).rows["GMI / No Def."]
    prior = WGANGP(**{**WGANGP.small, "epochs": 1})
    cell = replace(
        cell,
        setting=replace(cell.setting, task=PAIR, evaluators=cell.setting.evaluators[:1]),
        attack=PriorSamples(prior),
        control=None,
    )
    last = record_stage(cell, ("accuracy",), PAIR.digest(ROOT))
    stages = graph([last])
    outcome = execute(stages, Bench(tmp_path, ROOT), Watcher(), Serial())
    assert not outcome.failures, outcome.failures


def test_it_is_checked_as_other_tasks_are() -> None:
    done = CliRunner().invoke(
        main,
        ["data", "check", "pair", "--set", "private.size=8"],
    )
    assert done.exit_code == 2
    assert "Pair.private and Pair.public must have images of one shape" in done.stderr


def test_a_public_image_that_is_private_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\d+ public images of digits are private images of"):
        Pair(Digits(num_classes=7), Digits(num_classes=5)).load(Path())
