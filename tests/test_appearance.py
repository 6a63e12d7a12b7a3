"""Images are read as they look, and what is read otherwise than one would think is said."""

import itertools
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps

from mibench.cli import main
from mibench.data import CIFAR10, CelebA, Folder
from mibench.data.cifar10 import CLASSES
from mibench.data.images import decode, image_files
from mibench.reporting.page.render import visible
from mibench.running.stages import ImagesStage
from mibench.store import Store

TASK = Folder(folder="set", num_classes=3, size=8)
CHECK = ["data", "check", "folder", "--set", "folder=set", "--set", "num_classes=3"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


counter = itertools.count()


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(next(counter)).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: npt.NDArray[np.uint8] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(12, 10, 3) if pixels is None else pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("test", 2)):
        for who in ("ann", "bob", "eve"):
            for i in range(count):
                save(tmp_path / "set" / "private" / part / who / f"{i}.png")
    for i in range(5):
        save(tmp_path / "set" / "public" / f"{i}.png")
    return tmp_path


def train(root: Path, name: str) -> Path:
    return root / "set" / "private" / "train" / name


def test(root: Path, name: str) -> Path:
    return root / "set" / "private" / "test" / name


test.__test__ = False  # type: ignore[attr-defined]


# As it looks --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_an_image_is_read_as_viewers_show_it(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    lying = np.tile(np.linspace(0, 255, 64).astype("uint8"), (48, 1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"lying.{suffix}"
    stored = Image.fromarray(np.dstack([lying, lying * 0, lying * 0]))
    stored.save(path, exif=exif)
    with Image.open(path) as image:
        upright = save(tmp_path / "upright.png", np.array(ImageOps.exif_transpose(image)))
    told: dict[str, list[Path]] = {}
    found = decode([path, upright], 16, 3, remarks=told).int()
    assert (found[0] - found[1]).abs().max() <= 2
    assert ["turned upright" in what for what in told] == [True] * (orientation > 1)


def test_what_is_cut_out_is_cut_out_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.png", exif=exif)
    assert decode([tmp_path / "a.png"], 8, 3, ((20, 30), (0, 0, 20, 30))).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("tag", [0, 9])
def test_an_orientation_that_is_none_changes_nothing(tmp_path: Path, tag: int) -> None:
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    told: dict[str, list[Path]] = {}
    found = decode([tmp_path / "a.png"], 8, 3, remarks=told)
    assert torch.equal(found[0], torch.from_numpy(pixels).permute(2, 0, 1))
    assert not told


def cut_outs(hidden: int) -> dict[str, Image.Image]:
    """Images that show the same, whatever their transparent pixels hide."""
    pixels = np.tile(np.arange(8, dtype=np.uint8)[:, None, None] * 30, (1, 8, 3))
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6, 2:6] = 255
    pixels[alpha == 0] = hidden
    palette = Image.fromarray(np.where(alpha == 0, 0, 1).astype(np.uint8), "L").convert("P")
    palette.putpalette([hidden] * 3 + [90, 20, 30])
    palette.info["transparency"] = 0
    return {
        "colour.png": Image.fromarray(np.dstack([pixels, alpha])),
        "colour.webp": Image.fromarray(np.dstack([pixels, alpha])),
        "palette.png": palette,
        "palette.gif": palette,
        "grey.png": Image.fromarray(np.dstack([pixels[..., 0], alpha])),
    }


@pytest.mark.parametrize("name", cut_outs(0))
def test_transparent_pixels_are_white_whatever_they_hide(tmp_path: Path, name: str) -> None:
    channels = 1 if "grey" in name else 3
    found = []
    for hidden in (0, 200):
        image = cut_outs(hidden)[name]
        image.save(tmp_path / name, lossless=True)
        told: dict[str, list[Path]] = {}
        found.append(decode([tmp_path / name], 8, channels, remarks=told))
        assert ["transparent" in what for what in told] == [True]
    assert torch.equal(*found)
    assert (found[0][..., 0] == 255).all()
    assert (found[0][..., 2:6, 2:6] < 255).all()


def test_an_alpha_channel_that_hides_nothing_changes_nothing(tmp_path: Path) -> None:
    pixels = noise(8, 8, 3)
    path = save(tmp_path / "a.png", np.dstack([pixels, np.full((8, 8), 255, np.uint8)]))
    told: dict[str, list[Path]] = {}
    found = decode([path], 8, 3, remarks=told)
    assert torch.equal(found[0], torch.from_numpy(pixels).permute(2, 0, 1))
    assert not told


def test_grey_images_are_taken_as_colour_and_colour_as_grey_is_refused(root: Path) -> None:
    grey = noise(8, 8)
    found = decode([save(root / "grey.png", grey)], 8, 3)
    assert torch.equal(found[0], torch.from_numpy(grey).expand(3, 8, 8))
    with pytest.raises(ValueError, match=r"12 of 12 images are in colour .*ann/0\.png.*, \.\.\."):
        replace(TASK, channels=1).load(root)
    even = save(root / "even.png", np.dstack([grey] * 3))
    assert torch.equal(decode([even], 8, 1)[0, 0], torch.from_numpy(grey))


def test_every_name_that_a_screen_prints_is_taken(tmp_path: Path) -> None:
    names = (
        "Screenshot at 3.15.42\u202fPM", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937", "\u5c71\u7530\u3000\u592a\u90ce", "\U0001f469\u200d\U0001f52c",
        "Sn\u00edmek v\u00a013.05",
    )  # fmt: skip
    for name in names:
        save(tmp_path / f"{name}.png")
        assert visible(name) == name
    assert {path.stem for path in image_files(tmp_path)} == set(names)


@pytest.mark.parametrize("sign", ["\n", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\udc80"])
def test_a_name_with_a_control_character_is_refused(tmp_path: Path, sign: str) -> None:
    (tmp_path / f"a{sign}b.png").touch()
    with pytest.raises(ValueError, match="name with a control character"):
        image_files(tmp_path)
    assert sign not in visible(f"a{sign}b") or sign == "\n"


# What is said -------------------------------------------------------------------------------


def link(root: Path) -> None:
    train(root, "ann/3.png").unlink()
    train(root, "ann/3.png").symlink_to("nowhere")


def loop(root: Path) -> None:
    train(root, "ann/3.png").unlink()
    train(root, "ann/3.png").symlink_to("3.png")


def ending(root: Path) -> None:
    train(root, "ann/3.png").rename(train(root, "ann/3.heic"))


def deeper(root: Path) -> None:
    train(root, "ann/more").mkdir()
    train(root, "ann/3.png").rename(train(root, "ann/more/3.png"))


def beside(root: Path) -> None:
    save(train(root, "x.png"))


def unknown(root: Path) -> None:
    save(test(root, "zoe/0.png"))


def deeper_public(root: Path) -> None:
    save(root / "set/public/zoe/more/0.png")


def lying(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(10, 10, 3)).save(test(root, "bob/1.png"), exif=exif)


def clear(root: Path) -> None:
    save(root / "set/public/0.png", noise(10, 10, 4))


def grey(root: Path) -> None:
    save(train(root, "bob/1.png"), noise(10, 10))


def misnamed(root: Path) -> None:
    train(root, "bob/1.png").rename(train(root, "bob/1.jpg"))


def frames(root: Path) -> None:
    first, *others = (Image.fromarray(noise(10, 10, 3)) for _ in range(2))
    first.save(train(root, "bob/1.png"), save_all=True, append_images=others)


def unseen(root: Path) -> None:
    shutil.copy(train(root, "ann/0.png"), test(root, "ann/0.png"))


def recoded(root: Path) -> None:
    Image.open(train(root, "ann/0.png")).save(test(root, "ann/0.bmp"))


def again(root: Path) -> None:
    shutil.copy(train(root, "ann/0.png"), train(root, "ann/9.png"))


def again_test(root: Path) -> None:
    shutil.copy(test(root, "ann/0.png"), test(root, "ann/9.png"))


def two(root: Path) -> None:
    shutil.copy(train(root, "ann/0.png"), train(root, "bob/0.png"))


def twins(root: Path) -> None:
    shutil.rmtree(train(root, "bob"))
    shutil.copytree(train(root, "ann"), train(root, "bob"))


def leaked(root: Path) -> None:
    Image.open(train(root, "ann/0.png")).save(root / "set/public/x.bmp")


SAID: dict[Callable[[Path], None], list[str]] = {
    link: ["Left out of the train images: broken links (1). Such as .*ann/3.png"],
    loop: ["Left out of the train images: broken links (1)."],
    ending: ["Left out of the train images: files whose names do not end as an image's (1)."],
    deeper: ["Left out of the train images: images in deeper or unknown folders (1)."],
    beside: ["Left out of the train images: images beside the folders (1)."],
    unknown: ["Left out of the test images: images in deeper or unknown folders (1)."],
    deeper_public: ["Left out of the public images: images in deeper or unknown folders (1)."],
    lying: ["1 of 6 test images are stored lying and were turned upright"],
    clear: ["1 of 5 public images have transparent pixels"],
    grey: ["1 of 12 train images are grey and were taken as colour"],
    misnamed: ["1 of 12 train images are of another format than their names say"],
    frames: ["1 of 12 train images have several frames"],
    unseen: ["1 of 6 test images are train images too"],
    recoded: ["1 of 7 test images are train images too"],
    again: ["1 of 13 train images repeat one of their class"],
    again_test: ["1 of 7 test images repeat one of their class"],
    two: ["2 train and test images are found under another class too"],
    twins: [
        "8 train and test images are found under another class too",
        "Classes of which every train image is found under another class too: 2.",
    ],
    leaked: ["1 of 6 public images are private ones too"],
}


def pattern(said: str) -> str:
    return ".*".join(map(re.escape, said.split(".*")))


@pytest.mark.parametrize("change", SAID, ids=lambda change: change.__name__)
def test_what_is_read_otherwise_is_said(root: Path, change: Callable[[Path], None]) -> None:
    change(root)
    outcome = CliRunner().invoke(main, [*CHECK, "--set", "size=8", "--data", str(root)])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stderr.splitlines()
    assert len(lines) == len(SAID[change])
    for line, said in zip(lines, SAID[change], strict=True):
        assert re.match("note: " + pattern(said), line), line


def test_of_ordinary_images_nothing_is_said(root: Path) -> None:
    train(root, "ann/.hidden").touch()
    for place in (train, test):  # the fourth of three identities
        save(place(root, "zoe/0.png"))
    outcome = CliRunner().invoke(main, [*CHECK, "--set", "size=8", "--data", str(root)])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.stderr == ""


@pytest.mark.parametrize("name", ["a.jfif", "a.gif", "a.jp2", "a.tga", "a.PNG"])
def test_every_image_that_pillow_reads_is_one(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name)
    assert image_files(tmp_path) == [path]


@pytest.mark.parametrize("name", ["a.eps", "a.pdf", "a.h5", "a.txt"])
def test_what_pillow_does_not_decode_is_no_image(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert image_files(tmp_path) == []


def test_postscript_is_not_run_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(8, 8, 3)).save(path, format="EPS")
    with pytest.raises(ValueError, match="cannot identify"):
        decode([path], 8, 3)


@pytest.mark.parametrize("place", ["train", "test", "public"])
def test_a_complaint_of_too_few_images_says_what_was_left_out(root: Path, place: str) -> None:
    folder = root / "set" / ("public" if place == "public" else f"private/{place}/bob")
    for path in folder.iterdir():
        path.unlink()
        path.symlink_to("nowhere")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"\(left out: broken links \(\d\)\)"
    ):
        TASK.files(root)


def test_a_complaint_of_too_few_identities_says_what_was_left_out(root: Path) -> None:
    shutil.rmtree(train(root, "eve"))
    train(root, "eve").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"has 2 identities.*\(left out: broken links \(1\)\)"):
        TASK.files(root)


def test_the_store_keeps_what_was_said_without_names(root: Path, tmp_path: Path) -> None:
    lying(root)
    stage = ImagesStage(TASK, TASK.digest(root))
    store = Store(tmp_path / "store")
    store.complete(stage, data=root)
    kept = store.meta(stage)["remarks"]
    assert len(kept) == 1
    assert kept[0].startswith("1 of 6 test images are stored lying")
    assert "bob" not in kept[0]


TABLE = """
from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Evaluator, Setting, Trials
from mibench.benchmarks.tables import Table
from mibench.benchmarks.tables.base import versus
from mibench.data import Folder
from mibench.defenses import NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import MCNN

network = MCNN(widths=(4, 4, 4), kernels=(3, 3, 1), paddings=(1, 1, 0))
recipe = Recipe(epochs=1, batch_size=4, select="last")
setting = Setting(Folder("set", 3, 8), network, (Evaluator(network, recipe),))
TABLE = Table(
    name="small", caption="Small.",
    rows=versus(
        setting, GMI(WGANGP(epochs=1, batch_size=2), steps=1), Trials(classes=3, samples=1),
        Protocol(), {"No Def.": (recipe, NoDefense())}, title="GMI",
    ),
)
"""


def test_a_run_says_it_too_also_of_images_from_the_store(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    unseen(root)
    Path("small.py").write_text(TABLE)
    common = ["small.py", "--data", ".", "--store", "store", "--executor", "serial", "--quiet"]
    for _ in range(2):  # the second finds all in the store
        outcome = CliRunner().invoke(main, ["run", *common, "--until", "classifier"])
        assert outcome.exit_code == 0, outcome.output
        assert "note: 1 of 6 test images are train images too" in outcome.stderr
    outcome = CliRunner().invoke(main, ["run", *common])
    assert outcome.exit_code == 0, outcome.output
    assert "1 of 6 test images are train images too" in outcome.stdout


def test_the_version_of_reading_stands_in_the_digest_of_a_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TASK.digest(root)
    monkeypatch.setattr("mibench.data.folder.READING", "other")
    assert TASK.digest(root) != before


# Other tasks --------------------------------------------------------------------------------


def test_cifar10s_tree_says_what_is_left_out_and_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, name in itertools.product(("train", "test"), CLASSES):
        for i in range(2):
            save(tmp_path / "cifar10" / part / name / f"{i}.png", noise(32, 32, 3))
    place = tmp_path / "cifar10" / "train"
    (place / "cat" / "x.png").symlink_to("nowhere")
    save(place / "lorry" / "0.png")
    shutil.copy(place / "dog" / "0.png", tmp_path / "cifar10" / "test" / "dog" / "0.png")
    CIFAR10().load(tmp_path)
    told = capsys.readouterr().err
    assert "train images: images in deeper or unknown folders (1), broken links (1)" in told
    assert "1 of 20 test images are train images too" in told
    assert CIFAR10(num_classes=2).classes(tmp_path) == ["airplane", "automobile"]


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    listed = [(f"{i:06d}.png", i % 4 + 1) for i in range(40)]
    for name, _ in listed[:-2]:
        save(tmp_path / "celeba" / "img_align_celeba" / name, noise(218, 178, 3))
    lines = [f"{name} {identity}" for name, identity in listed[:-2]]  # 10, 10, 9 and 9 images
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_celeba_says_what_is_turned_and_repeated(
    faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = CelebA(num_classes=2, min_images=10, public=4, size=16)
    images = faces / "celeba" / "img_align_celeba"
    parts = task.split({f"{i:06d}.png": i % 4 + 1 for i in range(38)})
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(images / parts["train"][0][0]) as image:
        image.copy().save(images / parts["train"][0][0], exif=exif)
    shutil.copy(images / parts["train"][1][0], images / parts["test"][0][0])
    task.load(faces)
    told = capsys.readouterr().err
    assert "1 of 18 train images are stored lying" in told
    assert "1 of 2 test images are train images too" in told
    assert task.classes(faces) == ["1", "2"]


# Which class is whose -----------------------------------------------------------------------


def test_data_check_says_which_class_is_whose(root: Path) -> None:
    outcome = CliRunner().invoke(main, [*CHECK, "--set", "size=8", "--data", str(root)])
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("class ")]
    names = ("ann", "bob", "eve")
    assert lines == [f"class {i:<11} {n}: 4 train, 2 test" for i, n in enumerate(names)]


def test_of_many_classes_data_check_lists_the_first_and_the_last_or_all() -> None:
    command = ["data", "check", "blobs", "--set", "num_classes=30", "--set", "per_class=4"]
    lines = CliRunner().invoke(main, command).stdout.splitlines()
    listed = [int(line.split()[1]) for line in lines if line.startswith("class ")]
    assert listed == [*range(10), *range(20, 30)]
    assert "...               10 more, listed with --classes" in lines
    lines = CliRunner().invoke(main, [*command, "--classes"]).stdout.splitlines()
    listed = [int(line.split()[1]) for line in lines if line.startswith("class ")]
    assert listed == [*range(30)]
