"""The hot paths, each one step of what a stage does over and over."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from mibench.attacks import GMI, KEDMI, WGANGP, InversionGAN
from mibench.attacks.gan import GAN, GANSpec
from mibench.benchmarks.tables import digits
from mibench.benchmarks.tables.table3 import MNIST_DEFENSES
from mibench.defenses import Recipe
from mibench.networks import MCNN, SCNN
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Classifier, Defense, ImageSet, predict
from perf import naive

SHAPE = (1, 32, 32)


@dataclass
class Path:
    """A step.

    Attributes:
        name: What it is.
        images: How many images a step is about.
        step: Takes it.
    """

    name: str
    images: int
    step: Callable[[], object]


def every(device: torch.device) -> Iterator[Path]:
    """Yields all hot paths at MNIST's sizes, those of VMI at the digits'."""
    yield from targets(device)
    yield from priors(device)
    yield from attacks(device)
    yield from variational(device)
    yield from evaluation(device)


def frozen(device: torch.device) -> Classifier:
    """Returns a target as attacks meet it."""
    with seeded("perf"):
        network = MCNN().build(SHAPE, 5)
    return network.to(device).eval().requires_grad_(requires_grad=False)


def images(n: int, device: torch.device) -> Tensor:
    """Returns bytes."""
    rng = generator("perf", n)
    return torch.randint(0, 256, (n, *SHAPE), generator=rng).to(torch.uint8).to(device)


def targets(device: torch.device) -> Iterator[Path]:
    """Training of a target, per defense."""
    for label, (_, defense) in MNIST_DEFENSES.items():
        with seeded("perf"):
            network = defense.harden(MCNN().build(SHAPE, 5)).to(device).train()
        step = partial(descend, network, defense, Recipe(epochs=1, lr=1e-4).optimize(network))
        yield Path(f"target training, {label}", 64, step)


def descend(network: Classifier, defense: Defense, optimizer: torch.optim.Optimizer) -> None:
    """Takes a step of a target's training."""
    device = next(network.parameters()).device
    x, y = images(64, device).float() / 255, (torch.arange(64) % 5).to(device)
    terms = defense.loss_terms(network, x, y)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def priors(device: torch.device) -> Iterator[Path]:
    """Five discriminator steps and the generator step that follows them."""
    target = frozen(device)
    n = 64 * 5
    public = ImageSet(images(n, device), torch.full((n,), 5, device=device))
    for spec in (WGANGP(epochs=1), InversionGAN(epochs=1)):
        assert isinstance(spec, GANSpec)
        with seeded("perf"):
            prior = spec.build(SHAPE, 5).to(device)
        seen = target if spec.sees_target else None
        step = partial(spec.train, prior, public, seen, generator("perf"), Work(device=device))
        yield Path(f"{spec.name} training, 5 + 1 steps", n, step)
    with seeded("perf"):
        gan = InversionGAN().build(SHAPE, 5).to(device)
        whole = MCNN().build(SHAPE, 5).to(device).eval()
    training = naive.PriorTraining(gan, whole)

    def plain() -> None:
        rng = generator("perf")
        for i in range(5):
            x = public.pixels[i * 64 : (i + 1) * 64].float() / 255
            z = torch.randn(2, 64, 100, generator=rng).to(device)
            training.discriminate(x, x.flip(0), z[0])
        training.generate(x, z[1])

    yield Path("inversion-gan training, 5 + 1 steps, straightforward", n, plain)


def attacks(device: torch.device) -> Iterator[Path]:
    """Twenty steps of each attack on five classes."""
    target = frozen(device)
    for name, attack in (("gmi", GMI(steps=20)), ("ked-mi", KEDMI(steps=20))):
        with seeded("perf"):
            prior = (
                attack.prior.build(SHAPE, 5).to(device).eval().requires_grad_(requires_grad=False)
            )
        one = ([torch.arange(5)], 1, [generator("perf")], Work(device=device))
        yield Path(
            f"{name}, 20 steps on 5 classes", 100, partial(attack.invert, target, prior, *one)
        )
    with seeded("perf"):
        gan: GAN = InversionGAN().build(SHAPE, 5).to(device).eval()
        whole = MCNN().build(SHAPE, 5).to(device).eval()
    straight = naive.Attack(gan, whole, torch.arange(5).to(device))

    def plain() -> None:
        rng = generator("perf")
        for _ in range(20):
            straight.step(torch.randn(5, 100, generator=rng).to(device))

    yield Path("ked-mi, 20 steps on 5 classes, straightforward", 100, plain)


def variational(device: torch.device) -> Iterator[Path]:
    """Sixteen steps of the StyleGAN of the digits table, and ten of its VMI."""
    spec = replace(digits.STYLEGAN, kimg=16 * digits.STYLEGAN.batch_size / 1000)
    shape = digits.SETTING.task.shape
    with seeded("perf"):
        prior = spec.build(shape, 5).to(device)
        target = digits.SETTING.network.build(shape, 5).to(device)
    rng = generator("perf")
    pixels = torch.randint(0, 256, (900, *shape), generator=rng).to(torch.uint8).to(device)
    public = ImageSet(pixels, torch.full((900,), 5, device=device))
    train = partial(spec.train, prior, public, None, rng, Work(device=device))
    yield Path("stylegan2-ada training, 16 steps", 16 * spec.batch_size, train)
    attack = replace(digits.JOINT, steps=10)
    frozen_prior = copy.deepcopy(prior).eval().requires_grad_(requires_grad=False)
    target.eval().requires_grad_(requires_grad=False)
    one = ([torch.arange(5)], 1, [rng], Work(device=device))
    yield Path(
        "vmi, 10 steps on 5 classes",
        10 * 5 * attack.batch,
        partial(attack.invert, target, frozen_prior, *one),
    )


def evaluation(device: torch.device) -> Iterator[Path]:
    """The evaluation classifier on reconstructions."""
    with seeded("perf"):
        network = SCNN().build(SHAPE, 10).to(device)
    x = images(512, torch.device("cpu")).float() / 255
    yield Path("evaluation classifier", 512, lambda: predict(network, x, generator("perf")))
