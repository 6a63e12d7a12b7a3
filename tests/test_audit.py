"""An audit of somebody's own model: a ResNet-18 of torchvision, a state dict and three folders."""

import gc
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

import mibench
from mibench.auditing import normalisation
from mibench.benchmarks.audit import SHARES, audit_table
from mibench.cli import main
from mibench.data import Avatars, Folder, Sizes, Splits
from mibench.evaluation.significance import paired
from mibench.networks import SCNN
from mibench.networks.foreign import given
from mibench.networks.foreign.given import Given, give
from mibench.reporting.audit import NO_PROOF, verdict
from mibench.reporting.contrasts import Contrast
from mibench.reporting.results import Entry, Results
from mibench.running.own_model import check_model, lay_out
from mibench.running.userfile import load_user_file
from mibench.seeding import seeded
from mibench.types import ImageSet
from tests.browsing import opened, scrolls_sideways, violations

CLASSES, SIZE = 8, 16
TASK = Avatars(
    num_classes=CLASSES, size=SIZE, images=16, tests=8, evaluation=4, strangers=64, each=2
)
MEAN, STD = given.NORMALISATIONS["imagenet"]


def export(images: ImageSet, place: Path, first: int = 0) -> None:
    for i, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist(), strict=True)):
        folder = place / f"person {label - first:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")


def trained(images: ImageSet) -> nn.Module:
    """A ResNet-18, as its owner would have trained it."""
    normalise = Normalize(MEAN, STD)
    with seeded("owner"):
        network: nn.Module = models.resnet18(num_classes=CLASSES)
        adam = torch.optim.Adam(network.parameters(), 1e-3)
        for epoch in range(20):
            for group in adam.param_groups:
                group["lr"] = 1e-3 if epoch < 15 else 1e-4
            for index in torch.randperm(len(images)).split(32):  # type: ignore[no-untyped-call]
                batch = images.take(index)
                loss = nn.functional.cross_entropy(network(normalise(batch.images)), batch.labels)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
    return network.eval()


@dataclass(frozen=True)
class World:
    """What an owner has: folders, a file of weights, and the accuracy measured there."""

    root: Path
    network: nn.Module
    splits: Splits
    accuracy: float

    @property
    def places(self) -> tuple[Path, Path, Path]:
        return self.root / "train", self.root / "test", self.root / "public"

    def folders(self, **others: Path) -> dict[str, Any]:
        return dict(zip(("train", "test", "public"), self.places, strict=True)) | others

    def arguments(
        self, out: Path, *more: str, model: str = "model.pt", **others: Path
    ) -> list[str]:
        words = ["audit", str(self.root / model), "--arch", "torchvision:resnet18"]
        words += ["--classes", str(CLASSES), "--size", str(SIZE), "--mean", "imagenet"]
        for name, folder in self.folders(**others).items():
            words += [f"--{name}", str(folder)]
        return [*words, "--store", str(out / "store"), "-o", str(out / "report"), *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("owner")
    splits = TASK.load(root)
    export(splits.private.train, root / "train")
    export(splits.private.test, root / "test")
    export(splits.public, root / "public", first=CLASSES)
    for folder in (root / "public").iterdir():
        folder.rename(folder.with_name(folder.name.replace("person", "stranger")))
    network = trained(splits.private.train)
    torch.save(network.state_dict(), root / "model.pt")
    data = ImageFolder(str(root / "test"), Compose([ToTensor(), Normalize(MEAN, STD)]))
    x, y = torch.stack([x for x, _ in data]), torch.tensor(data.targets)
    with torch.no_grad():
        accuracy = 100 * float((network(x).argmax(1) == y).float().mean())
    return World(root, network, splits, accuracy)


@pytest.fixture(scope="module")
def audited(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """All attacks at their shortest, however slow the machine is."""
    place = tmp_path_factory.mktemp("audit")
    options = ("--budget", "600", "--threads", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mibench.auditing.SHARES", SHARES[-1:])
        return CliRunner().invoke(main, world.arguments(place, *options)), place


def test_one_command_leads_from_a_state_dict_to_a_report(
    audited: tuple[Result, Path], world: World
) -> None:
    done, place = audited
    assert done.exit_code == 0, done.output
    assert f"The model is right about {world.accuracy:.2f} % of the 64 test images" in done.stdout
    assert world.accuracy > 60
    assert NO_PROOF in done.stdout
    for attack in ("MI-Face", "GMI", "KED-MI"):
        assert re.search(rf"^ *{attack} / your model .*\d", done.stdout, re.MULTILINE), done.stdout
    assert "Attack Acc of prior samples" in done.stdout
    assert "steps that were timed here: MI-Face" in done.stderr
    page = (place / "report" / "index.html").read_text()
    assert NO_PROOF in page
    assert "mibench run" not in page
    assert "private training images are left out" in page
    with Image.open(place / "report" / "audit.png") as picture:
        assert picture.size[0] > 100
    assert sorted(done.stdout.splitlines()[-2:]) == [
        str(place / "report" / "audit.png"), str(place / "report" / "index.html"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_of_an_audit_has_no_error_and_no_violation(
    audited: tuple[Result, Path], browser: Any, width: int, scheme: str
) -> None:
    _, place = audited
    page, wrong = opened(browser, place / "report" / "index.html", width, scheme)
    for summary in page.query_selector_all("details > summary"):
        summary.evaluate("s => s.parentElement.open = true")
    assert not scrolls_sideways(page)
    assert not violations(page)
    assert page.evaluate("document.querySelectorAll('img:not([alt])').length") == 0
    assert not wrong
    page.close()


def test_a_real_process_finds_what_is_there_and_names_the_test_images_in_train(
    audited: tuple[Result, Path], world: World, tmp_path: Path
) -> None:
    """Those of one class, copied; train images are shown if that is asked for."""
    train = tmp_path / "train"
    shutil.copytree(world.root / "train", train)
    for i, file in enumerate(sorted((world.root / "test" / "person 03").iterdir())):
        shutil.copy(file, train / "person 03" / f"more {i}.png")
    public = tmp_path / "public"
    shutil.copytree(world.root / "public", public)
    shutil.copytree(public / "stranger 00", public / "stranger 01" / "deeper")
    words = world.arguments(
        tmp_path, "--budget", "0.1", "--attacks", "MI-Face", "--with-private", "--quiet",
        train=train, public=public,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mibench.cli", *words], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 of 64 test images are train images too" in done.stdout
    assert "private/test/person 03/" in done.stderr
    assert "Left out of the public images: images in deeper or unknown folders (2)" in done.stdout
    assert (
        "This page shows private training images"
        in (tmp_path / "report" / "index.html").read_text()
    )


def test_a_wrong_normalisation_is_named(world: World, tmp_path: Path) -> None:
    words = world.arguments(tmp_path)
    words[words.index("imagenet")] = "bytes"
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "Wrong: normalisation: with --mean imagenet the model is right about" in done.stderr
    assert "class order" not in done.stderr
    assert "--anyway" in done.stderr
    assert not (tmp_path / "report" / "index.html").exists()


def test_shuffled_classes_are_named_and_an_order_mends_them(world: World, tmp_path: Path) -> None:
    shuffled = {k: v.clone() for k, v in world.network.state_dict().items()}
    order = torch.tensor([2, 0, 1, 4, 3, 5, 7, 6])
    for name in ("fc.weight", "fc.bias"):
        shuffled[name] = shuffled[name][order]
    torch.save(shuffled, world.root / "shuffled.pt")
    words = world.arguments(tmp_path, model="shuffled.pt")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "Wrong: class order: the model's outputs are not in the order" in done.stderr
    assert "output 0 answers to person 02, not to person 00" in done.stderr
    assert "normalisation" not in done.stderr
    file = tmp_path / "report" / "order.txt"
    names = [f"person {i:02d}" for i in order.tolist()]
    assert file.read_text().splitlines() == names
    _, checked = reading(world, tmp_path / "data", shuffled, names)
    assert checked.faults == ()
    assert checked.accuracy == pytest.approx(world.accuracy)


class Coded(nn.Module):
    """Reads a class off the brightness of its images; outputs are in the given order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(order), len(order), bias=False)
        self.fc.weight.data = torch.eye(len(order))[order]

    def forward(self, x: Tensor) -> Tensor:
        read = (x.mean((1, 2, 3)) * 255 / 3).round().long().clamp(0, self.fc.in_features - 1)
        answers: Tensor = self.fc(nn.functional.one_hot(read, self.fc.in_features).float())
        return answers


@pytest.mark.parametrize("swapped", [0, 2])
def test_two_swapped_classes_of_many_are_named(swapped: int) -> None:
    classes = 80  # two of which are less than LEAST_GAIN of all images
    task = replace(TASK, num_classes=classes, images=8, tests=6)
    splits = task.load(Path())
    for part in (splits.private.train, splits.private.test):
        part.pixels[:] = (3 * part.labels[:, None, None, None]).to(torch.uint8)
    order = [*reversed(range(swapped)), *range(swapped, classes)]
    with seeded("coded"):
        network = Coded(order)
    spec, _ = give(network, (3, SIZE, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    checked = check_model(spec, splits, [str(i) for i in range(classes)])
    assert checked.accuracy == pytest.approx(100 * (1 - swapped / classes))
    assert ["class order" in fault for fault in checked.faults] == [True] * (swapped > 0)
    assert list(checked.order) == [str(i) for i in order]


def test_an_interrupt_says_what_is_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mibench.auditing.audit", interrupted)
    done = CliRunner().invoke(main, world.arguments(tmp_path))
    assert done.exit_code == 1
    assert "interrupted; what has finished is kept in" in done.stderr


def reading(
    world: World, place: Path, state: dict[str, Tensor], order: list[str]
) -> tuple[Given, Any]:
    """What is found of a model whose outputs are in an order."""
    names, _ = lay_out(place / "images", *world.places, order)
    task = Folder("images", CLASSES, SIZE)
    network = given.torchvision_network("resnet18", CLASSES, SIZE, state, "these")
    spec, _ = give(network, task.shape, MEAN, STD)
    return spec, check_model(spec, task.load(place), names)


def test_a_sound_model_has_no_faults_and_one_that_guesses_has(
    world: World, tmp_path: Path
) -> None:
    _, checked = reading(world, tmp_path, world.network.state_dict(), [])
    assert checked.faults == ()
    assert checked.order == tuple(f"person {i:02d}" for i in range(CLASSES))
    assert checked.accuracy == pytest.approx(world.accuracy)
    blind = {k: torch.zeros_like(v) if k.startswith("fc") else v
             for k, v in world.network.state_dict().items()}  # fmt: skip
    _, checked = reading(world, tmp_path, blind, [])
    assert [fault.partition(":")[0] for fault in checked.faults] == ["accuracy"]


def test_a_module_is_audited_from_python_and_stays_as_it_was(world: World, tmp_path: Path) -> None:
    """With a second network that judges, and in an order of the classes."""
    network = Net()
    network.train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"accuracy: the model is right about 12\.50 %"):
        mibench.audit(
            network, **world.folders(), size=SIZE, mean="half", store=tmp_path, out=tmp_path / "o"
        )
    audit = mibench.audit(
        network, **world.folders(), size=SIZE, mean="half", evaluator=world.network,
        attacks=["MI-Face"], budget=0.1, store=tmp_path, out=tmp_path / "out", anyway=True,
        device="cpu", threads=1,
    )  # fmt: skip
    assert audit.accuracy == 12.5
    assert any(warning.startswith("accuracy:") for warning in audit.warnings)
    assert audit.results.evaluator is not None
    assert list(audit.results.entries) == ["MI-Face / your model"]
    assert audit.page.is_file()
    assert audit.picture.is_file()
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m._forward_pre_hooks for m in network.modules())


class Net(nn.Module):
    """Answers always the same; what is linear is called in another order than it is named."""

    def __init__(self, answer: str = "logits") -> None:
        super().__init__()
        with seeded("net"):
            self.fc = nn.Linear(5, CLASSES)
            self.body = nn.Linear(3 * SIZE * SIZE, 5)
        nn.init.zeros_(self.fc.weight)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        logits: Tensor = self.fc(self.body(x.flatten(1)))
        if self.answer == "logits":
            return logits
        if self.answer == "softmax":
            return logits.softmax(1)
        if self.answer == "nan":
            return logits * float("nan")
        return (logits,) if self.answer == "tuple" else logits.sin()


def test_the_last_latent_is_what_enters_the_linear_layer_that_is_called_last() -> None:
    shape = (3, SIZE, SIZE)
    for answer in ("logits", "softmax"):
        spec, outputs = give(Net(answer), shape, MEAN, STD)
        assert (spec.last, outputs) == ("fc", CLASSES)
        network = spec.build(shape, CLASSES)
        x = torch.full((2, *shape), 0.7)
        (z,) = network.latents(x)
        own = Net(answer)
        expected = own.body(Normalize(MEAN, STD)(x).flatten(1))
        assert torch.allclose(z, expected, atol=1e-5)
        assert torch.allclose(network(x), own.fc(expected), atol=1e-5)
    with pytest.raises(ValueError, match="has 8 outputs, and there are 9 classes"):
        spec.build(shape, 9)


@pytest.mark.parametrize(
    ("answer", "last", "sentence"),
    [
        ("tuple", "", "must return logits"),
        ("sine", "", "is not what its layer fc returns"),
        ("nan", "", "answers with NaN or infinity: check its weights, and mean and std"),
        ("logits", "body", "is not what its layer body returns"),
        ("logits", "fcc", "unknown layer 'fcc'.*did you mean 'fc'"),
    ],
)
def test_a_network_without_such_a_layer_is_refused(answer: str, last: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        give(Net(answer), (3, SIZE, SIZE), MEAN, STD, last)


def test_a_network_that_takes_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match="does not take images of 1 x 16 x 16"):
        give(Net(), (1, SIZE, SIZE), (0.5,), (0.5,))
    with pytest.raises(ValueError, match="mean has 3 numbers, and images have 1 channels"):
        give(Net(), (1, SIZE, SIZE), MEAN, (0.5,))


@pytest.mark.parametrize(
    ("name", "last", "layer"),
    [
        ("squeezenet1_1", "classifier", "classifier"),
        ("mobilenet_v3_small", "", "classifier.3"),
        ("shufflenet_v2_x0_5", "", "fc"),
    ],
)
def test_networks_of_torchvision_are_taken_by_name(name: str, last: str, layer: str) -> None:
    with seeded("torchvision"):
        state = models.get_model(name, num_classes=5).state_dict()
    network = given.torchvision_network(name, 5, 64, state, "these")
    spec, outputs = give(network, (3, 64, 64), MEAN, STD, last)
    assert (spec.last, outputs) == (layer, 5)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = network.eval()(Normalize(MEAN, STD)(x))
        assert torch.allclose(spec.build((3, 64, 64), 5).eval()(x), own, atol=1e-5)


def test_weights_of_another_network_or_of_more_classes_are_refused() -> None:
    with seeded("torchvision"):
        state = models.resnet18(num_classes=5).state_dict()
    for name, classes in (("resnet18", 4), ("resnet34", 5)):
        with pytest.raises(ValueError, match=rf"is this a {name} of {classes} classes\?"):
            given.torchvision_network(name, classes, 64, state, "these")


def test_weights_change_what_names_a_module_and_another_process_cannot_build_it() -> None:
    spec, _ = give(Net(), (3, SIZE, SIZE), MEAN, STD)
    assert give(Net(), (3, SIZE, SIZE), MEAN, STD)[0] == spec
    other = Net()
    nn.init.ones_(other.fc.weight)
    assert give(other, (3, SIZE, SIZE), MEAN, STD)[0] != spec
    with pytest.raises(ValueError, match="handed over in another process"):
        replace(spec, digest="0").build((3, SIZE, SIZE), CLASSES)


class Box:
    """Something that no digest looks into."""

    __slots__ = ("gain",)


def double(x: Tensor) -> Tensor:
    return 2 * x


def triple(x: Tensor) -> Tensor:
    return 3 * x


def linear() -> nn.Sequential:
    with seeded("linear"):
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES))


class Scaled(nn.Module):
    """Multiplies what a linear layer is handed, by something that no weight tells."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.net = linear()
        buffer = torch.tensor(attributes.pop("buffer", 1.0))
        self.register_buffer("hidden", buffer, persistent=False)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.net(x * getattr(getattr(self, "box", self), "gain", 1.0))


def test_what_no_weight_tells_is_in_what_names_a_module() -> None:
    def digest(**attributes: Any) -> str:
        return give(Scaled(**attributes), (3, SIZE, SIZE), MEAN, STD)[0].digest

    blank = linear()
    blank.load_state_dict({k: 2 * v for k, v in blank.state_dict().items()})
    kept: list[tuple[Any, Any]] = [
        (1.0, 2.0), ("a", "b"), ((1, (2,)), (1, (3,))), ({"a": 1}, {"a": 2}), (double, triple),
        (torch.ones(2), torch.zeros(2)), (nn.ReLU, nn.Tanh), (torch.relu, torch.tanh),
        ([linear()], [blank]),
    ]  # fmt: skip
    for one, other in kept:
        assert digest(kept=one) == digest(kept=one)
        assert digest(kept=one) != digest(kept=other), one
    assert digest(buffer=1.0) != digest(buffer=2.0)
    hooked = linear()
    hooked[0].register_forward_hook(lambda *_: None)
    assert digest(net=hooked) != digest()


def test_a_constant_of_the_file_that_builds_it_is_in_what_names_a_module(tmp_path: Path) -> None:
    digests = set()
    for i, factor in enumerate((0.1, 0.1, 0.9)):
        file = tmp_path / str(i) / "scaled_of_ours.py"
        file.parent.mkdir()
        file.write_text(
            f"from torch import nn\nFACTOR = {factor}\nclass Scaled(nn.Sequential):\n"
            "    def forward(self, x):\n        return super().forward(x * FACTOR)\n"
        )
        kind = load_user_file(file).Scaled
        digests.add(give(kind(*linear()), (3, SIZE, SIZE), MEAN, STD)[0].digest)
        del sys.modules["scaled_of_ours"]
        sys.path.remove(str(file.parent))
    assert len(digests) == 2


def test_two_modules_of_one_name_that_answer_differently_are_refused() -> None:
    boxes = Box(), Box()
    boxes[0].gain, boxes[1].gain = 1.0, -3.0  # type: ignore[attr-defined]
    first = give(Scaled(box=boxes[0]), (3, SIZE, SIZE), MEAN, STD)[0]
    assert give(Scaled(box=boxes[0]), (3, SIZE, SIZE), MEAN, STD)[0] == first
    with pytest.raises(ValueError, match="the same weights and source answer differently"):
        give(Scaled(box=boxes[1]), (3, SIZE, SIZE), MEAN, STD)


def test_a_module_is_held_as_long_as_a_spec_of_it() -> None:
    spec, _ = give(Net(), (3, SIZE, SIZE), MEAN, STD)
    digest, spec = spec.digest, replace(spec, mean=(0.0,))
    gc.collect()
    spec.build((3, SIZE, SIZE), CLASSES)
    assert len(pickle.dumps(spec)) < 2000  # the module stays here
    assert pickle.loads(pickle.dumps(spec)) == spec
    del spec
    gc.collect()
    assert digest not in given.MODULES


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--arch", "torchvision:resnet81"], "unknown network of torchvision 'resnet81'"),
        (["--arch", "resnet18"], "must be torchvision:NAME"),
        (["--arch", "nothing.py"], "no file nothing.py"),
        (["--mean", "imagnet"], "unknown normalisation 'imagnet'"),
        (["--mean", "0.5"], "need numbers as std"),
        (["--std", "abc"], "--std takes numbers with commas between them, got 'abc'"),
        (["--attacks", "PPA"], "unknown attack 'PPA'"),
        (["--attacks", ""], "unknown attack ''"),
        (["--classes", "9"], "fc.weight (8, 512) for (9, 512)"),
        (["--evaluator", "x.pt"], "--evaluator and --evaluator-arch go together"),
        (["--public", "nowhere"], "no folder nowhere"),
        (["--size", "24"], "this GAN draws square images of 8, 16, 32"),
    ],
)
def test_bad_input_is_one_sentence(
    change: list[str], sentence: str, world: World, tmp_path: Path
) -> None:
    done = CliRunner().invoke(main, [*world.arguments(tmp_path), *change])
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == (
        done.stderr.splitlines()[-1:]
    )


def test_other_networks_come_by_a_file(world: World, tmp_path: Path) -> None:
    file = tmp_path / "resnets_of_ours.py"
    file.write_text(
        "from torchvision.models import resnet18\n\n\ndef build(classes):\n"
        "    return resnet18(num_classes=classes)\n"
    )
    from mibench.commands.audit import network_of

    with seeded("file"):
        network = network_of(str(file), world.root / "model.pt", CLASSES, SIZE)
    own = world.network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in network.state_dict().items())
    other = tmp_path / "nothing_of_ours.py"
    other.write_text("build = None\n")
    with pytest.raises(ValueError, match="must define build"):
        network_of(str(other), world.root / "model.pt", CLASSES, SIZE)
    broken = tmp_path / "broken_of_ours.py"
    broken.write_text("def build(classes):\n    return {}[classes]\n")
    with pytest.raises(ValueError, match=r"broken_of_ours.py, line 2: KeyError: 8"):
        network_of(str(broken), world.root / "model.pt", CLASSES, SIZE)
    pickled = tmp_path / "whole.pt"
    torch.save(world.network, pickled)
    with pytest.raises(ValueError, match="nothing in it is executed"):
        network_of("torchvision:resnet18", pickled, CLASSES, SIZE)


def test_many_public_images_are_thinned_evenly(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.running.own_model.MOST_PUBLIC", 50)
    _, counts = lay_out(tmp_path / "images", *world.places)
    assert counts == (43, 128)
    public = tmp_path / "images" / "public"
    assert len(list(public.glob("*/*.png"))) == 43
    assert {folder.name for folder in public.iterdir()} >= {"stranger 00", "stranger 63"}


def test_an_order_must_name_every_folder_once(world: World, tmp_path: Path) -> None:
    names = [f"person {i:02d}" for i in range(CLASSES)]
    for order in ([*names[1:], "somebody"], names[1:], [*names, names[0]]):
        with pytest.raises(ValueError, match="must name each folder"):
            lay_out(tmp_path / "images", *world.places, order)


def test_nobody_is_private_and_public_in_any_order(tmp_path: Path) -> None:
    for name in ("train/anna", "train/bert", "test/anna", "test/bert", "public/bert"):
        (tmp_path / name).mkdir(parents=True)
    train, test, public = (tmp_path / part for part in ("train", "test", "public"))
    for order in ([], ["bert", "anna"]):
        with pytest.raises(ValueError, match="'bert' is both private and public: take its"):
            lay_out(tmp_path / "images", train, test, public, order)


def test_files_that_are_no_links_are_not_removed(world: World, tmp_path: Path) -> None:
    place = tmp_path / "images"
    lay_out(place, *world.places)
    lay_out(place, *world.places)  # its own links are
    (place / "holiday.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holiday.png would be removed"):
        lay_out(place, *world.places)
    assert (place / "holiday.png").read_bytes() == b"mine"


def test_a_normalisation_has_a_name_or_numbers() -> None:
    assert normalisation("half") == ((0.5,), (0.5,))
    assert normalisation("imagenet", (1.0,)) == (MEAN, (1.0,))
    assert normalisation((0.1, 0.2, 0.3), (1, 1, 1)) == ((0.1, 0.2, 0.3), (1, 1, 1))


# Words -----------------------------------------------------------------------------------------


def results(
    acc: list[float],
    control: list[float],
    evaluator: float = 99.0,
    attacks: tuple[str, ...] = ("GMI", "KED-MI"),
) -> Results:
    """Those of attacks with the same scores, class by class."""
    spec = Given("0", (0.5,), (0.5,), "fc")
    task = Folder("images", CLASSES, SIZE)
    table = audit_table(task, spec, None, attacks, Sizes(64, 64, 64), 1)
    test = paired(acc, control)
    mean = sum(control) / len(control)
    beside = Entry(mean, contrast=Contrast("x", "y", (0,), test, test.p, 1, None))
    entries = {
        label: {"accuracy": Entry(90.0), "attack_acc": Entry(sum(acc) / len(acc) - i)}
        for i, label in enumerate(table.rows)
    }
    return Results(
        table, 1, entries, dict.fromkeys(table.rows, 1), {evaluator: tuple(table.rows)}, {},
        CLASSES, controls=dict.fromkeys(table.rows, beside),
    )  # fmt: skip


HIGH = [60.0, 80, 40, 100, 60, 80, 90, 70]
NOISE = [10.0, 20, 0, 10, 30, 0, 20, 10]


def test_the_paragraph_says_what_was_recovered_and_how_sure_that_is() -> None:
    text = verdict(results(HIGH, NOISE))
    assert text.startswith("GMI and KED-MI tried to rebuild images of all 8 classes")
    assert "The attack that recovered most was GMI." in text
    assert "the attacked class in 72.5 % of the 24 reconstructions of GMI" in text
    assert "it recognises 12.5 %; a blind guess gets 12.5 %" in text
    p = paired(HIGH, NOISE).p
    assert p is not None
    assert f"over 8 classes, p = {p:.2g} after correction for 2 attacks" in text  # p / 2 * 2
    assert "the model gives away something" in text
    assert text.endswith(NO_PROOF)


def test_what_is_not_significant_is_said_to_show_nothing() -> None:
    text = verdict(results(NOISE, HIGH))
    assert "these attacks do not show that the model gives anything away" in text
    weak = [n + 4 if i % 4 else n - 7 for i, n in enumerate(NOISE)]
    assert "p = 1 after" not in verdict(results(weak, NOISE))
    assert "not significant" in verdict(results(weak, NOISE))
    assert "gives away something" not in verdict(results(weak, NOISE))


def test_what_was_not_tried_is_named_and_the_floor_alone_is_no_conclusion() -> None:
    said = "For GMI and KED-MI the budget was too short."
    text = verdict(results(NOISE, HIGH, attacks=("MI-Face",)), ["GMI", "KED-MI"])
    assert said in text
    assert "recovered most" not in text
    assert "so this says nothing about the model: give the audit more time" in text
    assert "do not show that the model gives anything away" not in text
    other = verdict(results(NOISE, HIGH, attacks=("GMI",)))
    assert said not in other
    assert "these attacks do not show that the model gives anything away" in other
    assert "gives away something" in verdict(results(HIGH, NOISE, attacks=("MI-Face",)))


def test_a_weak_evaluator_is_named() -> None:
    assert "But the evaluation classifier is right about 50.00 %" in verdict(
        results(HIGH, NOISE, evaluator=50.0)
    )
    assert "But" not in verdict(results(HIGH, NOISE))


# Lengths ---------------------------------------------------------------------------------------


def test_lengths_go_with_the_share_and_the_network_with_the_size() -> None:
    spec = Given("0", (0.5,), (0.5,), "fc")
    sizes = Sizes(640, 640, 6400)

    def row(share: float, name: str) -> Any:
        table = audit_table(Folder("images", 25, SIZE), spec, None, [name], sizes, share)
        return table.rows[f"{name} / your model"]

    assert [row(s, "GMI").attack.steps for s in (0, 0.5, 1, 2)] == [5, 150, 300, 600]
    assert [row(s, "GMI").attack.prior.epochs for s in (0, 0.5, 1, 2)] == [1, 12, 25, 50]
    assert [row(s, "KED-MI").attack.prior.epochs for s in (0, 1)] == [1, 12]
    judges = [row(s, "GMI").setting.evaluators[0].recipe.epochs for s in (0, 0.1, 0.5, 1)]
    assert judges == [1, 15, 30, 60]
    assert row(1, "GMI").trials.classes == 20
    assert SHARES[0] == 16
    assert SHARES[-1] == 1 / 16
    assert isinstance(row(1, "GMI").setting.evaluators[0].network, SCNN)


def test_the_budget_decides_the_length(audited: tuple[Result, Path], world: World) -> None:
    """What a longer budget runs is longer, and what takes too long is left out."""
    from mibench import auditing
    from mibench.running.executors import Bench
    from mibench.store import Store

    _, place = audited
    network = given.torchvision_network(
        "resnet18", CLASSES, SIZE, torch.load(world.root / "model.pt"), "these"
    )
    task = Folder("images", CLASSES, SIZE)
    spec, _ = give(network, task.shape, MEAN, STD)
    data, store = place / "report" / "data", Store(place / "store")
    lengths = auditing._Lengths(task, spec, None, ("GMI", "KED-MI"), task.sizes(data), store, data)
    timed = [lengths.grid(lengths.table(0)), lengths.grid(lengths.table(SHARES[-1]))]
    assert all(not grid.missing for grid in timed)

    def longest(left: float) -> tuple[dict[str, int], str]:
        grid, line = lengths.longest(left, timed, Bench(place / "store", data))
        rows: Any = grid.table.rows
        return {k.partition(" ")[0]: c.attack.steps for k, c in rows.items()}, line

    assert longest(1e9)[0] == {"GMI": 4800, "KED-MI": 8000}
    whole = lengths.seconds(lengths.grid(lengths.table(SHARES[0])), timed, Bench(store.root, data))
    some = [longest(whole * part)[0]["GMI"] for part in (1, 0.5, 0.1, 0.02)]
    assert some == sorted(some, reverse=True)
    assert len(set(some)) > 2
    steps, line = longest(0.0)  # the shortest of all attacks is there
    assert list(steps) == ["GMI", "KED-MI"]
    assert "about 0.0 s." in line
    steps, line = longest(-1.0)
    assert list(steps) == ["GMI"]
    assert "The timed runs took the whole budget." in line
    assert "Left out, since they take longer: KED-MI" in line
