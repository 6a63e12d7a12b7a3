"""What the regularisers cost per training step, as ratios to the plain step, in one run.

``python -m perf.regulariser [--device cuda] [--batches 16,64,256] [--steps 20]``. Variants
take turns within each round, so that a slow moment of the machine hits all; the table gives
medians and the median of the per-round ratios.
"""

import argparse
import platform
import statistics
import time

import torch

from mibench.benchmarks.executors import Bench, prepare
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.defenses.dependence import MEASURES
from mibench.networks import MCNN, NETWORKS
from mibench.seeding import generator, seeded
from mibench.types import Defense, NetworkSpec, Shape

SETTINGS: dict[str, tuple[NetworkSpec, Shape, int]] = {"mcnn": (MCNN(), (1, 32, 32), 5)}
if "vgg16" in NETWORKS:
    SETTINGS["vgg16"] = (NETWORKS["vgg16"](pretrained=False), (3, 64, 64), 1000)  # type: ignore[call-arg]


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
            terms = self.defense.loss_terms(self.network, self.x, self.y)
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
        stepper.seconds(2)
    times: dict[str, list[float]] = {v: [] for v in steppers}
    for _ in range(rounds):
        for v, stepper in steppers.items():
            times[v].append(stepper.seconds(steps))
    lines = []
    for v, seconds in times.items():
        ratio = statistics.median(s / p for s, p in zip(seconds, times["none"], strict=True))
        ms = 1e3 * statistics.median(seconds)
        lines.append(f"| {name} | {batch} | {v} | {ms:.2f} | {ratio:.3f} |")
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--networks", default=",".join(SETTINGS))
    parser.add_argument("--batches", default="16,64,256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    from pathlib import Path

    prepare(Bench(Path(), Path(), options.device))
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{where}, {torch.get_num_threads()} thread, torch {torch.__version__}\n")
    print("| network | batch | variant | ms per step | ratio to none |\n|:--|--:|:--|--:|--:|")
    for name in options.networks.split(","):
        for batch in map(int, options.batches.split(",")):
            for line in measure(name, batch, options.rounds, options.steps, device):
                print(line, flush=True)


if __name__ == "__main__":
    main()
