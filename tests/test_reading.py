"""Data sets are known for what they are, and read within what the machine allows."""

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mibench
from mibench import machine
from mibench.attacks import InversionGAN
from mibench.attacks.access import Watched
from mibench.data import CIFAR10, MNIST, Blobs, CelebA, CelebAVMI, Folder, Splits, Task
from mibench.data import celeba as celeba_module
from mibench.data import cifar10 as cifar10_module
from mibench.data import images as module
from mibench.data import mnist as mnist_module
from mibench.data.base import resize
from mibench.data.celeba import read_identities
from mibench.data.cifar10 import CLASSES, contents
from mibench.data.images import decode, file_digests
from mibench.evaluation.inception import WEIGHTS, inception_digest
from mibench.networks import MCNN
from mibench.running.stages import ImagesStage
from mibench.seeding import generator, seeded
from mibench.store import DamagedError, Payload, Stage, Store, Work, read_stage
from mibench.types import ImageSet, predict
from tests.test_data import idx, write_mnist

OTHER = "are not the official ones: this is another data set"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "mibench"


def picture(path: Path, seed: int, width: int = 12, height: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


# Digests of files ---------------------------------------------------------------------------


def release(folder: Path, seed: int) -> list[Path]:
    """Writes images that have the same names, sizes and times whatever the seed."""
    files = [picture(folder / f"{i}.bmp", 10 * seed + i) for i in range(3)]
    for file in files:
        os.utime(file, (1_700_000_000, 1_700_000_000))
    return files


def hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Returns a list that every file is put into that is read from now on."""
    read: list[Path] = []
    plain = Path.read_bytes

    def noted(self: Path) -> bytes:
        read.append(self)
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", noted)
    return read


@pytest.mark.parametrize("small", [module.SMALL, 0])
@pytest.mark.parametrize("settled", [module.SETTLED_NS, 0])
def test_another_release_with_the_same_names_sizes_and_times_has_another_digest(
    small: int, settled: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", small)
    monkeypatch.setattr(module, "SETTLED_NS", settled)
    found = []
    for seed in (1, 2):
        files = release(tmp_path, seed)
        time.sleep(0.02)  # a tick of the file system's clock
        found.append(file_digests(tmp_path, files))
        assert file_digests(tmp_path, files) == found[-1]
    assert not set(found[0].values()) & set(found[1].values())


def test_a_small_set_is_hashed_each_time_and_a_large_one_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    files = release(tmp_path, 1)
    time.sleep(0.02)
    read = hashes(monkeypatch)
    file_digests(tmp_path, files)
    file_digests(tmp_path, files)
    assert len(read) == 6
    assert not cache.exists()
    monkeypatch.setattr(module, "SMALL", 0)
    file_digests(tmp_path, files)
    file_digests(tmp_path, files)
    assert len(read) == 9


def test_what_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    files = release(tmp_path, 1)
    read = hashes(monkeypatch)
    file_digests(tmp_path, files)
    file_digests(tmp_path, files)
    assert len(read) == 6
    assert not cache.exists()


@pytest.mark.parametrize("text", ["[]", "null", '{"0.bmp": 7}', "{", "[" * 100_000])
def test_a_memory_of_nonsense_is_no_memory(
    text: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "SETTLED_NS", 0)
    files = release(tmp_path, 1)
    time.sleep(0.02)
    want = file_digests(tmp_path, files)
    (notes,) = cache.iterdir()
    notes.write_text(text)
    assert file_digests(tmp_path, files) == want


def test_a_user_without_a_home_directory_does_without_a_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    files = release(tmp_path, 1)
    want = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert file_digests(tmp_path, files) == want


# Data sets by another's name ----------------------------------------------------------------


def test_mnist_s_labels_are_all_of_0_to_9(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "t10k-labels-idx1-ubyte"
    good = (torch.arange(20) % 10).to(torch.uint8)
    for place, label, why in ((7, 255, "the label 255"), (7, 10, "the label 10")):
        bad = good.clone()
        bad[place] = label
        path.write_bytes(idx(bad))
        for read in (MNIST().digest, MNIST().load, MNIST().sizes):
            with pytest.raises(ValueError, match=f"t10k part of MNIST under .* has {why}"):
                read(tmp_path)
    path.write_bytes(idx(good.where(good != 3, 4)))
    with pytest.raises(ValueError, match="has no image of class 3"):
        MNIST().load(tmp_path)


def kept(task: Task, root: Path, store: Path) -> list[str]:
    """Returns the remarks in the meta.json of the task's images."""
    stage = ImagesStage(task, task.digest(root))
    Store(store).complete(stage, data=root)
    remarks: list[str] = Store(store).meta(stage).get("remarks", [])
    return remarks


def test_files_that_are_not_mnist_s_are_remarked_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    task = MNIST(size=8)
    (told,) = kept(task, tmp_path, tmp_path / "one")
    assert OTHER in told
    monkeypatch.setattr(mnist_module, "OFFICIAL", task.digest(tmp_path))
    assert not kept(task, tmp_path, tmp_path / "two")


def batches(root: Path, labels: Callable[[int], list[float]]) -> None:
    place = root / "cifar-10-batches-py"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": labels(20)}
        (place / name).write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (lambda n: [i % 100 for i in range(n)], "the label 10,"),
        (lambda n: [i % 10 - 1 for i in range(n)], "the label -1,"),
        (lambda n: [float(i % 10) for i in range(n)], "labels that are no whole numbers"),
        (lambda n: [i % 9 for i in range(n)], "no image of class 9"),
    ],
)
def test_cifar10_s_labels_are_all_of_0_to_9(
    labels: Callable[[int], list[float]], why: str, tmp_path: Path
) -> None:
    batches(tmp_path, labels)
    for read in (CIFAR10().load, CIFAR10().sizes):
        with pytest.raises(ValueError, match=f"the train part of CIFAR-10 under .* has {why}"):
            read(tmp_path)


def test_images_that_are_not_cifar10_s_are_remarked_on_in_either_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches(tmp_path, lambda n: [i % 10 for i in range(n)])
    parts = [cifar10_module._read_batches(tmp_path, part) for part in ("train", "test")]
    for name, part in zip(("train", "test"), parts, strict=True):
        for i, (pixels, label) in enumerate(zip(part.pixels, part.labels, strict=True)):
            path = tmp_path / "tree" / "cifar10" / name / CLASSES[label] / f"{999 - i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    places = (tmp_path, tmp_path / "tree")
    for i, place in enumerate(places):
        (told,) = kept(CIFAR10(size=8), place, tmp_path / f"one{i}")
        assert OTHER in told
    monkeypatch.setattr(cifar10_module, "OFFICIAL", contents(parts))
    for i, place in enumerate(places):
        assert not kept(CIFAR10(size=8), place, tmp_path / f"two{i}")


def test_contents_follow_images_labels_and_parts() -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 2, 2), generator=rng).to(torch.uint8)
    one = ImageSet(pixels, torch.tensor([0, 1, 2, 3]))
    order = torch.tensor([2, 0, 3, 1])
    want = contents([one, one.take(order[:2])])
    assert contents([one.take(order), one.take(order[:2].flip(0))]) == want
    assert contents([one.take(order[:2]), one]) != want
    assert contents([ImageSet(pixels, torch.tensor([0, 1, 3, 2])), one.take(order[:2])]) != want
    assert contents([ImageSet(pixels ^ 1, one.labels), one.take(order[:2])]) != want


SMALL = CelebA(num_classes=2, min_images=4, public=4, size=16)
VMI = CelebAVMI(num_classes=2, train=3, size=16)
LIST = "".join(f"{n:06d}.jpg {1 + n % 2 if n < 8 else 3 + n % 3}\n" for n in range(14))


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    for n in range(14):
        picture(tmp_path / "celeba" / "img_align_celeba" / f"{n:06d}.jpg", n, 178, 218)
    (tmp_path / "celeba" / "identity_CelebA.txt").write_text(LIST)
    return tmp_path


@pytest.mark.parametrize("task", [SMALL, VMI])
@pytest.mark.parametrize("size", [(178, 178), (256, 256), (160, 200), (356, 436), (218, 178)])
def test_celeba_of_another_size_is_refused(
    task: Task, size: tuple[int, int], celeba: Path
) -> None:
    assert len(task.load(celeba).private.train) == 6
    picture(celeba / "celeba" / "img_align_celeba" / "000003.jpg", 0, *size)
    with pytest.raises(ValueError, match=rf"3\.jpg has {size[0]}x{size[1]} pixels, .* 178x218"):
        task.load(celeba)


def test_another_list_than_celeba_s_is_remarked_on(
    celeba: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (told,) = kept(SMALL, celeba, celeba / "one")
    assert "identity_CelebA.txt is not the official list" in told
    listed = hashlib.md5(LIST.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(celeba_module, "LIST_MD5", listed)
    assert not kept(SMALL, celeba, celeba / "two")


def test_blank_lines_at_a_list_s_end_are_no_matter(celeba: Path) -> None:
    path = celeba / "celeba" / "identity_CelebA.txt"
    want = read_identities(celeba)
    for end in ("\n", "\n\n \n", "\r\n\t"):
        path.write_text(LIST + end)
        assert read_identities(celeba) == want


def test_files_under_two_identities_are_counted_and_refused(celeba: Path) -> None:
    path = celeba / "celeba" / "identity_CelebA.txt"
    path.write_text(LIST + "000001.jpg 2\n000005.jpg 9\n000002.jpg 4\n")
    with pytest.raises(
        ValueError, match=r"has 2 files under two identities, first 000005\.jpg under 2 and 9 "
        r"\(line 16\)",
    ):  # fmt: skip
        SMALL.digest(celeba)


def test_one_public_image_is_refused(tmp_path: Path) -> None:
    for who in ("ann", "bob"):
        for i in range(2):
            picture(tmp_path / "images" / "private" / "train" / who / f"{i}.png", i)
        picture(tmp_path / "images" / "private" / "test" / who / "9.png", 9)
    picture(tmp_path / "images" / "public" / "0.png", 10)
    task = Folder(num_classes=2, size=8)
    for read in (task.digest, task.sizes, task.load):
        with pytest.raises(FileNotFoundError, match=r"two images or more, .*public has 1"):
            read(tmp_path)
    picture(tmp_path / "images" / "public" / "1.png", 11)
    assert len(task.load(tmp_path).public) == 2
    splits = Blobs().load(tmp_path)
    with pytest.raises(ValueError, match="two public images or more, here: 1"):
        Splits(splits.private, splits.evaluation, splits.public.take(torch.tensor([0])))


# What the machine allows --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "files", "want"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n", "cpu.max": "300000 100000\n"}, 0.5),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../up\n", {"cpu.max": "400000 100000\n"}, 4),
        (
            "3:memory:/m\n2:cpuacct,cpu:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n",
             "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5,
        ),
        ("0::/a\n", {"a/cpu.max": "none of it\n"}, float("inf")),
        ("nonsense\n", {}, float("inf")),
    ],
)  # fmt: skip
def test_the_quota_of_a_cgroup_is_read(
    lines: str, files: dict[str, str], want: float, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(lines)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.quota(tmp_path / "own", tmp_path / "mounted") == want
    assert machine.quota(tmp_path / "none", tmp_path / "mounted") == float("inf")


@pytest.mark.parametrize(
    ("usable", "limit", "want"), [(8, float("inf"), 8), (8, 2.9, 2), (2, 6, 2), (8, 0.3, 1)]
)
def test_cores_are_those_of_affinity_and_quota(
    usable: int, limit: float, want: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "quota", lambda: limit)
    assert machine.cores() == want


def decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list of how many images were converted at once, each time one is."""
    now, most = 0, list[int]()
    lock = threading.Lock()
    convert = Image.Image.convert

    def slow(self: Image.Image, mode: str) -> Image.Image:
        nonlocal now
        with lock:
            now += 1
            most.append(now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return convert(self, mode)

    monkeypatch.setattr(Image.Image, "convert", slow)
    return most


def test_images_are_decoded_on_the_cores_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [picture(tmp_path / f"{i}.png", i) for i in range(16)]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    for count in (1, 3):
        monkeypatch.setattr(module, "cores", lambda count=count: count)
        most = decoding(monkeypatch)
        decode(files, 8, 3)
        assert max(most) == count


def test_images_that_are_large_together_are_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [picture(tmp_path / f"{i}.png", i) for i in range(8)]
    large = [picture(tmp_path / f"{i}.png", i, 20, 20) for i in range(8, 16)]
    files = [*large[:4], *small, *large[4:]]
    want = torch.cat([decode([file], 8, 3) for file in files])
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(module, "MAX_PIXELS", 4 * 12 * 12)
    for some, most in ((small, 4), (large, 1)):
        seen = decoding(monkeypatch)
        decode(some, 8, 3)
        assert max(seen) == most
    assert torch.equal(decode(files, 8, 3), want)


# Never whole as floats ----------------------------------------------------------------------


@pytest.fixture
def public() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 1, 32, 32), generator=rng).to(torch.uint8)
    return ImageSet(pixels, torch.arange(50) % 5)


@pytest.fixture
def target() -> MCNN:
    return MCNN(widths=(2, 2, 2))


def forbid(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Makes it an error to have more than ``most`` images as floats at once."""
    plain = Tensor.float

    def watched(self: Tensor) -> Tensor:
        assert self.dtype != torch.uint8 or len(self) <= most, "all public images as floats"
        return plain(self)

    monkeypatch.setattr(Tensor, "float", watched)


def test_answers_of_bytes_are_those_of_floats_to_the_bit(
    public: ImageSet, target: MCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seeded("target"):
        network = target.build((1, 32, 32), 5)
    want = predict(network, public.images, generator("x"), 8)
    forbid(monkeypatch, 8)
    got = predict(network, public, generator("x"), 8)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_mean_public_latent_and_the_labels_are_asked_for_batch_by_batch(
    public: ImageSet, target: MCNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seeded("target"):
        network = target.build((1, 32, 32), 5)
    logits, features = predict(network, public.images, generator("x"))
    monkeypatch.setattr("mibench.types.BATCH_PIXELS", 8 * 32 * 32)
    forbid(monkeypatch, 8)
    watched = Watched(network, work := Work())
    watched.look_at(public)
    assert watched.public_mean is not None
    torch.testing.assert_close(watched.public_mean, features.mean(0))
    labels = InversionGAN()._labeller(watched, public, generator("x"))
    torch.testing.assert_close(labels(torch.arange(50)), logits.softmax(1))
    assert work.queries == 100


def test_resizing_takes_a_thousand_images_at_a_time_and_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3000, 1, 8, 8), generator=rng).to(torch.uint8)
    want = torch.cat([resize(p, 16) for p in pixels[:, None]])
    forbid(monkeypatch, 1024)
    assert torch.equal(resize(pixels, 16), want)


# Large payloads -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wide(Stage):
    kind: ClassVar[str] = "wide"

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        pixels = torch.arange(10_000).to(torch.uint8)
        return {"a": {"pixels": pixels, "share": torch.linspace(0, 1, 999)}, "b": pixels[:7] + 1}


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store(tmp_path / "store")
    store.complete(Wide())
    monkeypatch.setattr("mibench.store.files.LARGE", 1000)
    return store


def old(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the clock show an hour later than the file's times."""
    later = path.stat().st_ctime_ns + 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that grows with each large file that is hashed."""
    count: list[int] = []
    plain = hashlib.file_digest

    def counted(*args: object) -> object:
        count.append(1)
        return plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return count


def test_a_large_payload_is_mapped_and_is_what_was_written(wide: Store) -> None:
    want = Wide().compute(wide.load, Work())
    found = wide.load(Wide())
    assert torch.equal(found["a"]["pixels"], want["a"]["pixels"])
    assert torch.equal(found["a"]["share"], want["a"]["share"])
    assert torch.equal(found["b"], want["b"])
    path = wide.path(Wide()) / "payload.safetensors"
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) in maps.read_text()
    found["a"]["pixels"].zero_()  # a copy of the pages, not the file
    assert torch.equal(wide.load(Wide())["a"]["pixels"], want["a"]["pixels"])
    assert found["a"]["share"].data_ptr() % 64 == 0


def test_a_large_payload_is_hashed_once_until_it_changes(
    wide: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wide.path(Wide()) / "payload.safetensors"
    old(path, monkeypatch)
    count = hashed(monkeypatch)
    wide.load(Wide())
    wide.load(Wide())
    assert len(count) == 1
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    time.sleep(0.02)
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedError, match=r"payload\.safetensors is damaged"):
        read_stage(wide.path(Wide()))
    path.unlink()
    with pytest.raises(DamagedError, match=r"payload\.safetensors is missing"):
        read_stage(wide.path(Wide()))


def test_a_large_payload_that_is_new_is_hashed_each_time(
    wide: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = hashed(monkeypatch)
    wide.load(Wide())
    wide.load(Wide())
    assert len(count) == 2


# Weights ------------------------------------------------------------------------------------


def test_other_weights_than_inception_s_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights" / WEIGHTS
    path.parent.mkdir()
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="its sha256 begins with 2d711642, not 6726825d"):
        inception_digest(tmp_path)


def test_nothing_in_mibench_unpickles_weights() -> None:
    for path in Path(mibench.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for call in ("torch.load(", "hub.load_state_dict_from_url(", "weights_only"):
            assert call not in text, path
