"""The decoder of scores agrees with the numbers of its authors' released code."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mibench.attacks import Decoding, Goal, InversionNetwork
from mibench.attacks.access import Query
from mibench.attacks.decoding import scores
from mibench.attacks.priors.gan import descend_on
from mibench.attacks.priors.scores import Decoder, transformed
from mibench.networks import MLP
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import ImageSet
from tests.golden import read
from tests.toys import tensor, wave

GOLDEN = read("attacks/yang-inversion-network")
ROLES = {"transposed conv": 0, "norm": 1}
KINDS = {"running mean": "running_mean", "running variance": "running_var"}


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any, tolerance: float = 1e-9) -> Any:
    return pytest.approx(want, rel=tolerance, abs=1e-11)


def answers() -> torch.Tensor:
    first = (8 * wave((4, 6), 0.9, 0.3)).softmax(1)
    last = torch.full((2, 6), 1e-30)
    last[0] = torch.tensor([0, 0, 0.7, 0, 0.3, 0])
    last[1, 1] = 1 - 5e-30
    return torch.cat([first, last])


def spec(truncation: int, floor: float = -1000.0) -> InversionNetwork:
    return InversionNetwork(width=4, truncation=truncation % 6, floor=floor)


def decoder(truncation: int) -> Decoder:
    with seeded("shapes only"):
        prior = spec(truncation).build((1, 64, 64), 6)
    own = {}
    for row in GOLDEN["inputs"]["tensors"]:
        found = re.fullmatch(r"stage (\d) (transposed conv|norm) (.*)", row[0])
        assert found is not None
        place = 3 * (int(found[1]) - 1) + ROLES[found[2]]
        own[f"decode.{place}.{KINDS.get(found[3], found[3])}"] = tensor(row)
    strange = prior.load_state_dict(own, strict=False)
    assert not strange.unexpected_keys
    assert all("num_batches_tracked" in name for name in strange.missing_keys)
    return prior


@pytest.mark.parametrize("t", [6, 3, 1])
def test_transform_and_images_are_the_released_ones(t: int) -> None:
    told = GOLDEN["outputs"][f"t={t}"]
    ours = transformed(answers(), t % 6, floor=-1000)
    assert ours.tolist() == [near(row) for row in told["transformed"]]
    prior = decoder(t).eval()
    with torch.no_grad():
        images = {"image_eval": prior.generate(answers())}
        images["image_train (batch statistics), first 4 rows"] = prior.train().generate(
            answers()[:4]
        )
    for name, x in images.items():
        if name in told:
            want = told[name]
            assert list(x.shape) == want["shape"]
            assert x.sum().item() == near(want["sum"])
            assert x.square().sum().item() == near(want["sum_of_squares"])
            assert x.flatten()[want["sample_index"]].tolist() == near(want["sample"])


def test_two_steps_of_training_are_the_released_ones() -> None:
    told = GOLDEN["outputs"]["training_two_steps (t=3)"]
    prior = decoder(3).train()
    optimizer = spec(3).optimizer(prior)
    for (a, b, c), want in zip(((0.9, 0.017, 0.3), (1.2, 0.023, 0.6)), told["loss"], strict=True):
        said = (8 * wave((4, 6), a, 0.3)).softmax(1)
        loss = F.mse_loss(prior.generate(said), 0.5 + 0.5 * wave((4, 1, 64, 64), b, c))
        assert loss.item() == near(want)
        descend_on(loss, optimizer)
    flat = torch.cat([p.detach().flatten() for p in prior.parameters()])
    want = told["parameters_after"]
    assert flat.sum().item() == near(want["sum"], 1e-7)
    assert flat.square().sum().item() == near(want["sum_of_squares"], 1e-7)
    first = next(prior.parameters()).detach().flatten()
    assert first[:8].tolist() == near(told["first_conv_first"], 1e-7)


def test_a_score_of_zero_lifts_no_others_unless_as_released() -> None:
    p = torch.tensor([[0.7, 0.3, 0.0]])
    assert transformed(p)[0].tolist() == near(
        [50 + torch.log(p)[0, i].item() for i in (0, 1)] + [0]
    )
    assert transformed(p, floor=-1000).amax() > 900


def test_scores_are_sure_of_the_class_and_sum_to_one() -> None:
    u = torch.rand(3, 4, 6, generator=generator())
    p = scores(u, torch.tensor([0, 5, 2, 2]), 0.9)
    assert p.sum(2).flatten().tolist() == near([1.0] * 12)
    assert p[:, torch.arange(4), [0, 5, 2, 2]].flatten().tolist() == near([0.9] * 12)
    assert not torch.equal(p[0], p[1])


def test_the_prior_asks_once_about_each_public_image_and_the_attack_nothing() -> None:
    torch.set_default_dtype(torch.float32)
    with seeded("networks"):
        network = MLP().build((1, 8, 8), 4).eval().requires_grad_(requires_grad=False)
        prior = InversionNetwork(**InversionNetwork.small).build((1, 8, 8), 4)
    pixels = (torch.rand(33, 1, 8, 8, generator=generator()) * 255).byte()
    public, work = ImageSet(pixels, torch.zeros(33).long()), Work()
    InversionNetwork(width=4, epochs=3, batch_size=16, lr=0.01).train(
        prior, public, Query(network, "scores", work), generator("train"), work
    )
    assert work.queries == 33
    error = prior.history["error"]
    assert error[-1] < error[0]
    goal = Goal([torch.arange(4)], 2, [generator()], (1, 8, 8))
    made = Decoding().invert(Query(network, "scores", work), prior.eval(), goal, work)
    assert made.images.shape == (2, 4, 1, 8, 8)
    assert work.queries == 33
