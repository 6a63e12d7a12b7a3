"""``mibench score``: images that were made elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.commands.score import read
from mibench.evaluation import METRICS

ROW = "GMI / No Def."


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, arguments)])


@pytest.fixture
def images() -> torch.Tensor:
    """Two images of each of three classes, (6, 1, 8, 8) bytes."""
    return torch.arange(6 * 64).mul(2).remainder(256).to(torch.uint8).view(6, 1, 8, 8)


LABELS = [0, 0, 1, 1, 2, 2]


def written(images: torch.Tensor, form: str, place: Path) -> Path:
    path = place / f"images{form}"
    labels = torch.tensor(LABELS)
    if form == "":
        for i, (image, label) in enumerate(zip(images, LABELS, strict=True)):
            (path / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path / str(label) / f"{i}.png")
    elif form == ".npz":
        np.savez_compressed(path, images=images.numpy(), labels=labels.numpy())
    elif form == ".pt":
        torch.save({"images": images, "labels": labels}, path)
    else:
        save_file({"images": images, "labels": labels}, path)
    return path


@pytest.mark.parametrize("form", ["", ".npz", ".pt", ".safetensors"])
def test_images_are_read_as_they_were_written(
    form: str, images: torch.Tensor, tmp_path: Path
) -> None:
    pixels, labels = read(written(images, form, tmp_path), 8, 1)
    assert torch.equal(torch.as_tensor(pixels), images)
    assert torch.as_tensor(labels).tolist() == LABELS


class Runs:
    """Is no data: unpickling it would create a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


BAD = {
    "absent": "there is no file",
    "damaged.npz": "is damaged",
    "pickled.npz": "holds more than arrays",
    "no-labels.npz": "has no entry called labels",
    "code.pt": "nothing in it is executed",
    "empty": "has no image in a folder for a class",
    "named": "is not called by the number of a class",
    "00": "00 is not called by the number of a class",
    "gap": "3 has no image: remove it",
    "half.npz": "labels must be whole numbers, the attacked class of each image, got 0.5",
    "huge.npz": "labels must be whole numbers, the attacked class of each image, got 9.2",
    "renamed.npz": "has no entry called images or labels",
    "words.npz": "images and labels must be arrays of numbers",
    "larger.npz": "images must be of shape (n, 1, 8, 8)",
    "uneven.npz": "each equally often",
    "fifty.npz": "floats in [0, 1], or bytes",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_judged_is_refused_in_one_sentence(
    name: str, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, pixels = Path(name), images.numpy()
    if name == "damaged.npz":
        path.write_bytes(b"PK\x03\x04 cut short")
    elif name == "pickled.npz":
        np.savez(path, images=np.array([Runs()], dtype=object), labels=np.array([0]))
    elif name == "no-labels.npz":
        np.savez(path, images=pixels)
    elif name == "code.pt":
        torch.save({"images": images, "labels": Runs()}, path)
    elif name in ("empty", "named"):
        (path / {"empty": "0", "named": "cat"}[name]).mkdir(parents=True)
    elif name in ("00", "gap"):
        written(images, "", tmp_path).rename(path)
        (path / {"00": "00", "gap": "3"}[name]).mkdir()
    elif name == "half.npz":
        np.savez(path, images=pixels, labels=np.array(LABELS) + 0.5)
    elif name == "huge.npz":
        np.savez(path, images=pixels, labels=np.array(LABELS, np.uint64) + np.uint64(2**63))
    elif name == "renamed.npz":
        np.save("plain.npy", pixels)
        Path("plain.npy").rename(path)
    elif name == "words.npz":
        np.savez(path, images=pixels, labels=list("aabbcc"))
    elif name == "larger.npz":
        np.savez(path, images=np.zeros((6, 1, 9, 9), np.uint8), labels=LABELS)
    elif name == "uneven.npz":
        np.savez(path, images=pixels, labels=[0, 0, 0, 1, 2, 2])
    elif name == "fifty.npz":
        np.savez(path, images=pixels.astype(np.float32), labels=LABELS)
    done = call(path, "--table", "smoke", "--row", ROW)
    assert done.exit_code == 2, done.output
    assert BAD[name] in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("was_run").exists()
    assert not Path("mibench-store").exists()


def test_an_unknown_row_is_refused(images: torch.Tensor, tmp_path: Path) -> None:
    path = written(images, ".npz", tmp_path)
    done = call(path, "--table", "smoke", "--row", "GMI / Nobody")
    assert done.exit_code == 2
    assert "Nobody" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_images_are_judged_by_the_tables_evaluators(images: torch.Tensor, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    arguments = ("--table", "smoke", "--row", ROW, *store)
    first = call(written(images, ".npz", tmp_path), *arguments)
    assert first.exit_code == 0, first.output
    head, *lines = first.stdout.splitlines()
    assert head.startswith("6 images in ")
    assert head.endswith(f"judged as {ROW} of smoke, seed 0")
    titles = [METRICS[name].title for name in TABLES["smoke"].columns]
    assert [line.split(":")[0].strip() for line in lines[:-1]] == titles
    again = call(written(images, "", tmp_path), *arguments)
    assert again.stdout.splitlines()[1:] == lines
    assert {p.name for p in (tmp_path / "store").iterdir()} == {"images", "classifier"}
