"""Checkpoints are read by the names in them, whatever order they come in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mibench.cli import main
from mibench.networks import Weights
from mibench.networks.foreign.released import released_classifier
from mibench.networks.foreign.weights import read_weights
from mibench.seeding import seeded
from tests.test_imports import CASES, ReleasedStages

State = dict[str, Tensor]
MNIST = CASES["mcnn"]


def bring(kind: str, file: Path, *options: object) -> Any:
    words = ["import", kind, file, *options, "--data", file.parent]
    return CliRunner().invoke(main, list(map(str, words)))


def weights_of(done: Any, file: Path) -> State:
    assert done.exit_code == 0, done.output
    digest = done.stdout.split("sha256 ")[1].split()[0]
    return read_weights(Weights(f"{file.stem}.safetensors", digest), file.parent)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.parametrize("case", [name for name in CASES if name != "vgg16 in stages"])
@pytest.mark.parametrize("layout", ["ours", "released", "data parallel"])
def test_a_classifier_comes_in_from_safetensors(case: str, layout: str, tmp_path: Path) -> None:
    name, options, network, released, shape = CASES[case]
    state = (network if layout == "ours" else released(network)).state_dict()
    prefix = "module." if layout == "data parallel" else ""
    file = tmp_path / "a.safetensors"
    save_file({prefix + k: v.contiguous() for k, v in state.items()}, file)
    kind = "target" if "mid" in options or name != "facenet" else "evaluator"
    done = bring(kind, file, "--as", name, *options)
    assert same(weights_of(done, file), network.state_dict())
    facts = json.loads((tmp_path / "weights" / "a.json").read_text())
    assert (facts["shape"], facts["classes"]) == (list(shape), network.num_classes)


@pytest.mark.parametrize("order", ["sorted", "reversed"])
def test_a_mapping_in_another_order_is_the_same_network(order: str, tmp_path: Path) -> None:
    name, options, network, _, _ = MNIST
    names = sorted(network.state_dict(), reverse=order == "reversed")
    torch.save({k: network.state_dict()[k] for k in names}, tmp_path / "a.pt")
    done = bring("target", tmp_path / "a.pt", "--as", name, *options)
    assert same(weights_of(done, tmp_path / "a.pt"), network.state_dict())


def test_unknown_names_without_an_order_are_refused(tmp_path: Path) -> None:
    name, options, network, _, _ = CASES["vgg16 in stages"]
    file = tmp_path / "a.safetensors"
    save_file(ReleasedStages(network).state_dict(), file)
    done = bring("target", file, "--as", name, *options)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


def test_layers_alike_are_not_placed_by_the_alphabet() -> None:
    """Sorted by name, the tenth of equal layers comes before the second."""

    class Stack(torch.nn.Module):
        def __init__(self, channels: int, classes: int) -> None:
            super().__init__()
            self.draw = torch.nn.Sequential(
                *(torch.nn.Conv2d(channels, channels, 1, bias=False) for _ in range(12))
            )
            self.last = torch.nn.Linear(4, classes, bias=False)

    def build(shape: tuple[int, int, int], classes: int) -> Any:
        return Stack(shape[0], classes)

    with seeded("stack"):
        state = Stack(3, 5).state_dict()
    theirs = {k.replace("draw", "a").replace("last", "z"): v for k, v in state.items()}
    found, shape, classes = released_classifier(theirs, build, 8, "the weights")
    assert same(found, state)
    assert (shape, classes) == ((3, 8, 8), 5)
    with pytest.raises(ValueError, match="sorted by name, which says nothing"):
        released_classifier(dict(sorted(theirs.items())), build, 8, "the weights")


def test_a_head_too_many_is_named_as_such(tmp_path: Path) -> None:
    name, options, network, released, _ = MNIST
    more = {"domain.weight": torch.ones(2, 24), "domain.bias": torch.ones(2)}
    torch.save(released(network).state_dict() | more, tmp_path / "a.pt")
    done = bring("target", tmp_path / "a.pt", "--as", name, *options)
    assert done.exit_code == 2
    assert "unexpected: domain.weight, domain.bias" in done.stderr
    assert "shape" not in done.stderr


def averaged(wrapper: str) -> dict[str, Any]:
    network = MNIST[2]
    copies: dict[str, dict[str, Any]] = {
        "timm": {"epoch": 3, "state_dict_ema": network.state_dict()},
        "nested": {"ema": {"model": network.state_dict()}, "optimizer": {}},
        "torch": dict(AveragedModel(network).state_dict()),
    }
    return copies[wrapper]


@pytest.mark.parametrize("wrapper", ["timm", "nested", "torch"])
def test_an_averaged_copy_alone_is_taken_and_said(wrapper: str, tmp_path: Path) -> None:
    name, options, network, _, _ = MNIST
    torch.save(averaged(wrapper), tmp_path / "a.pt")
    done = bring("target", tmp_path / "a.pt", "--as", name, *options)
    assert same(weights_of(done, tmp_path / "a.pt"), network.state_dict())
    assert "averaged copy of the weights only" in done.stderr


def test_beside_the_weights_themselves_an_averaged_copy_is_left(tmp_path: Path) -> None:
    name, options, network, _, _ = MNIST
    state = network.state_dict()
    ema = {k: torch.zeros_like(v) for k, v in state.items()}
    torch.save({"model_ema": ema, "model": state}, tmp_path / "a.pt")
    done = bring("target", tmp_path / "a.pt", "--as", name, *options)
    assert same(weights_of(done, tmp_path / "a.pt"), state)
    assert "averaged" not in done.stderr
