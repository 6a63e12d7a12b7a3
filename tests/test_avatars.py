"""Drawn portraits: the same bytes everywhere, disjoint casts, traits that show."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mibench.cli import main
from mibench.data import Avatars
from mibench.data import portraits as drawing
from mibench.data.avatars import SHIFTS
from mibench.data.portraits import TRAITS, hashed, people, portraits

NOWHERE = Path()
DRAWN = """
import hashlib
from mibench.data.portraits import people, portraits
drawn = hashlib.sha256()
for size, count in ((32, 120), (57, 10), (128, 4)):
    drawn.update(portraits(people(1, count), 2, size).tobytes())
print(drawn.hexdigest())
"""
FROZEN = "a8c8ac55c70686b6ebfe2836bc41f4dd0aa8e5cb3a16dcc3810297bdf7b61b7e"
SMALL = Avatars(num_classes=3, images=4, tests=2, evaluation=5, strangers=6, each=2)


def digest(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRAWN],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_drawn_bytes_are_those_of_every_machine() -> None:
    assert digest() == FROZEN


def test_the_drawn_bytes_do_not_depend_on_vector_instructions() -> None:
    features = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"
    names: list[str] = []
    for name in features.split():  # those that this NumPy was not built for are refused
        probe = subprocess.run(
            [sys.executable, "-W", "error", "-c", "import numpy"],
            capture_output=True, check=False,
            env=os.environ | {"NPY_DISABLE_CPU_FEATURES": name},
        )  # fmt: skip
        names += [name] * (probe.returncode == 0)
    if not names:
        pytest.skip("this processor, or this NumPy, has none of them")
    assert digest(NPY_DISABLE_CPU_FEATURES=" ".join(names)) == FROZEN


@pytest.mark.parametrize("pixels", [1, 32 * 32 * 3, 2**20])
def test_the_bytes_do_not_depend_on_how_many_are_drawn_at_once(
    pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = portraits(people(1, 20), 2)
    monkeypatch.setattr(drawing, "CHUNK", pixels)
    assert (portraits(people(1, 20), 2) == whole).all()


def test_a_larger_cast_begins_with_the_smaller() -> None:
    assert (people(5, 30)[:10] == people(5, 10)).all()
    assert (people(5, 10) != people(6, 10)).all()


def test_hashed_bits_are_those_of_splitmix64() -> None:
    # The first three outputs for the seed 1234567 as given with the reference generator.
    counters = np.arange(1, 4, dtype=np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashed(1234567, counters).tolist() == expected


def test_traits_are_uniform() -> None:
    traits = people(0, 20_000)
    assert traits.min() >= 0
    assert traits.max() < 1
    assert np.abs(traits.mean(0) - 0.5).max() < 0.01
    assert np.abs(traits.var(0) - 1 / 12).max() < 0.003
    assert np.abs(np.corrcoef(traits.T) - np.eye(len(TRAITS))).max() < 0.03


@pytest.mark.parametrize("name", TRAITS)
def test_every_trait_shows(name: str) -> None:
    low = np.full((8, len(TRAITS)), 0.7, np.float32)
    low[:, list(TRAITS).index("hairline")] = 0.4
    high = low.copy()
    low[:, list(TRAITS).index(name)] = 0.1
    high[:, list(TRAITS).index(name)] = 0.9
    difference = np.abs(portraits(low, 1).astype(float) - portraits(high, 1))
    assert difference.mean((1, 2, 3)).min() > 0.05


def test_scenes_vary_as_much_as_asked() -> None:
    traits = np.repeat(people(0, 1), 40, axis=0)
    spread = [portraits(traits, 1, vary=v).std(0).mean() for v in (0.0, 0.5, 1.0)]
    assert spread[0] < spread[1] < spread[2]


def test_the_parts_share_no_person_and_no_image() -> None:
    splits = SMALL.load(NOWHERE)
    parts = [splits.private.train, splits.private.test, splits.evaluation.train, splits.public]
    images = [hashlib.sha256(x.numpy().tobytes()).digest() for p in parts for x in p.pixels]
    assert len(set(images)) == len(images) == 12 + 6 + 15 + 12
    private = SMALL.truth(torch.arange(3))
    fresh = SMALL.fresh("regressor", 4)[1]
    public = torch.from_numpy(SMALL._cast("public", 6))
    persons = {tuple(traits.tolist()) for traits in torch.cat([private, fresh, public])}
    assert len(persons) == 3 + 4 + 6
    assert splits.sizes == SMALL.sizes(NOWHERE)
    assert splits.public.labels.min() == 3


def test_the_truth_is_what_was_drawn() -> None:
    labels = torch.tensor([2, 0, 2])
    drawn = SMALL.load(NOWHERE).private.train
    again = SMALL._draw("private", SMALL.truth(torch.arange(3)).numpy(), 4, 0)
    assert torch.equal(drawn.pixels, again.pixels)
    assert torch.equal(SMALL.truth(labels)[0], SMALL.truth(torch.tensor([2]))[0])


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_moves_the_public_persons_alone(shift: str) -> None:
    plain, moved = (
        SMALL.load(NOWHERE),
        type(SMALL)(**{**vars(SMALL), "shift": shift}).load(NOWHERE),
    )
    assert torch.equal(plain.private.train.pixels, moved.private.train.pixels)
    assert torch.equal(plain.evaluation.train.pixels, moved.evaluation.train.pixels)
    assert torch.equal(plain.public.pixels, moved.public.pixels) == (shift == "none")


def test_persons_without_beard_and_glasses_have_neither() -> None:
    traits = people(3, 50, SHIFTS["plain"][0])
    bare = traits.copy()
    for name in ("beard", "glasses"):
        bare[:, list(TRAITS).index(name)] = 0
    assert (portraits(traits, 1) == portraits(bare, 1)).all()


def test_grey_is_the_luma_of_the_colours() -> None:
    grey = Avatars(num_classes=2, images=4, strangers=2, grey=True).load(NOWHERE).private.train
    colour = Avatars(num_classes=2, images=4, strangers=2).load(NOWHERE).private.train
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    luma = (colour.pixels * weights).sum(1, keepdim=True)
    assert grey.pixels.shape == (8, 1, 32, 32)
    assert (grey.pixels - luma).abs().max() < 0.51


def test_the_digest_goes_with_the_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SMALL.digest(NOWHERE)
    monkeypatch.setattr(drawing, "GINGER", (0.1, 0.9, 0.1))
    assert SMALL.digest(NOWHERE) != before


def test_a_sheet_is_drawn_of_a_task_that_shows_nobody(tmp_path: Path) -> None:
    small = ["--set", "num_classes=3", "--set", "images=4", "--set", "strangers=2"]
    done = CliRunner().invoke(main, ["data", "show", "avatars", *small, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    path = tmp_path / "avatars-private.png"
    assert done.output == f"{path}\n"
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (3 * 33 + 1, 4 * 33 + 1, 3)
    drawn = Avatars(num_classes=3, images=4, strangers=2).load(NOWHERE).private.train.pixels
    assert (sheet[34:66, 1:33] == drawn[4].permute(1, 2, 0).numpy()).all()


def test_no_sheet_is_drawn_of_people(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["data", "show", "celeba", "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert "celeba shows people: no sheet is drawn" in done.output
    assert not list(tmp_path.iterdir())
