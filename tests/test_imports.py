"""Networks of other projects: their layouts, made by hand, come in whole or not at all."""

import csv
import json
import shlex
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.defenses import MID
from mibench.networks import MCNN, SCNN, VGG16, FaceNet, Weights
from mibench.networks.foreign.weights import load_exactly, read_weights
from mibench.roles import NetworkSpec
from mibench.seeding import seeded
from mibench.types import Classifier, Shape

State = dict[str, Tensor]


class ReleasedVGG(nn.Module):
    """The names under which GMI, KED-MI and BiDO keep a VGG with one linear layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.feature = network.get_submodule("features")
        self.bn = network.get_submodule("neck")
        self.fc_layer = network.get_submodule("last")


class ReleasedFace(nn.Module):
    """The names under which KED-MI keeps its face networks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.feature = network.get_submodule("backbone")
        self.fc_layer = network.get_submodule("last")


class ReleasedMID(nn.Module):
    """The names under which MID keeps a VGG with a bottleneck."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.feature = network.get_submodule("features")
        self.st_layer = network.get_submodule("last.statistics")
        self.fc_layer = network.get_submodule("last.classify")


class ReleasedStages(nn.Module):
    """A VGG in stages: other names, the same order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        layers = list(network.get_submodule("features").children())
        self.layer1 = nn.Sequential(*layers[:20])
        self.layer2 = nn.Sequential(*layers[20:])
        self.bn = network.get_submodule("neck")
        self.fc_layer = network.get_submodule("last")


class ReleasedConvolutions(nn.Module):
    """MNIST's networks: a block each, and a linear layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for i, block in enumerate(network.get_submodule("blocks").children(), start=1):
            self.add_module(f"feature{i}", block)
        self.fc = network.get_submodule("last")


def built(spec: NetworkSpec, shape: Shape, classes: int, *, mid: bool = False) -> Classifier:
    with seeded("import", spec.name):
        network = spec.build(shape, classes)
        if mid:
            network = MID(lambda_=0).harden(network)
        for buffer in network.buffers():  # statistics as after some training
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
            else:
                buffer.fill_(7)
    return network.eval()


VGG = VGG16(pretrained=False, width=0.05)
SMALL_VGG = ("--set", "pretrained=false", "--set", "width=0.05")
FACE = FaceNet(width=0.1, size=32, blocks=(1, 1, 1, 1))
SMALL_FACE = ("--set", "width=0.1", "--set", "size=32", "--set", "blocks=[1,1,1,1]")

CASES: dict[str, tuple[str, tuple[str, ...], Classifier, type[nn.Module], Shape]] = {
    "vgg16 of GMI and KED-MI": ("vgg16", SMALL_VGG, built(VGG, (3, 64, 64), 7), ReleasedVGG,
                                (3, 64, 64)),
    "vgg16 of CIFAR-10": ("vgg16", SMALL_VGG, built(VGG, (3, 32, 32), 5), ReleasedVGG,
                          (3, 32, 32)),
    "vgg16 in stages": ("vgg16", SMALL_VGG, built(VGG, (3, 64, 64), 7), ReleasedStages,
                        (3, 64, 64)),
    "vgg16 with MID": ("vgg16", (*SMALL_VGG, "--defense", "mid"),
                       built(VGG, (3, 64, 64), 7, mid=True), ReleasedMID, (3, 64, 64)),
    "facenet": ("facenet", (*SMALL_FACE, "--size", "64"), built(FACE, (3, 64, 64), 9),
                ReleasedFace, (3, 64, 64)),
    "mcnn": ("mcnn", ("--set", "widths=[4,5,6]"), built(MCNN(widths=(4, 5, 6)), (1, 32, 32), 5),
             ReleasedConvolutions, (1, 32, 32)),
    "scnn": ("scnn", ("--set", "widths=[2,3,4,5,6]"),
             built(SCNN(widths=(2, 3, 4, 5, 6)), (1, 32, 32), 10), ReleasedConvolutions,
             (1, 32, 32)),
}  # fmt: skip
WRAPPERS: dict[str, Callable[[State], object]] = {
    "bare": lambda s: s,
    "data parallel": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "with an optimiser": lambda s: {
        "epoch": 50, "best_acc": 0.8, "state_dict": s, "optimizer": {"state": {0: {"step": 1}}},
    },
    "before torch 0.4.1": lambda s: OrderedDict(
        (k, v) for k, v in s.items() if not k.endswith("num_batches_tracked")
    ),
}  # fmt: skip


def bring(*args: object) -> Any:
    return CliRunner().invoke(main, ["import", *map(str, args)])


def read_back(done: Any, name: str, data: Path) -> State:
    assert done.exit_code == 0, done.output
    digest = done.stdout.split("sha256 ")[1].split()[0]
    return read_weights(Weights(f"{name}.safetensors", digest), data)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("case", CASES)
def test_a_released_classifier_comes_in_under_our_names(
    case: str, wrapper: str, tmp_path: Path, rng: torch.Generator
) -> None:
    name, options, network, layout, shape = CASES[case]
    torch.save(WRAPPERS[wrapper](layout(network).state_dict()), tmp_path / "net.tar")
    kind = "target" if "mid" in options or name != "facenet" else "evaluator"
    done = bring(kind, tmp_path / "net.tar", "--as", name, *options, "--data", tmp_path)
    state = read_back(done, "net", tmp_path)
    fresh = built(_spec(name, options), shape, network.num_classes, mid="mid" in options)
    for p in fresh.parameters():
        p.data.zero_()
    load_exactly(fresh, state, "the weights")
    x = torch.rand(2, *shape, generator=rng)
    z = network.latents(x)[-1]
    noise = torch.rand(2, network.noise_dim, generator=rng) if network.noise_dim else None
    assert torch.equal(fresh.head(fresh.latents(x)[-1], noise), network.head(z, noise))
    facts = json.loads((tmp_path / "weights" / "net.json").read_text())
    assert facts["shape"] == list(shape)
    assert facts["classes"] == network.num_classes
    assert facts["network"]["is"] == name


def _spec(name: str, options: tuple[str, ...]) -> NetworkSpec:
    small: dict[str, NetworkSpec] = {
        "vgg16": VGG, "facenet": FACE, "mcnn": MCNN(widths=(4, 5, 6)),
        "scnn": SCNN(widths=(2, 3, 4, 5, 6)),
    }  # fmt: skip
    return small[name]


def broken(state: State) -> dict[str, Any]:
    first, *_, last = state
    return {
        "a weight missing": {k: v for k, v in state.items() if k != first},
        "a weight more": {**state, "extra.weight": torch.ones(1)},
        "another shape": {**state, last: torch.ones(99)},
        "weights swapped": dict(zip(state, reversed(state.values()), strict=True)),
        "no weights": {},
        "one vector": {"a": torch.ones(3)},
        "seven channels": {"a": torch.ones(2, 7, 3, 3), "b": torch.ones(2, 2)},
    }


@pytest.mark.parametrize("what", broken({"a": torch.ones(1), "b": torch.ones(1)}))
def test_what_does_not_fit_is_refused_in_one_sentence_and_nothing_written(
    what: str, tmp_path: Path
) -> None:
    state = ReleasedConvolutions(CASES["mcnn"][2]).state_dict()
    torch.save(broken(dict(state))[what], tmp_path / "net.pth")
    network = ("mcnn", "--set", "widths=[4,5,6]")
    done = bring("target", tmp_path / "net.pth", "--as", *network, "--data", tmp_path)
    if what == "weights swapped":
        assert any(t in done.stderr for t in ("do not fit", "channels", "are not those of"))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Error: " in done.stderr
    assert not (tmp_path / "weights").exists()


def test_an_unknown_network_is_refused(tmp_path: Path) -> None:
    done = bring("target", tmp_path / "x.pth", "--as", "vgg11")
    assert done.exit_code == 2
    assert "unknown network 'vgg11' (did you mean 'vgg19'?); known: mcnn" in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two rows of ``smoke`` are done, their targets as others release them."""
    from mibench.running.grid import record_stages
    from mibench.store import Store

    place = tmp_path_factory.mktemp("trained")
    rows = ["GMI / No Def.", "GMI / MID"]
    done = smoke(place, "out", *rows)
    assert done.exit_code == 0, done.output
    for row, stages in record_stages(TABLES["smoke"].only(rows), 1, place).items():
        payload = Store(place / "store").load(stages[0].evidence[0].inversion.target)
        state = {f"module.{k}": v for k, v in payload["state"].items()}
        torch.save({"state_dict": state}, place / f"{row[6:9].strip()}.tar")
    return place


def smoke(place: Path, out: str, *args: str) -> Any:
    rows = [w for a in args if not a.startswith("--set ") for w in ("--rows", a)]
    given = [w for a in args if a.startswith("--set ") for w in shlex.split(a)]
    folders = [f"--{name}={place / path}" for name, path in (
        ("store", "store"), ("data", "data"), ("out", out))]  # fmt: skip
    command = ["run", "smoke", *rows, *given, *folders, "--quiet", "--executor", "serial"]
    return CliRunner().invoke(main, command)


SMOKE_NETWORK = tuple(
    word
    for field in ("widths=[8,16,32]", "kernels=[3,3,1]", "paddings=[1,1,0]")
    for word in ("--set", field)
)


def numbers(place: Path, out: str, row: str) -> dict[str, str]:
    """Returns a row's numbers but for those that compare it with other rows."""
    text = next((place / out).glob("*.csv")).read_text()
    found = next(line for line in csv.DictReader(text.splitlines()) if line["row"] == row)
    return {k: v for k, v in found.items() if not k.endswith("_diff")}


@pytest.mark.parametrize(("row", "defense"), [("GMI / No Def.", "none"), ("GMI / MID", "mid")])
def test_an_imported_target_gives_the_numbers_of_the_network_it_was(
    row: str, defense: str, trained: Path
) -> None:
    name = row[6:9].strip()
    done = bring("target", trained / f"{name}.tar", "--as", "mcnn", *SMOKE_NETWORK, "--size", 8,
                 "--defense", defense, "--data", trained / "data")  # fmt: skip
    assert done.exit_code == 0, done.output
    options = done.stdout.split("to use it: ")[1].strip()
    again = smoke(trained, name, row, options)
    assert again.exit_code == 0, again.output
    assert "modified" in again.stdout
    assert numbers(trained, name, row) == numbers(trained, "out", row)
    if defense == "mid":  # the same file is no network without a bottleneck
        wrong = smoke(trained, "wrong", "GMI / No Def.", options)
        assert wrong.exit_code == 2
        assert "do not fit" in wrong.stderr
        assert "missing: last.weight, last.bias; unexpected: " in wrong.stderr


IMPORTED = (
    '--set \'setting.network={"is":"imported","network":{"is":"mcnn"},'
    '"weights":{"file":"x.safetensors","sha256":"0123456789"}}\''
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--set recipe.epochs=0"], "a recipe of 0 epochs leaves mcnn untrained"),
        (["--set setting.evaluators.0.recipe.epochs=0"], "leaves scnn untrained"),
        ([IMPORTED, "--set recipe.epochs=0"], "x.safetensors is missing"),
        ([IMPORTED.replace("x.safe", "../x.safe")], "without folders"),
        ([IMPORTED.replace("mcnn", "vgg11")], "setting.network takes one of "),
    ],
)
def test_a_target_that_cannot_be_had_is_refused_before_anything_runs(
    options: list[str], told: str, tmp_path: Path
) -> None:
    done = smoke(tmp_path, "out", "GMI / No Def.", *options)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_changed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "x.safetensors").write_bytes(b"other")
    done = smoke(tmp_path, "out", "GMI / No Def.", IMPORTED, "--set recipe.epochs=0")
    assert done.exit_code == 2
    assert "not 0123456789" in done.stderr
