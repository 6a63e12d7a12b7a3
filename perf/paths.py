"""The hot paths, each one step of what a stage does over and over."""

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import Tensor

from mibench.attacks import GMI, KEDMI, WGANGP, Goal, InversionGAN
from mibench.attacks.priors.gan import GAN, GANSpec
from mibench.benchmarks.tables import avatars, defenses_avatars, digits
from mibench.benchmarks.tables.table3 import MNIST_DEFENSES
from mibench.data import Corpus
from mibench.defenses import DEFENSES, NoDefense, Recipe, Release, RoLSS
from mibench.evaluation.fid import frechet_distance
from mibench.networks import MCNN, SCNN
from mibench.roles import Attack, Batch, Defense
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Classifier, ImageSet, Prior, Shape, predict
from perf import naive

SHAPE = (1, 32, 32)
CLASSES = 30
DEPENDENCE = {"measure": "nhsic", "lambda_x": 0.05, "lambda_y": 0.5}
VALUES: dict[str, dict[str, Any]] = {
    "mid": {"lambda_": 0.02},
    "bido": DEPENDENCE,
    "bido-plus": DEPENDENCE,
    "bido-plus-er": DEPENDENCE,
    "unilateral": {"lambda_": 1.0},
    "tl-dmi": {"last_frozen": "blocks.1", "start": "random"},
}
"""What a defense is given that has no default, or none that fits the network."""


@dataclass
class Path:
    """A hot path.

    Attributes:
        name: What a step of it is.
        images: How many images a step is about.
        run: Takes ``steps`` steps.
        steps: How many.
        against: The path that it is compared with.
        costs: Whether the ratio is how much longer it takes, not how much shorter.
        rounds: In how many rounds it takes part, without a warm-up; None for all.
    """

    name: str
    images: int
    run: Callable[[], object]
    steps: int = 1
    against: str = ""
    costs: bool = False
    rounds: int | None = None


def every(device: torch.device) -> Iterator[Path]:
    """Yields all hot paths at MNIST's sizes, those of VMI at the digits'.

    On a GPU also what attacking many blocks and restarts in one batch brings.
    """
    yield from targets(device)
    yield from defenses(device)
    yield from priors(device)
    yield from attacks(device)
    yield from variational(device)
    yield from evaluation(device)
    yield from distances()
    if device.type == "cuda":
        yield from batches(device)


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
        plain = "target training, No Def."
        name = f"target training, {label}"
        yield Path(name, 64, step, against=plain * (name != plain), costs=True)


def defenses(device: torch.device, batch: int = 64, steps: int = 3) -> Iterator[Path]:
    """A step of each defense in training, at its defaults, on the networks of defenses-avatars.

    It is one of the last epoch, in which all of a schedule is in effect. Those that need skips
    train another network, and are compared with its plain step.
    """
    shape, epochs = avatars.SETTING.task.shape, 10
    rng = generator("perf")
    x = torch.rand(batch, *shape, generator=rng).to(device)
    pixels = torch.zeros(4 * batch, *shape, dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(4 * batch) % CLASSES)
    corpus = Corpus(data, torch.zeros(4 * batch, dtype=torch.bool), data, CLASSES)
    recipe = Recipe(epochs=epochs, batch_size=batch, select="last")
    y = data.labels[:batch].to(device)
    skips = defenses_avatars.FACE.network
    trained = {name: cls for name, cls in DEFENSES.items() if not issubclass(cls, Release)}
    chosen: dict[str, Defense] = {n: cls(**VALUES.get(n, {})) for n, cls in trained.items()}
    for name, defense in {**chosen, f"none, {skips.name}": NoDefense()}.items():
        on_skips = isinstance(defense, RoLSS) or name.endswith(skips.name)
        network = skips if on_skips else avatars.SETTING.network
        plain = f"defenses: none, {skips.name}" if on_skips else "defenses: none"
        with seeded("perf"):
            target = defense.harden(network.build(shape, CLASSES)).to(device).train()
            helper = defense.assist(target, recipe, corpus, generator("perf"))
        if helper is not None:
            helper.epoch_begins(epochs - 1)
        outliers = x.flip(0) if defense.wants_outliers else None
        given = Batch(x, y, epochs - 1, epochs, batch, generator("perf"), helper, outliers)
        optimizer = recipe.optimize(target)
        run = partial(repeat, steps, partial(defense.step, target, given, optimizer))
        title = f"defenses: {name}"
        yield Path(title, batch, run, steps, against=plain * (title != plain), costs=True)


def repeat(times: int, run: Callable[[], object]) -> None:
    """Calls a function a number of times."""
    for _ in range(times):
        run()


def descend(network: Classifier, defense: Defense, optimizer: torch.optim.Optimizer) -> None:
    """Takes a step of a target's training."""
    device = next(network.parameters()).device
    x, y = images(64, device).float() / 255, (torch.arange(64) % 5).to(device)
    terms = defense.loss_terms(network, Batch(x, y))
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
        seen = None if spec.access == "none" else target
        train: Callable[..., None] = spec.train  # which of three a target is, ``access`` says
        step = partial(train, prior, public, seen, generator("perf"), Work(device=device))
        name = f"{spec.name} training, 5 + 1 steps"
        yield Path(name, n, step, against=f"{name}, straightforward")
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


def attacks(device: torch.device, steps: int = 100) -> Iterator[Path]:
    """Each attack on five classes: a twentieth of its steps, what it does first included."""
    target = frozen(device)
    for attack in (GMI(steps=steps), KEDMI(steps=steps)):
        with seeded("perf"):
            prior = (
                attack.prior.build(SHAPE, 5).to(device).eval().requires_grad_(requires_grad=False)
            )
        name = f"{attack.name} on 5 classes"
        run = partial(invert_blocks, attack, target, prior, SHAPE, Work(device=device), [1], 1)
        yield Path(name, 5, run, steps, against=f"{name}, straightforward")
    with seeded("perf"):
        gan: GAN = InversionGAN().build(SHAPE, 5).to(device).eval()
        whole = MCNN().build(SHAPE, 5).to(device).eval()
    with device:
        straight = naive.Attack(gan, whole, torch.arange(5))

    def plain() -> None:
        rng = generator("perf")
        for _ in range(20):
            straight.step(torch.randn(5, 100, generator=rng).to(device))

    yield Path("ked-mi on 5 classes, straightforward", 5, plain, 20)


def batches(
    device: torch.device, blocks: int = 5, restarts: int = 5, steps: int = 20
) -> Iterator[Path]:
    """Attacks on blocks of five classes: all of them in a batch, and one after the other.

    KED-MI's restarts are blocks of their own.
    """
    target = frozen(device)
    work = Work(device=device)
    for attack in (GMI(steps=steps), KEDMI(steps=steps)):
        with seeded("perf"):
            prior = attack.prior.build(SHAPE, 5).to(device)
        prior.eval().requires_grad_(requires_grad=False)
        samples = restarts if attack.name == "gmi" else 1
        on = partial(invert_blocks, attack, target, prior, SHAPE, work)
        images = 5 * blocks * restarts
        name = f"{attack.name} on {blocks} blocks x {restarts} restarts"
        together = partial(on, [blocks * restarts // samples], samples)
        apart = partial(on, [1] * (blocks * restarts), 1)
        yield Path(name, images, together, steps, against=f"{name}, one at a time")
        yield Path(f"{name}, one at a time", images, apart, steps)


def invert_blocks(
    attack: Attack,
    target: Classifier,
    prior: Prior,
    shape: Shape,
    work: Work,
    counts: list[int],
    samples: int,
) -> None:
    """Attacks so many blocks of five classes at a time."""
    for count in counts:
        rngs = [generator("perf", i) for i in range(count)]
        goal = Goal([torch.arange(5)] * count, samples, rngs, shape, work.device)
        attack.invert(target, prior, goal, work)


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
    yield Path("stylegan2-ada training", spec.batch_size, train, 16)
    attack = replace(digits.JOINT, steps=10)
    frozen_prior = copy.deepcopy(prior).eval().requires_grad_(requires_grad=False)
    target.eval().requires_grad_(requires_grad=False)
    run = partial(invert_blocks, attack, target, frozen_prior, shape, Work(device=device), [1], 1)
    yield Path("vmi on 5 classes", 5 * attack.batch, run, 10)


def evaluation(device: torch.device) -> Iterator[Path]:
    """The evaluation classifier on reconstructions."""
    with seeded("perf"):
        network = SCNN().build(SHAPE, 10).to(device)
    x = images(512, torch.device("cpu")).float() / 255
    yield Path("evaluation classifier", 512, lambda: predict(network, x, generator("perf")))


def distances(width: int = 2048) -> Iterator[Path]:
    """FID of two sets of features on the CPU, and pytorch-fid's where SciPy still lets it."""
    rng = generator("perf")
    sets = torch.randn(2, 3 * width // 2, width, generator=rng).relu()
    ours, peer = f"fid, {width} features", f"fid, {width} features, pytorch-fid"
    n = sets.shape[0] * sets.shape[1]
    yield Path(ours, n, lambda: frechet_distance(*sets), against=peer, rounds=2)
    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        return

    def theirs() -> None:
        arrays = [s.double().numpy() for s in sets]
        fits = [(a.mean(0), np.cov(a, rowvar=False)) for a in arrays]
        calculate_frechet_distance(*fits[0], *fits[1])

    yield Path(peer, n, theirs, rounds=2)
