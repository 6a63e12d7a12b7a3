"""What the regularisers cost: ``python -m perf.regulariser [--device cuda]``.

The first table has milliseconds of a training step and its ratio to the plain step. Variants
take turns within each round, so that a slow moment of the machine hits all; the table gives
medians, the median of the per-round ratios and the ratios' quartiles. The second has
milliseconds of the two dependence terms and their gradient alone, given latents of the sizes
of the network's, and how they grow with the batch.
"""

import argparse
import math
import platform
import statistics
import time
from pathlib import Path

import torch

from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.defenses.dependence import MEASURES
from mibench.networks import MCNN, VGG16
from mibench.roles import Batch, Defense, NetworkSpec
from mibench.running.executors import Bench, prepare
from mibench.seeding import generator, seeded
from mibench.types import Classifier, Images, Logits, Shape

SETTINGS: dict[str, tuple[NetworkSpec, Shape, int]] = {
    "mcnn": (MCNN(), (1, 32, 32), 5),
    "vgg16": (VGG16(pretrained=False), (3, 64, 64), 1000),
}


class Stepper:
    """One classifier in training."""

    def __init__(self, name: str, defense: Defense, batch: int, device: torch.device) -> None:
        spec, shape, classes = SETTINGS[name]
        with seeded("perf"):
            self.network = defense.harden(spec.build(shape, classes)).to(device).train()
        rng = generator("perf")
        self.x = torch.rand(batch, *shape, generator=rng).to(device)
        self.y = torch.randint(0, classes, (batch,), generator=rng).to(device)
        self.defense = defense
        self.optimizer = Recipe(epochs=1, lr=1e-4).optimize(self.network)

    def seconds(self, steps: int) -> float:
        """Returns the seconds of a step, averaged over ``steps``."""
        self._synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            terms = self.defense.loss_terms(self.network, Batch(self.x, self.y))
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        self._synchronise()
        return (time.perf_counter() - begin) / steps

    def _synchronise(self) -> None:
        if self.x.is_cuda:
            torch.cuda.synchronize()


def variants() -> dict[str, Defense]:
    """Returns what is compared; the first is the plain step."""
    plain: dict[str, Defense] = {"none": NoDefense(), "mid": MID(lambda_=0.01)}
    return plain | {m: BiDO(m, 1, 1, ridge=0.02 if m == "kcca" else 1e-5) for m in MEASURES}


def measure(name: str, batch: int, rounds: int, steps: int, device: torch.device) -> list[str]:
    """Returns the table's lines for one network and batch size."""
    steppers = {v: Stepper(name, d, batch, device) for v, d in variants().items()}
    for stepper in steppers.values():
        stepper.seconds(1)
    times: dict[str, list[float]] = {v: [] for v in steppers}
    for _ in range(rounds):
        for v, stepper in steppers.items():
            times[v].append(stepper.seconds(steps))
    lines = []
    for v, seconds in times.items():
        ratios = sorted(s / p for s, p in zip(seconds, times["none"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        ms = 1e3 * statistics.median(seconds)
        ratio = f"{statistics.median(ratios):.3f} ({low:.3f}-{high:.3f})"
        lines.append(f"| {name} | {batch} | {v} | {ms:.2f} | {ratio} |")
    return lines


class Terms:
    """Both dependence terms of random latents, and their gradient."""

    def __init__(self, name: str, measure: str, batch: int, device: torch.device) -> None:
        spec, shape, classes = SETTINGS[name]
        rng = generator("perf")
        self.x = torch.rand(batch, *shape, generator=rng).to(device)
        self.y = torch.randint(0, classes, (batch,), generator=rng).to(device)
        with seeded("perf"), torch.no_grad():
            sizes = [z.shape[1:].numel() for z in spec.build(shape, classes).latents(self.x.cpu())]
        self.network = Latents([torch.randn(batch, d, generator=rng) for d in sizes], classes)
        self.network.to(device)
        self.defense = variants()[measure]

    def seconds(self, repeats: int) -> float:
        """Returns the seconds of a forward and backward pass."""
        begin = time.perf_counter()
        for _ in range(repeats):
            terms = self.defense.loss_terms(self.network, Batch(self.x, self.y))
            torch.autograd.grad(terms["d(X,Z)"] + terms["d(Z,Y)"], list(self.network.zs))
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / repeats


class Latents(Classifier):
    """A network that costs nothing: its latents are its weights."""

    def __init__(self, zs: list[torch.Tensor], classes: int) -> None:
        super().__init__()
        self.zs = torch.nn.ParameterList(zs)
        self.neck = torch.nn.Identity()
        self.num_classes = classes

    def latents(self, x: Images) -> tuple[torch.Tensor, ...]:
        """Returns them."""
        return tuple(self.zs)

    def head(self, z: torch.Tensor, noise: torch.Tensor | None = None) -> Logits:
        """Returns logits that depend on nothing."""
        return z.new_zeros(len(z), self.num_classes)


def grow(name: str, batches: list[int], rounds: int, device: torch.device) -> list[str]:
    """Returns a line per measure: milliseconds at each batch size, and the last exponent."""
    lines = []
    for measure_ in MEASURES:
        ms = []
        for batch in batches:
            terms = Terms(name, measure_, batch, device)
            terms.seconds(1)
            ms.append(1e3 * statistics.median(terms.seconds(2) for _ in range(rounds)))
        power = math.log(ms[-1] / ms[-2]) / math.log(batches[-1] / batches[-2])
        cells = " | ".join(f"{t:.2f}" for t in ms)
        lines.append(f"| {name} | {measure_} | {cells} | {power:.2f} |")
    return lines


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", default=",".join(SETTINGS))
    parser.add_argument("--batches", default="16,64,256", help="of the steps")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--growth", default="16,32,64,128,256,512", help="batches; '' for none")
    options = parser.parse_args()
    prepare(Bench(Path(), Path(), options.device))
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{where}, {torch.get_num_threads()} thread, torch {torch.__version__}\n")
    print("| network | batch | variant | ms per step | ratio to none (quartiles) |")
    print("|:--|--:|:--|--:|--:|")
    for name in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            for line in measure(name, batch, options.rounds, options.steps, device):
                print(line, flush=True)
    growth = [int(b) for b in options.growth.split(",") if b]
    if growth:
        sizes = " | ".join(f"m = {b}" for b in growth)
        print(f"\n| network | measure | {sizes} | last exponent |")
        print("|:--|:--|" + "--:|" * (len(growth) + 1))
        for name in options.networks.split(","):
            for line in grow(name, growth, options.rounds, device):
                print(line, flush=True)


if __name__ == "__main__":
    main()
