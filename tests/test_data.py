"""Tasks: who is private, who is public, and that files are read as they are."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mibench.data import MNIST, TASKS, Blobs, Corpus, Digits, Splits, Task
from mibench.data.base import hold_out, one_corpus, resize, split_by_class
from mibench.seeding import generator
from mibench.training.samplers import balanced, shuffled
from mibench.types import ImageSet


def needs_no_files(task: Task) -> bool:
    try:
        task.digest(Path("nowhere"))
    except FileNotFoundError:
        return False
    return True


FILELESS = [made for cls in TASKS.values() if needs_no_files(made := cls())]


@pytest.fixture(scope="module", params=FILELESS, ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.param
    return found


@pytest.fixture(scope="module")
def splits(task: Task) -> Splits:
    return task.load(Path("nowhere"))


def images(data: ImageSet) -> list[bytes]:
    return [p.numpy().tobytes() for p in data.pixels]


def classes(data: ImageSet) -> list[int]:
    return sorted(set(data.labels.tolist()))


# Every task that needs no files -------------------------------------------------------------


def test_private_and_public_classes_are_disjoint(splits: Splits) -> None:
    private = classes(splits.private.train)
    public = classes(splits.public)
    assert private == list(range(splits.private.num_classes))
    assert set(private).isdisjoint(public)


def test_labels_are_in_range_and_every_class_is_there(splits: Splits) -> None:
    for corpus in (splits.private, splits.evaluation):
        for part in (corpus.train, corpus.test):
            assert classes(part) == list(range(corpus.num_classes))


def test_images_have_the_shape_that_the_task_says(task: Task, splits: Splits) -> None:
    for part in (splits.private.train, splits.private.test, splits.evaluation.train):
        assert part.pixels.shape[1:] == task.shape
    assert splits.public.pixels.shape[1:] == task.shape
    assert task.num_classes == splits.private.num_classes


def test_private_train_and_private_test_share_no_image(splits: Splits) -> None:
    assert set(images(splits.private.train)).isdisjoint(images(splits.private.test))


def test_private_and_public_share_no_image(splits: Splits) -> None:
    private = images(splits.private.train) + images(splits.private.test)
    assert set(private).isdisjoint(images(splits.public))


def test_evaluation_trains_on_no_private_test_image(splits: Splits) -> None:
    assert set(images(splits.evaluation.train)).isdisjoint(images(splits.private.test))


def test_evaluation_knows_the_private_classes_under_their_own_labels(splits: Splits) -> None:
    mine = splits.evaluation.train.take(
        splits.evaluation.train.labels < splits.private.num_classes
    )
    if set(images(mine)).isdisjoint(images(splits.private.train)):  # drawn anew for evaluators
        assert sorted(set(mine.labels.tolist())) == list(range(splits.private.num_classes))
        return
    assert torch.equal(mine.pixels, splits.private.train.pixels)
    assert torch.equal(mine.labels, splits.private.train.labels)


def test_a_tenth_of_each_class_is_held_out(splits: Splits) -> None:
    for corpus in (splits.private, splits.evaluation):
        for label in range(corpus.num_classes):
            held = corpus.validation[corpus.train.labels == label]
            assert held.sum() == round(0.1 * len(held))


def test_a_task_loads_the_same_images_twice(task: Task, splits: Splits) -> None:
    again = task.load(Path("nowhere"))
    assert torch.equal(again.private.train.pixels, splits.private.train.pixels)
    assert torch.equal(again.private.validation, splits.private.validation)
    assert torch.equal(again.public.pixels, splits.public.pixels)


def test_the_digits_are_all_1797_images() -> None:
    splits = Digits().load(Path())
    assert len(splits.evaluation.train) + len(splits.evaluation.test) == 1797


def test_blobs_are_their_patterns_without_noise() -> None:
    train = Blobs(noise=0).load(Path()).private.train
    for label in range(5):
        assert len(set(images(train.take(train.labels == label)))) == 1


# Splitting ----------------------------------------------------------------------------------


def test_the_public_set_takes_train_and_test_images_of_its_classes() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    train = ImageSet(torch.arange(4).view(4, 1, 1, 1).to(torch.uint8), labels)
    test = ImageSet(train.pixels + 10, labels)
    splits = split_by_class(train, test, 2, 0, torch.Generator())
    assert splits.public.pixels.flatten().tolist() == [2, 3, 12, 13]
    assert splits.private.train.pixels.flatten().tolist() == [0, 1]
    assert splits.private.test.pixels.flatten().tolist() == [10, 11]
    assert splits.evaluation.train.pixels.flatten().tolist() == [0, 1, 2, 3]
    assert splits.evaluation.num_classes == 4


def test_a_class_cannot_be_private_and_public() -> None:
    data = ImageSet(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]))
    corpus = Corpus(data, torch.zeros(2, dtype=torch.bool), data, 2)
    with pytest.raises(ValueError, match=r"classes \[0, 1\] are both private and public"):
        Splits(corpus, corpus, data)


def test_what_is_held_out_depends_on_the_generator_alone() -> None:
    labels = torch.arange(100) % 4

    def mask(seed: int) -> Tensor:
        return hold_out(labels, 0.2, torch.Generator().manual_seed(seed))

    assert torch.equal(mask(0), mask(0))
    assert not torch.equal(mask(0), mask(1))
    assert [int(mask(0)[labels == c].sum()) for c in range(4)] == [5, 5, 5, 5]


@pytest.mark.parametrize(("before", "after"), [(8, 16), (8, 32), (28, 32), (28, 64)])
def test_upsampling_is_bilinear_as_in_pil(before: int, after: int, rng: torch.Generator) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = torch.randint(0, 256, (before, before), generator=rng).to(torch.uint8)
    want = image.fromarray(pixels.numpy()).resize((after, after), image.Resampling.BILINEAR)
    got = resize(pixels[None, None], after)[0, 0].numpy().astype(int)
    assert np.abs(got - np.asarray(want).astype(int)).max() <= 1


def test_resizing_to_the_same_size_changes_nothing(rng: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (3, 1, 8, 8), generator=rng).to(torch.uint8)
    assert torch.equal(resize(pixels, 8), pixels)


# Batches ------------------------------------------------------------------------------------


def test_a_shuffled_pass_drops_its_last_smaller_batch(rng: torch.Generator) -> None:
    batches = shuffled(torch.arange(10), 4, 1, rng)
    assert [len(b) for b in batches] == [4, 4]
    drawn = torch.cat(batches).tolist()
    assert len(set(drawn)) == 8
    assert drawn != sorted(drawn)


def test_fewer_images_than_a_batch_make_one_batch(rng: torch.Generator) -> None:
    assert [len(b) for b in shuffled(torch.arange(3), 8, 1, rng)] == [3]


def test_balanced_batches_hold_as_many_images_of_each_of_their_classes(
    rng: torch.Generator,
) -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([9, 8, 8, 12, 8]))
    batches = balanced(labels, 16, 4, rng)
    assert len(batches) == 2  # eight groups of eleven are used
    for batch in batches:
        _, counts = labels[batch].unique(return_counts=True)  # type: ignore[no-untyped-call]
        assert counts.tolist() == [4, 4, 4, 4]
    drawn = torch.cat(batches).tolist()
    assert len(set(drawn)) == len(drawn)


def test_balanced_batches_differ_between_epochs_and_not_between_runs() -> None:
    labels = torch.arange(8).repeat_interleave(8)
    first, again = (balanced(labels, 16, 4, generator("sampler")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = balanced(labels, 16, 4, generator("other"))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_too_few_classes_for_a_balanced_batch_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="needs 16 classes with 4 images, found 5"):
        balanced(torch.arange(5).repeat(40), 64, 4, rng)
    with pytest.raises(ValueError, match="of a class, and class 2 has 3 to train on, so it would"):
        balanced(torch.tensor([0] * 9 + [1] * 4 + [2] * 3), 8, 4, rng)
    with pytest.raises(ValueError, match="cannot hold groups of 3"):
        balanced(torch.arange(5).repeat(40), 64, 3, rng)


# MNIST --------------------------------------------------------------------------------------


def idx(array: Tensor) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.numpy().tobytes()


def write_mnist(root: Path, *, seed: int = 0, zipped: bool = False) -> Path:
    """Writes a tiny MNIST of two images per digit and part; returns its folder."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    for part in ("train", "t10k"):
        pixels = torch.randint(0, 256, (20, 28, 28), generator=rng).to(torch.uint8)
        labels = (torch.arange(20) % 10).to(torch.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            data = idx(array)
            path = folder / f"{part}-{name}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(data) if zipped else data)
    return folder


TASK = MNIST(size=28, validation=0)


def test_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    splits = TASK.load(tmp_path)
    train = splits.evaluation.train
    raw = (folder / "train-images-idx3-ubyte").read_bytes()[16:]
    assert train.pixels.numpy().tobytes() == raw
    assert train.labels.tolist() == [i % 10 for i in range(20)]
    assert TASK.sizes(tmp_path) == splits.sizes


def test_mnist_is_resized_to_the_tasks_size(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    splits = MNIST(validation=0).load(tmp_path)
    assert splits.private.train.pixels.shape == (10, 1, 32, 32)
    assert classes(splits.public) == [5, 6, 7, 8, 9]
    assert len(splits.public) == 20


def test_gzipped_and_raw_files_have_one_digest(tmp_path: Path) -> None:
    write_mnist(tmp_path / "raw")
    write_mnist(tmp_path / "zipped", zipped=True)
    assert TASK.digest(tmp_path / "raw") == TASK.digest(tmp_path / "zipped")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_one_changed_byte_changes_the_digest(name: str, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    before = TASK.digest(tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert TASK.digest(tmp_path) != before


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 10, -5])
def test_a_file_that_was_cut_short_is_refused(zipped: bool, keep: int, tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, zipped=zipped)
    path = next(folder.glob("train-images*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{path.name} is .*--download"):
        TASK.digest(tmp_path)


def test_a_file_with_another_magic_number_is_refused(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\x0d" + data[3:])
    with pytest.raises(ValueError, match="not a whole IDX file"):
        TASK.load(tmp_path)


def test_a_file_that_is_not_gzipped_under_a_gz_name_is_refused(tmp_path: Path) -> None:
    path = write_mnist(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="damaged"):
        TASK.digest(tmp_path)


def test_more_images_than_labels_are_refused(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-labels-idx1-ubyte"
    path.write_bytes(idx(torch.zeros(19, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"20 train images .* for 19 labels"):
        TASK.digest(tmp_path)


def test_a_missing_file_is_named_with_what_fetches_it(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte.*--download"):
        TASK.digest(tmp_path)


def test_one_corpus_serves_both_kinds_of_classifiers() -> None:
    """Its parts stay apart, and the share that is held out is of each class."""

    def images(count: int, first: int = 0) -> ImageSet:
        labels = torch.arange(count) % 2 + first
        return ImageSet(torch.zeros(count, 1, 8, 8, dtype=torch.uint8), labels)

    sets = {"train": images(20), "test": images(6), "public": images(4, first=2)}
    splits = one_corpus(sets, 2, 0.2, generator("tests"))
    assert splits.private is splits.evaluation
    assert [len(splits.private.train), len(splits.private.test), len(splits.public)] == [20, 6, 4]
    assert splits.private.train.labels[splits.private.validation].bincount().tolist() == [2, 2]
