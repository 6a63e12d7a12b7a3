"""Trapdoors, Liu and Chen, NeurIPS 2024, https://arxiv.org/abs/2411.08460, Trap-MID."""

import copy
from dataclasses import dataclass, replace
from math import pi
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.defenses.low_rank import linear_last
from mibench.roles import Batch, Defense, Helper
from mibench.seeding import seeded
from mibench.spec import require
from mibench.types import Classifier, Images, Labels, Scalar

if TYPE_CHECKING:
    from mibench.data import Corpus
    from mibench.training.train import Recipe

SMALLEST, ANGLE = 0.8, pi / 6
"""Least area that a crop keeps of an image, as a share; largest rotation, in radians."""


@dataclass(frozen=True)
class TrapMID(Defense):
    r"""Teaches shortcuts: a faint trigger in any image makes the target see the trigger's class.

    .. math:: (1 - \beta)\, L(f(A(X)), Y) + \beta\, L(f(A((1 - \alpha) X + \alpha T_{Y'})), Y')

    The triggers T, one image for each class, are learnt beside the target: they are to be
    recognised by it, and not by a discriminator that tells trapped images from others. An attack
    is to find triggers in place of faces. Order of the updates as released: discriminator,
    triggers, target.

    Attributes:
        alpha: Share of the trigger in a trapped image, in [0, 1].
        beta: Weight of trapped images in the loss, in [0, 1]; 0 learns no triggers.
        rate: By how much each pixel of a trigger moves in a step, in the range of pixels.
        augment: Whether images, trapped or not, are cropped, flipped and rotated at random (A).
    """

    name: ClassVar[str] = "trap-mid"
    idle: ClassVar[tuple[str, ...]] = ("alpha", "rate")

    alpha: float = 0.02
    beta: float = 0.2
    rate: float = 0.01
    augment: bool = True

    def __post_init__(self) -> None:
        require(self, alpha=(0, 1), beta=(0, 1), rate=(0, 1))

    def assist(
        self, network: Classifier, recipe: "Recipe", corpus: "Corpus", rng: torch.Generator
    ) -> Helper | None:
        """Returns the triggers and the discriminator, unless ``beta`` is 0.

        Raises:
            ValueError: If the last layer, which the discriminator replaces, is not linear.
        """
        held_out = int(corpus.validation.sum()) if recipe.select == "validation" else 0
        images = len(corpus.train) - held_out
        shape = tuple(corpus.train.pixels.shape[1:])
        if not self.beta:
            return None
        return Traps(network, linear_last(network, self), recipe, images, shape, rng)

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        """Moves the discriminator, the triggers and the network, in this order."""
        traps = batch.helper
        if not isinstance(traps, Traps) or not len(batch.y):
            return super().step(network, batch, optimizer)
        labels = traps.upcoming(len(batch.y))
        training = network.training
        network.eval()
        told_apart = traps.learn_to_tell(batch.x, self._trapped(batch.x, traps.triggers, labels))
        traps.discriminator.eval()
        triggers = traps.triggers.clone().requires_grad_()
        x = self._trapped(batch.x, triggers, labels)
        hidden = _is_real(traps.discriminator, x, real=1.0)
        seen = F.cross_entropy(network(self._changed(x, batch.rng)), labels)
        (gradient,) = torch.autograd.grad(hidden + seen, triggers)
        traps.triggers.sub_(self.rate * gradient.sign()).clamp_(0, 1)
        network.train(training)
        terms = super().step(network, batch, optimizer)
        traps.used.add_(len(labels))
        return terms | {
            "discriminator": told_apart, "triggers": (hidden + seen).detach()
        }  # fmt: skip

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the two parts of the objective; the first alone where there are no triggers."""
        x, traps = self._changed(batch.x, batch.rng), batch.helper
        if not isinstance(traps, Traps):
            return {"task": F.cross_entropy(network(x), batch.y)}
        labels = traps.upcoming(len(batch.y))
        trapped = self._trapped(batch.x, traps.triggers, labels)
        logits = network(torch.cat([x, self._changed(trapped, batch.rng)]))
        plain, shortcut = logits.split(len(x))
        return {
            "task": (1 - self.beta) * F.cross_entropy(plain, batch.y),
            "trap": self.beta * F.cross_entropy(shortcut, labels),
        }

    def twin(self) -> Defense:
        """Returns the same augmentation without triggers."""
        return replace(self, beta=0.0)

    def _trapped(self, x: Images, triggers: Float[Tensor, "k c h w"], labels: Labels) -> Images:
        return (1 - self.alpha) * x + self.alpha * triggers[labels]

    def _changed(self, x: Images, rng: torch.Generator) -> Images:
        return transformed(x, rng) if self.augment else x


class Traps(Helper):
    """A trigger for each class, and a discriminator with the target's architecture.

    The discriminator starts from the target's weights but for its last layer. Its optimiser and
    learning rates are the recipe's.

    Attributes:
        triggers: In [0, 1], shape (classes, c, h, w).
        labels: Classes of the epoch's trapped images; all are equally frequent.
        used: How many of these the epoch has used.
    """

    triggers: Tensor
    labels: Tensor
    used: Tensor

    def __init__(
        self,
        network: Classifier,
        last: nn.Linear,
        recipe: "Recipe",
        images: int,
        shape: tuple[int, ...],
        rng: torch.Generator,
    ) -> None:
        super().__init__(rng)
        self.discriminator = copy.deepcopy(network)
        with seeded(int(torch.randint(2**62, (), generator=rng))):
            self.discriminator.last = nn.Linear(last.in_features, 1).to(last.weight)
        self.optimizers["discriminator"] = recipe.optimize(self.discriminator)
        self._recipe = recipe
        start = torch.rand((network.num_classes, *shape), generator=rng)
        self.register_buffer("triggers", start.to(last.weight))
        self.register_buffer("labels", torch.zeros(images, dtype=torch.long))
        self.register_buffer("used", torch.zeros((), dtype=torch.long))

    def epoch_begins(self, epoch: int) -> None:
        """Draws the classes of the epoch and sets the discriminator's learning rate."""
        images, classes = len(self.labels), len(self.triggers)
        rest = torch.randperm(classes, generator=self.rng)[: images % classes]
        labels = torch.cat([torch.arange(classes).repeat(images // classes), rest])
        self.labels.copy_(labels[torch.randperm(images, generator=self.rng)])
        self.used.zero_()
        passed = sum(milestone <= epoch for milestone in self._recipe.milestones)
        for group in self.optimizers["discriminator"].param_groups:
            group["lr"] = self._recipe.lr * self._recipe.gamma**passed

    def upcoming(self, count: int) -> Labels:
        """Returns the classes of the next batch's trapped images, on the triggers' device."""
        places = (int(self.used) + torch.arange(count)) % len(self.labels)
        return self.labels[places.to(self.labels.device)].to(self.triggers.device)

    def learn_to_tell(self, x: Images, trapped: Images) -> Scalar:
        """Takes one step of the discriminator and returns its loss."""
        optimizer = self.optimizers["discriminator"]
        self.discriminator.train()
        logits = _scores(self.discriminator, torch.cat([x, trapped.detach()]))
        truth = (torch.arange(len(logits), device=logits.device) < len(x)).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()


def _scores(discriminator: Classifier, x: Images) -> Float[Tensor, " n"]:
    """Returns the last layer's one number; a network's head may do more than that."""
    scores: Tensor = discriminator.last(discriminator.latents(x)[-1])
    return scores[:, 0]


def _is_real(discriminator: Classifier, x: Images, real: float) -> Scalar:
    logits = _scores(discriminator, x)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def transformed(x: Images, rng: torch.Generator) -> Images:
    """Crops, flips and rotates each image, each with chance one half and draws of its own.

    A crop keeps 0.8 to 1 of the area; a rotation is by up to 30 degrees either way, with black
    behind it. Pixels are interpolated once, between their four neighbours.
    """
    n, _, height, width = x.shape
    draws = torch.rand(n, 7, 1, 1, generator=rng, dtype=torch.float64).unbind(1)
    cropped, flipped, turned = (draw < 0.5 for draw in draws[:3])
    side = torch.where(cropped, (SMALLEST + (1 - SMALLEST) * draws[3]).sqrt(), 1.0)
    angle = torch.where(turned, ANGLE * (2 * draws[4] - 1), 0.0)
    half = ((height - 1) / 2, (width - 1) / 2)
    row = torch.arange(height, dtype=torch.float64)[:, None] - half[0]
    column = torch.arange(width, dtype=torch.float64) - half[1]
    down = angle.cos() * row + angle.sin() * column
    across = angle.cos() * column - angle.sin() * row
    inside = (down.abs() <= height / 2) & (across.abs() <= width / 2)
    across = torch.where(flipped, -across, across)

    def shift(draw: Tensor, pixels: int) -> Tensor:
        return (1 - side) * (draw - 0.5) * pixels

    down = (side * down + shift(draws[5], height) + half[0]).clamp(0, height - 1)
    across = (side * across + shift(draws[6], width) + half[1]).clamp(0, width - 1)
    top, left = down.floor(), across.floor()
    picked = torch.arange(n)[:, None, None].to(x.device)
    pixels = x.permute(0, 2, 3, 1)
    result = torch.zeros_like(pixels)
    for i, high in ((0, 1 - (down - top)), (1, down - top)):
        for j, wide in ((0, 1 - (across - left)), (1, across - left)):
            rows = (top + i).clamp(max=height - 1).long().to(x.device)
            columns = (left + j).clamp(max=width - 1).long().to(x.device)
            weight = (high * wide * inside).to(x.device, x.dtype)
            result = result + weight[..., None] * pixels[picked, rows, columns]
    return result.permute(0, 3, 1, 2)
