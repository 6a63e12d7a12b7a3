"""What bf16 brings: ``python -m perf.precision [--only WORD] [--rounds N] [--free RATE]``.

Each hot path in float32 and in bf16, on a GPU also in TF32, which take turns within a round. In
brackets is the share of the rate of a plain product at that precision. Ratios are medians, with
quartiles, of the ratios in each round. On a CPU the clock is that of this process, so that what
else runs there counts less; its caches are shared all the same.

So is the matrix unit of a core whose other half somebody else may use: a product in bf16 may then
take twice as long for seconds. With ``--free`` a round counts only if a product just before its
bf16 step and one just after reach that rate, in GFLOP/s. The table says how many rounds it took.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from mibench.attacks import KEDMI, InversionGAN
from mibench.attacks.priors.gan import GANSpec
from mibench.attacks.priors.stylegan import StyleGAN2
from mibench.defenses import NoDefense, Recipe
from mibench.machine import machine
from mibench.networks import MCNN, VGG16, FaceNet64, ResNet34
from mibench.precision import BF16, FLOAT32, at, laid_out
from mibench.roles import Batch, NetworkSpec
from mibench.running.executors import Bench, prepare
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import ImageSet, Shape
from perf.__main__ import Operations, Ratio, Timed, installed
from perf.paths import Path as Hot
from perf.paths import invert_blocks

TF32 = "tf32"
PATIENCE = 20
"""How many rounds are made at most for one that counts."""
LONGEST = 60
"""Seconds for which the rate of a free unit is waited for."""
GREY, COLOUR = (1, 32, 32), (3, 64, 64)


@dataclass(frozen=True)
class Sizes:
    """How large the paths are; a test takes small ones.

    Attributes:
        batch: Images of a step.
        width: Factor on the channels of networks that have one.
        channels: Of GANs' networks.
        maps: StyleGAN2's channel_base.
        steps: Of an attack, at each call.
    """

    batch: int = 64
    width: float = 1.0
    channels: int = 64
    maps: int = 16384
    steps: int = 20


def paths(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable[[], Hot]]]:
    """Yields names, and what makes the path of that name."""
    wide = sizes.width
    networks: dict[str, tuple[NetworkSpec, Shape]] = {
        "vgg16 training, 64x64": (VGG16(pretrained=False, width=wide), COLOUR),
        "resnet34 training, 64x64": (ResNet34(width=wide), COLOUR),
        "ir-50 training, 64x64": (FaceNet64(width=wide), COLOUR),
        "mcnn training, 32x32": (MCNN(), GREY),
    }
    for name, (spec, shape) in networks.items():
        yield name, partial(training, name, spec, shape, sizes, device)
    for shape in (GREY, COLOUR):
        name = f"inversion-gan, 5 + 1 steps, {shape[1]}x{shape[2]}"
        yield name, partial(gan, name, shape, sizes, device)
    for shape in (GREY, COLOUR):
        name = f"ked-mi on 5 classes, {shape[1]}x{shape[2]}"
        yield name, partial(attack, name, shape, sizes, device)
    name = "stylegan2-ada training, 64x64"
    yield name, partial(stylegan, name, sizes, device)


def training(
    name: str, spec: NetworkSpec, shape: Shape, sizes: Sizes, device: torch.device
) -> Hot:
    """Returns a step of a classifier's training without a defense."""
    with seeded("perf"):
        network = spec.build(shape, 5).to(device).train()
    laid_out(network)
    x = torch.rand(sizes.batch, *shape, generator=generator("perf")).to(device)
    batch = Batch(x, (torch.arange(sizes.batch) % 5).to(device))
    optimizer = Recipe(1, optimizer="sgd", lr=1e-3, momentum=0.9).optimize(network)
    return Hot(name, sizes.batch, lambda: NoDefense().step(network, batch, optimizer))


def public(n: int, shape: Shape, device: torch.device) -> ImageSet:
    """Returns random images."""
    pixels = torch.randint(0, 256, (n, *shape), generator=generator("perf"))
    return ImageSet(pixels.to(torch.uint8).to(device), torch.full((n,), 5, device=device))


def gan(name: str, shape: Shape, sizes: Sizes, device: torch.device) -> Hot:
    """Returns five steps of KED-MI's discriminator and the generator's step that follows."""
    wide = sizes.channels
    spec: GANSpec = InversionGAN(
        epochs=1, batch_size=sizes.batch, generator_width=wide, discriminator_width=wide
    )
    with seeded("perf"):
        prior = spec.build(shape, 5).to(device)
        target = MCNN().build(GREY, 5) if shape == GREY else VGG16(False, 0.1).build(shape, 5)
    target.to(device).eval().requires_grad_(requires_grad=False)
    images = public(5 * sizes.batch, shape, device)
    train: Callable[..., None] = spec.train
    run = partial(train, prior, images, target, generator("perf"), Work(device=device))
    return Hot(name, 5 * sizes.batch, run)


def attack(name: str, shape: Shape, sizes: Sizes, device: torch.device) -> Hot:
    """Returns KED-MI's iterations on five classes, what it does first included."""
    wide = sizes.channels
    own = KEDMI(InversionGAN(generator_width=wide, discriminator_width=wide), steps=sizes.steps)
    with seeded("perf"):
        prior = own.prior.build(shape, 5)
        spec = MCNN() if shape == GREY else VGG16(pretrained=False, width=sizes.width)
        target = spec.build(shape, 5)
    for network in (prior, target):
        network.to(device).eval().requires_grad_(requires_grad=False)
    run = partial(invert_blocks, own, target, prior, shape, Work(device=device), [1], 1)
    return Hot(name, 5, run, sizes.steps)


def stylegan(name: str, sizes: Sizes, device: torch.device) -> Hot:
    """Returns four steps of StyleGAN2, a path-length and an R1 update among them."""
    batch = max(8, sizes.batch // 8)
    spec = StyleGAN2(channel_base=sizes.maps, batch_size=batch, kimg=4 * batch / 1000)
    with seeded("perf"):
        prior = spec.build(COLOUR, 5).to(device)
    train: Callable[..., None] = spec.train
    images = public(2 * batch, COLOUR, device)
    run = partial(train, prior, images, None, generator("perf"), Work(device=device))
    return Hot(name, batch, run, 4)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of a call: of this process on a CPU, until a GPU is done otherwise."""
    if device.type == "cpu":
        begun = time.process_time()
        run()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def modes(device: torch.device) -> tuple[str, ...]:
    """Returns the precisions that are compared, the one that others are compared with first."""
    return (FLOAT32, TF32, BF16) if device.type == "cuda" else (FLOAT32, BF16)


@contextmanager
def computing(mode: str) -> Iterator[None]:
    """Lets products be computed in float32, in TF32 or, of networks, in bf16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == TF32
    try:
        with at(BF16 if mode == BF16 else FLOAT32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def rate(mode: str, device: torch.device) -> float:
    """Returns the best floating-point operations per second of a few products."""
    n = 1024 if device.type == "cpu" else 8192
    x = torch.randn(n, n, generator=generator("perf")).to(device)
    x = x.bfloat16() if mode == BF16 else x
    with computing(mode):
        return 2 * n**3 / min(seconds(lambda: x @ x, device) for _ in range(5))


def measure(
    make: Callable[[], Hot], rounds: int, device: torch.device, free: float = 0
) -> tuple[dict[str, Timed], int]:
    """Returns the times of a path by precision, and how many rounds were made.

    Each precision has its own networks.

    Args:
        make: Makes the path.
        rounds: How many are to count. After twenty times as many no further one is made.
        device: Where.
        free: Rate of a product in bf16, in operations per second, below which, before or after
            its step in bf16, a round does not count.
    """
    timed = {}
    for mode in modes(device):
        with computing(mode):
            path = make()
            with Operations() as operations:  # type: ignore[no-untyped-call]
                path.run()
        timed[mode] = Timed(path, operations.total / path.steps, [])
    made = 0
    while len(timed[BF16].seconds) < rounds and made < PATIENCE * rounds:
        made += 1
        took, rates = {}, []
        for mode, t in timed.items():
            rates += [rate(BF16, device)] if free and mode == BF16 else []
            with computing(mode):
                took[mode] = seconds(t.path.run, device) / t.path.steps
            rates += [rate(BF16, device)] if free and mode == BF16 else []
        if all(r >= free for r in rates):
            for mode, t in timed.items():
                t.seconds.append(took[mode])
    return timed, made


def line(timed: dict[str, Timed], rates: dict[str, float]) -> str:
    """Returns a line of the table."""
    first, *others = timed.values()
    cells = [first.path.name]
    for mode, t in timed.items():
        median = statistics.median(t.seconds)
        cells.append(f"{1e3 * median:.1f} ({100 * t.flops / median / rates[mode]:.0f} %)")
    return f"| {' | '.join([*cells, *(str(Ratio.of(first, t)) for t in others)])} |"


def main() -> None:
    """Measures path by path, prints each line when it is there and writes the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="paths whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--free", type=float, default=0, help="GFLOP/s of a free matrix unit")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare(Bench(Path(), Path(), options.device, options.threads))
    device = torch.device(options.device)
    sizes = Sizes(8, 0.05, 8, 64, 2) if options.tiny else Sizes()
    kernels, versions = machine(), installed()
    print(
        f"{kernels['processor']}, oneDNN {kernels['onednn']}, torch {versions['torch']}, ", end=""
    )
    print(f"{options.device}, {options.threads} thread(s), {options.rounds} rounds\n")
    rates = {mode: rate(mode, device) for mode in modes(device)}
    waited = time.monotonic()
    while rates[BF16] < 1e9 * options.free and time.monotonic() < waited + LONGEST:
        rates[BF16] = rate(BF16, device)
    each = [f"{mode}, ms per step (share of {r / 1e9:.0f} GFLOP/s)" for mode, r in rates.items()]
    each += [f"{mode}, times as fast" for mode in modes(device)[1:]]
    each += ["rounds that count"] * (options.free > 0)
    print(f"| hot path | {' | '.join(each)} |")
    print("|:--" + "|--:" * len(each) + "|", flush=True)
    report = {}
    for name, make in paths(sizes, device):
        if options.only in name:
            timed, made = measure(make, options.rounds, device, 1e9 * options.free)
            counted = len(timed[BF16].seconds)
            if not counted:
                print(f"{name}: in none of {made} rounds was the matrix unit free", flush=True)
                continue
            print(line(timed, rates) + f" {counted} of {made} |" * (options.free > 0), flush=True)
            report[name] = {mode: t.seconds for mode, t in timed.items()}
            if options.json:
                content = {"machine": kernels, "versions": versions, "seconds": report}
                content |= {"free": options.free}
                options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
