"""IF-GMI, MIRROR and PPDG-MI agree with the numbers of their authors' released code."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mibench.attacks import IFGMI, Goal, Mirror, ifgmi, mirror
from mibench.attacks.ifgmi import onto_ball
from mibench.attacks.mirror import Box
from mibench.attacks.priors.stylegan import StyleGANPrior
from mibench.attacks.selection import scores, surest
from mibench.networks.generators.stylegan2 import Discriminator, Generator
from mibench.seeding import generator, seeded
from mibench.store import Work
from tests.golden import read
from tests.toys import InTurn, Styled, Toy, tensor, wave

REFERENCE = os.environ.get("MIBENCH_STYLEGAN_REFERENCE", "")
STAGES = read("attacks/ifgmi-stages")
TIGHT = 1e-9


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    InTurn.calls[0] = 0
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any, tolerance: float = TIGHT) -> Any:
    return pytest.approx(want, rel=tolerance, abs=1e-11)


def check(x: Tensor, want: Mapping[str, Any]) -> None:
    assert x.numel() == torch.Size(want["shape"]).numel()
    assert x.sum().item() == near(want["sum"])
    assert x.square().sum().item() == near(want["sum_of_squares"])
    assert x.flatten()[want["sample_index"]].tolist() == near(want["sample"])


# IF-GMI -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", read("attacks/ifgmi-l1-ball")["outputs"]["rows"])
def test_the_ball_is_the_released_one(row: dict[str, Any]) -> None:
    got = onto_ball(torch.tensor(row["x"]), row["radius"])
    assert got.tolist() == [near(want) for want in row["projection"]]
    assert got.abs().sum(1).tolist() == near(row["l1_after"])


@pytest.mark.skipif(not REFERENCE, reason="MIBENCH_STYLEGAN_REFERENCE names no file")
def test_stages_are_the_released_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(REFERENCE).items()}
    with seeded("shapes only"):
        prior = StyleGANPrior(
            Generator(64, 64, 64, 3, 2, 1024, 32).double(), Discriminator(64, 3, 1024, 32)
        )
    head = "rgb64/G/"
    own = {k.removeprefix(head): v.double() for k, v in arrays.items() if k.startswith(head)}
    prior.generator.load_state_dict(own)
    prior.eval().requires_grad_(requires_grad=False)
    monkeypatch.setattr(Tensor, "float", lambda self: self)  # everything is of float64
    monkeypatch.setattr(
        "mibench.networks.generators.stylegan2.synthesis.at_precision", lambda x, fp16: x
    )
    handed: list[Tensor] = []
    until = StyleGANPrior.until

    def noted(self: StyleGANPrior, ws: Tensor, blocks: int, begun: Any = None) -> Any:
        end = until(self, ws, blocks, begun)
        if blocks < 5:
            handed.append(end.maps)
        return end

    monkeypatch.setattr(StyleGANPrior, "until", noted)
    w0 = tensor(STAGES["inputs"]["w0 (one w for all layers)"])[:, 0]
    monkeypatch.setattr(ifgmi, "chosen_styles", lambda *_: (w0[None].clone(), w0))
    sizes = STAGES["hyperparameters"]
    attack = IFGMI(
        steps=tuple(sizes["steps"]), style_radii=tuple(sizes["w_radius_by_stage"]),
        map_radii=tuple(sizes["feature_radius_by_stage"]), skip="dropped", judged="before-last",
        augment=(), pool=2,
    )  # fmt: skip
    goal = Goal([torch.tensor([0, 3])], 1, [generator()], (3, 64, 64))
    target = Toy(STAGES["inputs"]["target_tensors"], signed=True)
    images: list[Tensor] = []
    synthesise = StyleGANPrior.synthesise

    def unclamped(
        self: StyleGANPrior, ws: Tensor, *, clamp: bool = True, begun: Any = None
    ) -> Any:
        x = synthesise(self, ws, clamp=False, begun=begun)
        if clamp:
            images.append(2 * x - 1)
        return x

    monkeypatch.setattr(StyleGANPrior, "synthesise", unclamped)
    made = attack.invert(target, prior, goal, Work())
    told = STAGES["outputs"]["stages"]
    for x, maps, want in zip(images, handed, told, strict=True):
        check(x, want["images_of_the_stage (before its last update)"])
        check(maps, want["feature_map_handed_on"])
    check(made.latents, told[-1]["w_after"])


# MIRROR -------------------------------------------------------------------------------------


def test_the_learning_rate_is_the_released_one() -> None:
    told = read("attacks/mirror-schedule")["outputs"]["lr_at_epoch_0_to_end"]
    assert [0.25 * mirror.rate(i / 40, 0.05, 0.25) for i in range(41)] == near(told)


def test_the_box_of_styles_is_the_released_one() -> None:
    told = read("attacks/mirror-genetic")["outputs"]
    raw = 0.2 + 1.4 * wave((200, 12), 0.77, 0.2) + 0.6 * wave((200, 12), 2.541, 0.5)
    pool = torch.nn.functional.leaky_relu(raw, 0.2)
    box = Box.of(pool[None], 1.0)
    assert ((box.high + box.low) / 2)[0].tolist() == near(told["P_mean"])
    assert ((box.high - box.low) / 2)[0].tolist() == near(told["P_std"])
    w = torch.cat([3 * wave((3, 12), 1.1, 0.4), pool[:2]])[:, None]
    assert box.clip(w)[:, 0].tolist() == [near(row) for row in told["clipped"]]


def test_each_class_has_its_block_s_box() -> None:
    box = Box(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]]))
    goal = Goal([torch.arange(2), torch.arange(2, 5)], 1, [generator()] * 2, (1, 8, 8))
    assert box.of_each(goal).low.flatten().tolist() == [0, 0, 1, 1, 1]


def test_what_is_kept_has_the_lowest_loss_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = read("attacks/alignmi-ppa-average")["inputs"]
    prior, target = Styled(inputs["L"], inputs["S"]), Toy(inputs["target_tensors"], signed=True)
    w0 = tensor(inputs["w0"])[:, 0]
    monkeypatch.setattr(mirror, "chosen_styles", lambda *_: (w0[None].clone(), w0.repeat(2, 1)))
    goal = Goal([torch.tensor([0, 1, 3, 4])], 1, [generator()], (3, 8, 8))
    attack = Mirror(pool=8, steps=12, lr=3.0, augment=())
    made = attack.invert(target, prior, goal, Work())
    losses = torch.stack(
        [attack.wrong(target, prior.synthesise(w[:, None].expand(-1, 4, -1), clamp=False),
                      goal.rows(1)) for w in prior.given[:12]]
    )  # fmt: skip
    best = losses.argmin(0)
    want = torch.stack([prior.given[int(i)][k] for k, i in enumerate(best)])
    assert torch.equal(made.latents[0], want)
    assert (best < 11).any()
    assert not torch.equal(prior.given[2], prior.given[3])


# PPDG-MI ------------------------------------------------------------------------------------


def test_candidates_are_ranked_as_released() -> None:
    golden = read("attacks/ppdgmi-ranking")
    inputs, told = golden["inputs"], golden["outputs"]
    target = Toy(inputs["target_tensors"])
    x = (tensor(inputs["z"]) @ (0.3 * wave((192, 6), *inputs["M"])).T).tanh().view(-1, 3, 8, 8)
    kept: list[int] = []
    said: list[float] = []
    for label, place in ((2, slice(0, 7)), (4, slice(7, 12))):
        mine = x[place, None]
        goal = Goal([torch.tensor([label])], 1, [generator()], (3, 8, 8))
        before = InTurn.calls[0]
        got = surest(target, goal, mine, lambda x: x, 3, (InTurn(looks=100),))
        InTurn.calls[0] = before
        sure = scores(target, x[place], lambda x: x, (InTurn(looks=100),), generator())
        said += sure[:, label].tolist()
        kept += [int((x == g).flatten(1).all(1).nonzero()) for g in got]
    assert kept == told["kept_indices"]
    assert said == near(told["scores (ours)"])
