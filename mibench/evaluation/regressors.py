"""Lenses that read a person's traits from an image, for tasks that know the true ones."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.data import Splits, Task
from mibench.evaluation.lenses import Lens, Tools
from mibench.precision import mixed
from mibench.seeding import generator, seeded
from mibench.spec import require
from mibench.store import Payload, State, Work, check_finite, frozen, restore
from mibench.types import Images

INF = float("inf")
CHECKED_EVERY = 50
"""Steps between two looks at the loss, for which the device is waited for."""
BATCH = 512
"""Images that are read at once where nothing is trained."""


@dataclass(frozen=True)
class TraitReader(Lens):
    """A regressor from image to traits, and how far what it reads is from each private person.

    It is trained on images that the task draws of other persons, half of them degraded as a
    generator degrades them. How well it reads each trait is measured on further persons, by the
    coefficient of determination R² of clean and of degraded images. An error in a trait weighs
    as much as that R² of degraded images, since reconstructions are more like these; nothing
    where it is negative.

    Attributes:
        images: How many images are drawn to train on, each of another person.
        steps: Steps of Adam; the learning rate rises and falls in one cycle.
        batch: Images of a step.
        lr: The greatest learning rate.
        held_out: Persons that R² is measured on.
        side: Images larger than this are averaged to it.
    """

    trained: ClassVar[bool] = True

    images: int = 16_000
    steps: int = 700
    batch: int = 128
    lr: float = 3e-3
    held_out: int = 2000
    side: int = 32

    def __post_init__(self) -> None:
        require(
            self, images=(2, INF), steps=(1, INF), batch=(2, INF), lr=(1e-12, 1),
            held_out=(2, INF), side=(8, INF),
        )  # fmt: skip

    @property
    def absent(self) -> str:
        """Says what it needs."""
        return (
            "the true traits of the task's persons are not known, as those of drawn portraits are"
        )

    def suits(self, task: Task) -> bool:
        """Whether the task knows the traits of its persons."""
        return bool(task.traits)

    @abstractmethod
    def build(self, channels: int, traits: int) -> nn.Module:
        """Returns fresh modules: images (n, channels, h, w) of at most ``side`` → (n, traits)."""

    def train(self, task: Task, splits: Splits, work: Work) -> Payload:
        """Trains the regressor on fresh images of the task.

        Returns:
            "state": its weights. "truth": the traits of the private persons, (persons, traits).
            "weights": what an error in each trait counts, (traits,). "clean" and "degraded": R²
            of each trait on images not trained on, (traits,). An interrupted training ends with
            the same bits.
        """
        pixels, truth = task.fresh(self.name, self.images)
        network = self._network(task.shape[0], truth.shape[1]).to(work.device)
        optimizer = torch.optim.Adam(network.parameters(), self.lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.steps + 1)
        moving: State = {
            "network": network, "optimizer": optimizer, "scheduler": scheduler,
            "rng": generator(self.name, "batches"), "step": 0,
        }  # fmt: skip
        if (saved := work.load()) is not None:
            restore(moving, saved)
        rng, half = moving["rng"], self.batch // 2
        network.train()
        for step in range(moving["step"], self.steps):
            index = torch.randint(len(pixels), (self.batch,), generator=rng)
            x = self._shrunk(pixels[index])
            x = torch.cat([x[:half], degraded(x[half:], rng)])
            loss = F.mse_loss(_seen(network, x.to(work.device)), truth[index].to(work.device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
            moving["step"] = step + 1
            if moving["step"] % CHECKED_EVERY == 0 or moving["step"] == self.steps:
                check_finite(loss, f"the loss of the lens {self.name}")
            work.save(lambda: frozen(moving))
            work.progress(step + 1, self.steps)
        clean, worse = self._explained(task, network.cpu().eval())
        return {
            "state": network.state_dict(),
            "truth": task.truth(torch.arange(task.num_classes)),
            "weights": worse.clamp(min=0),
            "clean": clean,
            "degraded": worse,
        }

    def readings(self, x: Images, state: Payload) -> Float[Tensor, "n t"]:
        """Returns the traits that are read from images, about [0, 1].

        Args:
            x: Pixels in [0, 1].
            state: What ``train`` returned.
        """
        network = self._network(x.shape[1], state["truth"].shape[1])
        network.load_state_dict(state["state"])
        return self._read(network.eval(), x)

    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n p"]:
        """Returns the weighted mean squared error to the traits of each private person."""
        return errors(self.readings(x, tools.state), tools.state["truth"], tools.state["weights"])

    def _network(self, channels: int, traits: int) -> nn.Module:
        with seeded(self.name, "init"):
            network = self.build(channels, traits)
        return network.to(memory_format=torch.channels_last)  # a sixth less time on a CPU

    def _shrunk(self, x: Tensor) -> Images:
        """Returns images, or their bytes, as floats in [0, 1] of at most ``side`` pixels."""
        x = x if x.is_floating_point() else x.float() / 255
        sizes = [min(size, self.side) for size in x.shape[2:]]
        return x if sizes == list(x.shape[2:]) else F.adaptive_avg_pool2d(x, sizes)  # type: ignore[arg-type]

    @torch.no_grad()
    def _read(self, network: nn.Module, x: Tensor) -> Float[Tensor, "n t"]:
        parts = torch.split(x, BATCH)
        return torch.cat([network(self._shrunk(part)) for part in parts])

    def _explained(self, task: Task, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Returns R² of each trait on fresh images, clean and degraded."""
        pixels, truth = task.fresh(f"{self.name} held out", self.held_out)
        worse = degraded(self._shrunk(pixels), generator(self.name, "held out"))
        return r2(self._read(network, pixels), truth), r2(self._read(network, worse), truth)


@mixed
def _seen(network: nn.Module, x: Images) -> Float[Tensor, "n t"]:
    """Returns what a network makes of images that it is trained on."""
    read: Tensor = network(x)
    return read


def degraded(x: Images, rng: torch.Generator) -> Images:
    """Returns images as a small generator might have drawn them, each changed by its own draws.

    Moved by up to a sixteenth of the side, blurred, of another contrast and mostly greater
    saturation, and noisy.
    """
    n, c, h, w = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=rng)

    far = max(1, h // 16)
    down, right = torch.randint(-far, far + 1, (2, n, 1), generator=rng)
    rows = (torch.arange(h) + down).clamp(0, h - 1)
    columns = (torch.arange(w) + right).clamp(0, w - 1)
    image = torch.arange(n)[:, None, None]
    x = x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
    reach = max(1, h // 10)
    offsets = torch.arange(-reach, reach + 1)
    kernel = (-0.5 * (offsets / (uniform(0.2, 1.4)[..., 0] * h / 32)) ** 2).exp()  # (n, 1, taps)
    kernel = (kernel / kernel.sum(2, keepdim=True)).repeat_interleave(c, 0)[:, :, None]
    x = F.pad(x, (reach,) * 4, mode="replicate").reshape(1, n * c, h + 2 * reach, w + 2 * reach)
    x = F.conv2d(F.conv2d(x, kernel, groups=n * c), kernel.transpose(2, 3), groups=n * c)
    x = x.reshape(n, c, h, w)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.7, 2.2)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(0.7, 1.8)
    return (x + uniform(0.0, 0.1) * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def r2(read: Float[Tensor, "n t"], truth: Float[Tensor, "n t"]) -> Float[Tensor, " t"]:
    """Returns the coefficient of determination of each column, at most 1.

    1 − Σ (read − true)² / Σ (true − mean)²; of a trait in which all are alike it is 0.
    """
    read, truth = read.double(), truth.double()
    spread = (truth - truth.mean(0)).square().sum(0)
    missed = (read - truth).square().sum(0)
    return torch.where(spread > 0, 1 - missed / spread, 0).float()


def errors(
    read: Float[Tensor, "n t"], truth: Float[Tensor, "p t"], weights: Float[Tensor, " t"]
) -> Float[Tensor, "n p"]:
    """Returns the mean squared error of each row to each person, weighted over traits.

    It is 0 where every weight is.
    """
    squares = (read[:, None].double() - truth).square() * weights
    return (squares.sum(2) / weights.double().sum().clamp(min=1e-12)).float()


@dataclass(frozen=True)
class StridedReader(TraitReader):
    """Four convolutions with batch normalisation, two of stride 2, then two dense layers."""

    name: ClassVar[str] = "traits-strided"

    def build(self, channels: int, traits: int) -> nn.Module:
        """Returns the network."""

        def layer(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        return nn.Sequential(
            *layer(channels, 32, 5, 2), *layer(32, 64, 3, 2), *layer(64, 128, 3, 1),
            *layer(128, 128, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, traits),
        )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions with group normalisation beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(8, outputs), nn.GroupNorm(8, outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Returns maps of a stride-th of the side."""
        inner = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.shortcut(x) + self.norms[1](self.second(inner)))


@dataclass(frozen=True)
class ResidualReader(TraitReader):
    """A stem and three residual blocks with group normalisation, averaged to 2x2."""

    name: ClassVar[str] = "traits-residual"

    def build(self, channels: int, traits: int) -> nn.Module:
        """Returns the network."""
        return nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1), nn.GroupNorm(8, 32), nn.ReLU(),
            Residual(32, 64, 2), Residual(64, 64, 1), Residual(64, 128, 2),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, traits),
        )  # fmt: skip
