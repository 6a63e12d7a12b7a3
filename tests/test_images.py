"""Tasks made of image files, on small trees that the tests write."""

import pickle
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mibench.cli import main
from mibench.data import CIFAR10, MNIST, CelebA, CelebAVMI, Folder, images
from mibench.data.cifar10 import CLASSES
from mibench.data.images import decode, file_digests

RNG = np.random.default_rng(0)
TASK = Folder(folder="set", num_classes=2, size=8, validation=0.25)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def noise(height: int, width: int, channels: int = 3) -> npt.NDArray[np.uint8]:
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: npt.NDArray[np.uint8] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(12, 10) if pixels is None else pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for who in ("ann", "bob", "zoe"):
        for i in range(4):
            save(tmp_path / "set" / "private" / "train" / who / f"{i}.png")
        save(tmp_path / "set" / "private" / "test" / who / "9.jpg")
    for i in range(5):
        save(tmp_path / "set" / "public" / f"{i}.webp")
    save(tmp_path / "set" / "public" / "eve" / "0.png")
    return tmp_path


# A folder of one's own ----------------------------------------------------------------------


def test_a_folder_is_read_identity_by_identity(root: Path) -> None:
    splits = TASK.load(root)
    assert splits.private.train.labels.tolist() == [0] * 4 + [1] * 4
    assert splits.private.test.labels.tolist() == [0, 1]
    assert splits.private.validation.tolist().count(True) == 2
    assert len(splits.public) == 6
    assert splits.public.labels.min() == 2
    assert splits.private.train.pixels.shape == (8, 3, 8, 8)
    assert TASK.sizes(root) == splits.sizes
    first = Image.open(root / "set" / "private" / "train" / "ann" / "0.png").crop((0, 1, 10, 11))
    want = torch.from_numpy(np.array(first.resize((8, 8), Image.Resampling.BILINEAR)))
    assert torch.equal(splits.private.train.pixels[0], want.permute(2, 0, 1))


def test_the_digest_follows_content_and_names_and_forgets_unused_files(root: Path) -> None:
    before = TASK.digest(root)
    assert TASK.digest(root) == before
    (root / "set" / "private" / "train" / "ann" / "notes.txt").write_text("not an image")
    save(root / "set" / "private" / "train" / "zoe" / "more.png")  # the third of two identities
    assert TASK.digest(root) == before
    path = root / "set" / "public" / "0.webp"
    kept = path.read_bytes()
    save(path)
    assert TASK.digest(root) != before
    path.write_bytes(kept)
    assert TASK.digest(root) == before
    path.rename(path.with_name("renamed.webp"))
    assert TASK.digest(root) != before


def test_digests_are_remembered_until_a_file_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "SMALL", 0)
    monkeypatch.setattr(images, "SETTLED_NS", 0)
    base = root / "set"
    files = list(base.rglob("*.png"))
    time.sleep(0.02)  # a tick of the file system's clock
    first = file_digests(base, files)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", None)
        assert file_digests(base, files) == first
    save(files[0], noise(9, 9))
    changed = file_digests(base, files)
    assert {k for k in first if first[k] != changed[k]} == {files[0].relative_to(base).as_posix()}


def broken(root: Path) -> Iterator[tuple[str, Path, bytes | None, str]]:
    private = root / "set" / "private"
    yield "no image", private / "train" / "ann" / "0.png", b"not an image", "is not a whole image"
    whole = (private / "train" / "ann" / "1.png").read_bytes()
    yield "cut", private / "train" / "ann" / "1.png", whole[:-200], "is not a whole image"
    yield "no test", private / "test" / "bob" / "9.jpg", None, "has no image to test on"


@pytest.mark.parametrize("case", ["no image", "cut", "no test"])
def test_a_broken_set_is_one_sentence_with_the_name(root: Path, case: str) -> None:
    _, path, data, sentence = next(c for c in broken(root) if c[0] == case)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as caught:
        TASK.load(root)
    assert path.parent.name in str(caught.value)


def test_more_than_8_bits_are_refused(root: Path) -> None:
    path = root / "set" / "private" / "train" / "ann" / "0.png"
    Image.fromarray(np.full((10, 10), 1024, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"0\.png has more than 8 bits per pixel"):
        TASK.load(root)


def test_too_few_images_or_identities_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="has 4 images, fewer than the 5"):
        replace(TASK, min_images=5).load(root)
    with pytest.raises(ValueError, match="has 3 identities, fewer than the 4"):
        replace(TASK, num_classes=4).load(root)


def test_an_identity_or_image_both_private_and_public_is_refused(root: Path) -> None:
    save(root / "set" / "public" / "zoe" / "0.png")
    with pytest.raises(ValueError, match="identity 'zoe' is both private and public"):
        TASK.load(root)
    (root / "set" / "public" / "zoe" / "0.png").unlink()
    (root / "set" / "public" / "zoe").rmdir()
    data = (root / "set" / "private" / "train" / "ann" / "0.png").read_bytes()
    (root / "set" / "public" / "copy.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"copy\.png is also private/train/ann/0\.png"):
        TASK.digest(root)


def test_a_missing_folder_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="private/train/<identity>"):
        TASK.digest(tmp_path)


@pytest.mark.parametrize("name", ["../set", "a/b", "", "."])
def test_the_folder_is_a_name_not_a_path(name: str) -> None:
    with pytest.raises(ValueError, match="name of one folder"):
        Folder(folder=name)


def test_a_header_that_claims_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.ppm"
    path.write_bytes(b"P6 60000 60000 255\n" + b"\0" * 100)
    with pytest.raises(ValueError, match=r"huge\.ppm"):
        decode([path], 8, 3)


# CelebA -------------------------------------------------------------------------------------

SMALL = CelebA(num_classes=3, min_images=10, public=12, size=16)


def names_for(counts: list[int]) -> dict[str, int]:
    """Images of identities 1, 2, …, dealt in turn as the official list mixes them."""
    left = dict(enumerate(counts, 1))
    order = []
    while left:
        order += list(left)
        left = {i: n - 1 for i, n in left.items() if n > 1}
    return {f"{n:06d}.jpg": identity for n, identity in enumerate(order, 1)}


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    listed = names_for([10, 4, 12, 5, 10, 11, 6])
    lines = [f"{name} {identity}" for name, identity in listed.items()]
    (tmp_path / "celeba").mkdir()
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    for name in listed:
        save(tmp_path / "celeba" / "img_align_celeba" / name, noise(218, 178))
    return tmp_path


def test_the_rule_gives_the_official_counts_on_a_list_with_the_official_histogram() -> None:
    """995 private identities with 30 images, two with 34 and three with 35, and so on."""
    private = [30] * 991 + [31] * 4 + [34] * 2 + [35] * 3
    counts = private + [30] * 1360 + [25] * 5000 + [12] * 564
    parts = CelebA().split(names_for(counts))
    per_class = torch.tensor([label for _, label in parts["train"]]).bincount()
    assert [len(parts[p]) for p in ("train", "test", "public")] == [27_018, 3_009, 30_000]
    assert per_class.unique(return_counts=True)[1].tolist() == [995, 2, 3]  # type: ignore[no-untyped-call]


def test_private_are_the_first_identities_with_enough_images(celeba: Path) -> None:
    splits = SMALL.load(celeba)
    assert splits.private.train.labels.bincount().tolist() == [9, 10, 9]  # identities 1, 3, 5
    assert splits.private.test.labels.bincount().tolist() == [1, 2, 1]
    assert len(splits.public) == 12
    assert SMALL.sizes(celeba) == splits.sizes
    assert splits.private.train.pixels.shape[1:] == (3, 16, 16)


def test_parts_share_no_image_and_no_identity() -> None:
    listed = names_for([10, 4, 12, 5, 10, 11, 6])
    parts = SMALL.split(listed)
    used = [n for part in parts.values() for n, _ in part]
    assert len(set(used)) == len(used)
    private = {listed[n] for p in ("train", "test") for n, _ in parts[p]}
    assert private == {1, 3, 5}
    assert not private & {listed[n] for n, _ in parts["public"]}
    assert all(listed[n] in (2, 4, 7) for n, _ in parts["public"])


def test_the_crop_is_the_central_108_pixels(celeba: Path) -> None:
    listed = SMALL.split(names_for([10, 4, 12, 5, 10, 11, 6]))
    name = listed["train"][0][0]
    image = Image.open(celeba / "celeba" / "img_align_celeba" / name).convert("RGB")
    cut = image.crop((35, 55, 35 + 108, 55 + 108)).resize((16, 16), Image.Resampling.BILINEAR)
    want = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    assert torch.equal(SMALL.load(celeba).private.train.pixels[0], want)


def test_celeba_that_is_missing_or_wrong_is_one_sentence(celeba: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be fetched by hand"):
        SMALL.digest(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="4 identities with 10 images or more, fewer than the 9"):
        replace(SMALL, num_classes=9).digest(celeba)
    with pytest.raises(ValueError, match="have 15 images, fewer than the 99"):
        replace(SMALL, public=99).digest(celeba)
    (
        celeba
        / "celeba"
        / "img_align_celeba"
        / SMALL.split(names_for([10, 4, 12, 5, 10, 11, 6]))["train"][0][0]
    ).unlink()
    with pytest.raises(FileNotFoundError, match="no image"):
        SMALL.digest(celeba)
    (celeba / "celeba" / "identity_CelebA.txt").write_text("000001.jpg one\n")
    with pytest.raises(ValueError, match="line 1: expected"):
        SMALL.digest(celeba)
    (celeba / "celeba" / "identity_CelebA.txt").write_bytes(b"000001.jpg 1\n\n\xff\n")
    with pytest.raises(ValueError, match="line 2: expected"):
        SMALL.digest(celeba)


# CelebA as VMI splits it --------------------------------------------------------------------

VMI = CelebAVMI(num_classes=3, train=8, size=16, validation=0.25)
COUNTS = [10, 4, 12, 5, 10, 11, 6]  # private: identities 3, 6 and, of the two with 10 images, 1


def test_vmis_rule_gives_the_official_counts_on_a_list_with_the_official_histogram() -> None:
    """983 of the 2,343 identities with 30 images are private beside all 17 with more."""
    counts = [30] * 2343 + [31] * 11 + [34] * 3 + [35] * 3 + [17] * 6689 + [16] * 1128
    assert (len(counts), sum(counts)) == (10_177, 202_599)
    task = CelebAVMI()
    assert task.official is not None
    listed = names_for(counts)
    parts = task.split(listed)
    assert len(parts["train"]) == task.official.private
    assert len(parts["test"]) == 5_038
    assert len(parts["public"]) == task.official.public
    tests = torch.tensor([label for _, label in parts["test"]]).bincount()
    assert tests.tolist() == [10] * 3 + [9] * 3 + [6] * 11 + [5] * 983
    last = {listed[name] for name, label in parts["train"] if label >= 17}
    assert last == set(range(1, 984))


def test_vmi_labels_the_most_frequent_first_and_equals_by_identity() -> None:
    listed = names_for(COUNTS)
    parts = VMI.split(listed)
    owner = {label: listed[name] for name, label in parts["train"]}
    assert owner == {0: 3, 1: 6, 2: 1}
    again = VMI.split(dict(reversed(listed.items())))
    assert again == parts


def test_vmi_trains_on_an_identitys_first_images_and_tests_on_the_rest() -> None:
    listed = names_for(COUNTS)
    parts = VMI.split(listed)
    for label, identity in enumerate((3, 6, 1)):
        mine = sorted(name for name, who in listed.items() if who == identity)
        assert [n for n, x in parts["train"] if x == label] == mine[:8]
        assert [n for n, x in parts["test"] if x == label] == mine[8:]


def test_vmis_public_images_are_all_of_the_others_or_a_fixed_draw() -> None:
    listed = names_for(COUNTS)
    everything = VMI.split(listed)["public"]
    assert {name for name, _ in everything} == {n for n, i in listed.items() if i in (2, 4, 5, 7)}
    labels = {2: 3, 4: 4, 5: 5, 7: 6}
    assert all(label == labels[listed[name]] for name, label in everything)
    some = replace(VMI, public=10).split(listed)["public"]
    assert len(some) == 10
    assert some == [entry for entry in everything if entry in some]
    assert some != everything[:10]
    assert replace(VMI, public=10).split(listed)["public"] == some
    assert len(replace(VMI, public=25).split(listed)["public"]) == 25


def test_vmis_crop_is_the_central_128_pixels(celeba: Path) -> None:
    splits = VMI.load(celeba)
    name = VMI.split(names_for(COUNTS))["train"][0][0]
    image = Image.open(celeba / "celeba" / "img_align_celeba" / name).convert("RGB")
    cut = image.crop((25, 45, 25 + 128, 45 + 128)).resize((16, 16), Image.Resampling.BILINEAR)
    want = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    assert torch.equal(splits.private.train.pixels[0], want)
    assert splits.private.validation.tolist().count(True) == 6
    assert VMI.sizes(celeba) == splits.sizes


def test_vmis_digest_follows_the_images_in_use(celeba: Path) -> None:
    task = replace(VMI, public=2)
    used = {name for part in task.split(names_for(COUNTS)).values() for name, _ in part}
    spare = min(set(names_for(COUNTS)) - used)
    folder = celeba / "celeba" / "img_align_celeba"
    before = task.digest(celeba)
    save(folder / spare, noise(218, 178))
    assert task.digest(celeba) == before
    save(folder / min(used), noise(218, 178))
    assert task.digest(celeba) != before


def test_vmis_split_of_too_few_is_refused() -> None:
    listed = names_for(COUNTS)
    with pytest.raises(ValueError, match="has 4 identities with more than the 8 images"):
        replace(VMI, num_classes=5).split(listed)
    with pytest.raises(ValueError, match="has 4 identities"):  # 10 images leave none to test on
        replace(VMI, num_classes=5, train=9).split(listed)
    with pytest.raises(ValueError, match="has 2 identities"):
        replace(VMI, train=10).split(listed)
    with pytest.raises(ValueError, match="have 25 images, fewer than the 26"):
        replace(VMI, public=26).split(listed)
    with pytest.raises(ValueError, match="have 0 images, fewer than the 2"):
        VMI.split(names_for([9, 9, 9]))


def test_data_check_reads_vmis_split_whole(celeba: Path) -> None:
    fields = ("num_classes=3", "train=8", "size=16", "validation=0.25")
    settings = [word for field in fields for word in ("--set", field)]
    command = ["data", "check", "celeba-vmi", "--data", str(celeba), *settings]
    outcome = CliRunner().invoke(main, command)
    assert outcome.exit_code == 0, outcome.output
    assert VMI.digest(celeba)[:16] in outcome.output
    assert "private train     24, 6 of them held out" in outcome.output
    assert "private test      9\n" in outcome.output
    assert "public            25 of 4 classes" in outcome.output


# CIFAR-10 -----------------------------------------------------------------------------------


def batch(count: int, seed: int) -> dict[bytes, object]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": pixels, b"labels": [i % 10 for i in range(count)], b"batch_label": b"x"}


@pytest.fixture
def batches(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(batch(20, i), protocol=2))
    return tmp_path


def test_cifar10_batches_are_read_without_running_them(batches: Path) -> None:
    splits = CIFAR10(validation=0.2).load(batches)
    assert len(splits.private.train) == 50
    assert len(splits.public) == 60
    assert splits.evaluation.num_classes == 10
    assert CIFAR10().sizes(batches) == splits.sizes
    raw = batch(20, 0)[b"data"]
    assert isinstance(raw, np.ndarray)
    want = torch.from_numpy(raw[0].reshape(3, 32, 32))
    assert torch.equal(splits.private.train.pixels[0], want)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("executed",))


@pytest.mark.parametrize("data", [pickle.dumps(Evil()), b"", b"\x80\x02]q\x00."])
def test_a_batch_that_is_something_else_is_refused(batches: Path, data: bytes) -> None:
    (batches / "cifar-10-batches-py" / "data_batch_3").write_bytes(data)
    with pytest.raises(ValueError, match="data_batch_3 is no whole batch"):
        CIFAR10().load(batches)


def test_cifar10_is_read_from_a_tree_of_images_too(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 1)):
        for name in CLASSES:
            for i in range(count):
                save(tmp_path / "cifar10" / part / name / f"{i}.webp", noise(32, 32))
    task = CIFAR10(validation=0.25)
    splits = task.load(tmp_path)
    assert splits.private.train.labels.bincount().tolist() == [4] * 5
    assert splits.public.labels.bincount().tolist() == [0] * 5 + [5] * 5
    assert task.sizes(tmp_path) == splits.sizes
    before = task.digest(tmp_path)
    save(tmp_path / "cifar10" / "test" / "truck" / "0.webp", noise(32, 32))
    assert task.digest(tmp_path) != before


def test_cifar10_that_is_missing_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--download"):
        CIFAR10().digest(tmp_path)


def test_what_nobody_can_download_is_answered_with_what_is_wrong_with_it(tmp_path: Path) -> None:
    for part in ("private/train", "private/test", "public"):
        for i in range(4):
            save(tmp_path / "set" / part / ("anna", "bert")[i % 2] / f"{i}.png", noise(8, 8))
    check = ["data", "check", "folder", "--set", "num_classes=2", "--set", "min_images=2"]
    check += ["--download", "--data", str(tmp_path)]
    for folder, sentence in (("set", "'anna' is both private and public"), ("no", "no folder ")):
        done = CliRunner().invoke(main, [*check, "--set", f"folder={folder}"])
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
        assert sentence in done.stderr


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(task: MNIST, root: Path) -> None:
        raise ValueError("MNIST could not be downloaded: the server is away")

    monkeypatch.setattr(MNIST, "download", fail)
    done = CliRunner().invoke(
        main, ["data", "check", "mnist", "--download", "--data", str(tmp_path)]
    )
    assert done.stderr == "Error: MNIST could not be downloaded: the server is away\n"
