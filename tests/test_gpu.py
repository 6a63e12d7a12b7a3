"""What a GPU must do as the CPU does. Elsewhere ``tests/test_elsewhere.py`` rehearses it."""

from pathlib import Path

import pytest
import torch

from mibench.attacks import GMI, KEDMI, Goal
from mibench.networks import MCNN
from mibench.networks.fold import quick
from mibench.precision import PRECISIONS, at
from mibench.roles import Attack
from mibench.running.checks import tiny
from mibench.running.executors import Bench, Serial, execute
from mibench.running.progress import Watcher
from mibench.running.stages import graph
from mibench.seeding import generator, seeded
from mibench.store import Store, Work
from mibench.types import Reconstructions
from tests.test_elsewhere import inversion, small

SHAPE = (1, 16, 16)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def invert(attack: Attack, device: str) -> Reconstructions:
    with seeded("test"):
        target = MCNN((4, 8), (5, 3), (1, 0)).build(SHAPE, 5).to(device).eval()
        prior = tiny(type(attack.prior)).build(SHAPE, 5).to(device).eval()
    for network in (target, prior):
        network.requires_grad_(requires_grad=False)
    goal = Goal([torch.arange(5)], 2, [generator("x")], SHAPE, torch.device(device))
    return attack.invert(target, prior, goal, Work(device=device))


@pytest.mark.parametrize("attack", [GMI(steps=3), KEDMI(steps=3)], ids=lambda a: a.name)
def test_an_attack_ends_where_the_cpus_does(attack: Attack) -> None:
    there, here = (invert(attack, device).images.cpu() for device in ("cuda", "cpu"))
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_stages_give_the_same_bits_again(precision: str, tmp_path: Path) -> None:
    last = inversion(small(KEDMI))
    payloads = []
    for side in "ab":
        (tmp_path / side).mkdir()
        bench = Bench(tmp_path / side, Path(), "cuda", precision=precision)
        assert not execute(graph([last]), bench, Watcher(), Serial()).failures
        metas = [Store(tmp_path / side).meta(stage) for stage in graph([last])]
        payloads.append([meta["sha256"]["payload.safetensors"] for meta in metas])
    assert payloads[0] == payloads[1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_quick_network_is_the_plain_one(precision: str) -> None:
    with seeded("test"):
        network = MCNN((4, 8), (5, 3), (1, 0)).build(SHAPE, 5).cuda().eval()
    x = torch.rand(7, *SHAPE, generator=generator("x")).cuda()
    with at(precision), torch.no_grad():
        torch.testing.assert_close(quick(network)(x), network(x), rtol=0.02, atol=0.02)
