"""LOKT's prior and attack agree with the numbers of its authors' released code."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import LOKT, TACGAN, Goal
from mibench.attacks.access import Query
from mibench.attacks.priors.gan import descend_on
from mibench.attacks.priors.tacgan import AuxiliaryGAN
from mibench.networks import MLP
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Images, ImageSet, Labels, Prior
from tests.golden import read
from tests.test_golden_plg import named
from tests.toys import InTurn, Toy, tensor, wave

ITERATION = read("attacks/lokt-tacgan-iteration")
INPUTS = ITERATION["inputs"]
SPEC = TACGAN(z_dim=8, generator_width=4, discriminator_width=4, critic_steps=2, pixels="released")
LABELS = torch.tensor([0, 3, 1, 4])
HEADS = {"real/fake head": "judge", "class head": "classes"}


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def near(want: Any, tolerance: float = 1e-9) -> Any:
    return pytest.approx(want, rel=tolerance, abs=1e-11)


def networks() -> AuxiliaryGAN:
    with seeded("shapes only"):
        gan = SPEC.build((3, 64, 64), 5)
    for rows, network in ((INPUTS["G_tensors"], gan.generator),
                          (INPUTS["D_tensors"], gan.discriminator)):  # fmt: skip
        own = {}
        for row in rows:
            head, _, kind = row[0].rpartition(" ")
            name = f"{HEADS[head]}.{kind}" if head in HEADS else (
                named(row[0], network is gan.discriminator)
            )  # fmt: skip
            own[name] = tensor(row)
        strange = network.load_state_dict(own, strict=False)
        assert not strange.unexpected_keys
        assert all("num_batches_tracked" in name for name in strange.missing_keys)
    return gan


@pytest.mark.parametrize("asks", [True, False])
def test_an_iteration_of_training_is_the_released_one(asks: bool) -> None:
    told = next(
        v for k, v in ITERATION["outputs"].items() if k.startswith("iteration that asks") == asks
    )
    gan = networks().train()
    target = Toy(INPUTS["target_tensors"])
    optimizers = SPEC._optimizers(gan)
    said: list[Tensor] = []

    class Noting(Query):
        def __call__(self, x: Images) -> Tensor:
            said.append(super().__call__(x))
            return said[-1]

    work = Work()
    query = Noting(target, "labels", work)

    def draws(i: int) -> tuple[Tensor, Tensor]:
        return 1.5 * wave((4, 8), 0.7 + 0.05 * i, 0.1), (LABELS + i) % 5

    def moved(loss: Tensor, which: int, want: Mapping[str, Any]) -> None:
        network = (gan.generator, gan.discriminator)[which]
        descend_on(loss, optimizers[which])
        weights = list(network.parameters())
        gradients = torch.cat([p.grad.flatten() for p in weights if p.grad is not None])
        assert gradients.norm().item() == near(want["gradient_norm"], 1e-8)
        flat = torch.cat([p.detach().flatten() for p in weights])
        assert flat.sum().item() == near(want["sum"], 1e-7)
        assert flat.square().sum().item() == near(want["sum_of_squares"], 1e-7)

    terms = [value * (SPEC.alpha if "class" in name else 1)
             for name, value in told["losses_in_order"]]  # fmt: skip
    sizes = (2, 3, 3) if asks else (1, 2, 2)
    sums = [sum(part) for part in (terms[: sizes[0]], terms[sizes[0] : sum(sizes[:2])],
                                   terms[sum(sizes[:2]) :])]  # fmt: skip
    steps = told["after_each_optimiser_step"]
    loss = SPEC.for_generator(gan, *draws(0), asks)
    assert loss.item() == near(sums[0])
    moved(loss, 0, steps[0])
    for i in range(2):
        reals = 0.5 + 0.5 * wave((4, 3, 64, 64), 0.013 + 0.004 * i, 0.4)
        loss = SPEC.for_discriminator(gan, query, reals, *draws(1 + i), asks)
        assert loss.item() == near(sums[1 + i])
        moved(loss, 1, steps[1 + i])
    assert [labels.tolist() for labels in said] == told["target_labels_of_fakes"]


class Linear(Prior):
    """image = tanh(M z + E_y)."""

    def __init__(self, M: Tensor, E: Tensor, z0: Tensor, surrogates: list[Toy]) -> None:
        super().__init__()
        self.z_dim, self.M, self.E, self.z0 = 8, M, E, z0
        self.surrogates.extend(surrogates)
        self.given: list[Tensor] = []

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.z0

    def generate(self, z: Tensor, y: Labels | None = None) -> Images:
        self.given.append(z.detach().clone())
        return (z @ self.M.T + self.E[y]).tanh().view(-1, 3, 8, 8)


def test_steps_of_the_attack_are_the_released_ones() -> None:
    golden = read("attacks/lokt-surrogate-attack")
    inputs = golden["inputs"]
    surrogates = [Toy(rows) for rows in inputs["surrogates"]]
    M, E, z0 = (tensor(inputs[name]) for name in ("M", "E", "z0"))
    prior = Linear(M, E, z0, surrogates)
    InTurn.calls[0] = 0
    goal = Goal([torch.tensor(inputs["labels"])], 1, [generator()], (3, 8, 8))
    work = Work()
    target = Query(surrogates[0], "labels", work)
    LOKT(steps=4, augment=(InTurn(), InTurn())).invert(target, prior, goal, work)
    told = golden["outputs"]["z_before_step_0_to_3_and_after"]
    for z, want in zip(prior.given, told, strict=True):
        assert z.flatten()[: len(want)].tolist() == near(want)
    assert work.queries == 0
    assert work.surrogate_gradients == 4 * 3 * 2 * 4


@pytest.mark.parametrize("warm_up", [0, 2])
def test_the_prior_asks_for_what_it_says(warm_up: int) -> None:
    torch.set_default_dtype(torch.float32)
    spec = replace(TACGAN(**TACGAN.small), warm_up=warm_up, epochs=2, batch_size=8)
    with seeded("networks"):
        network = MLP().build((1, 8, 8), 4).eval().requires_grad_(requires_grad=False)
        prior = spec.build((1, 8, 8), 4)
    pixels = (torch.rand(33, 1, 8, 8, generator=generator()) * 255).byte()
    work = Work()
    query = Query(network, "labels", work)
    spec.train(prior, ImageSet(pixels, torch.zeros(33).long()), query, generator("train"), work)
    assert work.queries == spec.planned_answers(33, 4, False)
    assert work.queries == (2 * 4 - 2 * warm_up) * 8 + 4 * 6
