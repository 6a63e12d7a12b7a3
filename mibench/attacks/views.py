r"""Views: an attack that looks at each reconstruction in several ways before it moves it.

A defense may bend the target's gradients so that they mislead whoever follows one of them. The
mean over views is harder to mislead (expectation over transformation, Athalye et al., ICML
2018, https://arxiv.org/abs/1707.07397):

.. math:: L = \frac1V \sum_v \frac1{D_v} \sum_d L_{id}(f(t_v(x); \epsilon_d), y)

with fresh noise ε for every draw d where the target answers with noise, as MID's does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Watched
from mibench.roles import Attack, IdentityLoss, View
from mibench.spec import require
from mibench.types import Classifier, Images, Labels

INF = float("inf")
Groups = Sequence[tuple[int, torch.Generator]]
"""How many images, one after the other, belong to a block, and the block's stream."""


@dataclass(frozen=True)
class Plain(View):
    """The image as it is."""

    name: ClassVar[str] = "plain"

    draws: int = 1

    def __post_init__(self) -> None:
        require(self, draws=(1, INF))

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images."""
        return x


@dataclass(frozen=True)
class Flip(View):
    """The mirror image, left and right exchanged."""

    name: ClassVar[str] = "flip"

    draws: int = 1

    def __post_init__(self) -> None:
        require(self, draws=(1, INF))

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the mirror images."""
        return x.flip(3)


@dataclass(frozen=True)
class Shift(View):
    """The image moved by some whole pixels; its border repeats. One draw per block and step.

    Attributes:
        pixels: At most so far, each way.
    """

    name: ClassVar[str] = "shift"

    pixels: int = 1
    draws: int = 1

    def __post_init__(self) -> None:
        require(self, pixels=(1, INF), draws=(1, INF))

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images moved."""
        by = torch.randint(-self.pixels, self.pixels + 1, (2,), generator=rng).tolist()
        return window(x, by[0], by[1], 1.0)


@dataclass(frozen=True)
class Crop(View):
    """A part of the image, enlarged to the whole. One draw per block and step.

    Attributes:
        scale: Its side, as a share of the image's.
    """

    name: ClassVar[str] = "crop"

    scale: float = 0.9
    draws: int = 1

    def __post_init__(self) -> None:
        require(self, scale=(1e-3, 1), draws=(1, INF))

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the parts."""
        free = (1 - self.scale) * torch.rand(2, generator=rng)
        return window(x, float(free[0]) * x.shape[2], float(free[1]) * x.shape[3], self.scale)


@dataclass(frozen=True)
class Noise(View):
    """The image under Gaussian noise; what leaves [0, 1] stays.

    Attributes:
        std: Its standard deviation, as a share of the range.
    """

    name: ClassVar[str] = "noise"

    std: float = 0.1
    draws: int = 1

    def __post_init__(self) -> None:
        require(self, std=(0, INF), draws=(1, INF))

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images under noise."""
        return x + self.std * torch.randn(x.shape, generator=rng).to(x.device)


VIEWS: dict[str, type[View]] = {cls.name: cls for cls in (Plain, Flip, Shift, Crop, Noise)}


def window(x: Images, top: float, left: float, scale: float) -> Images:
    """Returns the part of each image that begins at (top, left), at the image's own size.

    Bilinear, and the border repeats outside. Two products with matrices: unlike gathering
    pixels, they have the same gradients, to the bit, on every run of a GPU.
    """
    rows, columns = (
        _interpolation(size, start, scale).to(x.device)
        for size, start in zip(x.shape[2:], (top, left), strict=True)
    )
    return rows @ x @ columns.T


def _interpolation(size: int, start: float, scale: float) -> Float[Tensor, "i o"]:
    """Returns the weight of each pixel of a line in each pixel of its part."""
    at = (start + (torch.arange(size) + 0.5) * scale - 0.5).clamp(0, size - 1)
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0)


def viewed(views: Sequence[View], x: Images, groups: Groups) -> list[Images]:
    """Returns the images under each view; a block draws from its own stream alone."""
    sizes = [n for n, _ in groups]
    return [
        torch.cat(
            [view(part, rng) for part, (_, rng) in zip(torch.split(x, sizes), groups, strict=True)]
        )
        for view in views
    ]


def identity_loss(
    identity: IdentityLoss,
    views: Sequence[View],
    target: Classifier,
    x: Images,
    labels: Labels,
    groups: Groups,
) -> Float[Tensor, " n"]:
    """Returns the identity loss of each image, the mean over its views.

    It is the mean over the target and its students, too; a penalty is of the target alone.

    Raises:
        ValueError: If the loss reads public images and the target has not been shown any, or
            asks students and the target has none.
    """
    looks = viewed(views, x, groups) if views else [x]
    draws = [view.draws for view in views] or [1]
    look = torch.cat(looks) if len(looks) > 1 else looks[0]

    def latents(network: Classifier) -> Tensor:
        z = network.latents(look)[-1]
        if draws == [1] * len(looks):
            return z
        parts = zip(torch.split(z, len(x)), draws, strict=True)
        return torch.cat([part.repeat(d, 1) for part, d in parts])

    wanted = labels.repeat(sum(draws))
    z = latents(target)
    loss = identity(target.head(z), wanted)
    students: Sequence[Classifier] = target.students if isinstance(target, Watched) else ()
    if len(students) < len(identity.students):
        raise ValueError(f"{identity.name} needs the target's students")
    if students:
        others = [identity(s.head(latents(s)), wanted) for s in students]
        loss = torch.stack([loss, *others]).mean(0)
    if identity.public:
        if not isinstance(target, Watched) or target.public_mean is None:
            raise ValueError(f"{identity.name} needs the target's mean public latent")
        loss = loss + identity.penalty(z - target.public_mean)
    if not views:
        return loss
    parts = torch.split(loss, [d * len(x) for d in draws])
    means = [p.view(d, -1).mean(0) for p, d in zip(parts, draws, strict=True)]
    return torch.stack(means).mean(0)


def queries_per_image(views: Sequence[View]) -> int:
    """Returns the number of answers of the target that an image costs."""
    return sum(view.draws for view in views) or 1


def affordable(attack: Attack, steps: int, images: int) -> int:
    """Returns how many of ``steps`` the attack's ``max_queries`` pays for.

    Args:
        attack: Its views multiply what a step asks.
        steps: Wanted.
        images: Of each class, at every step.

    Raises:
        ValueError: If it pays for none.
    """
    if not attack.max_queries:
        return steps
    each = images * attack.queries_per_image
    if attack.max_queries < each:
        raise ValueError(
            f"{type(attack).__name__}.max_queries is {attack.max_queries}, but a step asks "
            f"{each} answers for each class"
        )
    return min(steps, attack.max_queries // each)


def payable(target: Classifier, steps: int, answers: int, later: int = 0) -> int:
    """Returns how many of ``steps`` the answers that the target still gives pay for.

    Args:
        target: Limits its answers if it is :class:`Watched`.
        steps: Wanted.
        answers: That one step asks for.
        later: That one step asks for of the classes whose turn has not come yet, and which
            get as many steps.

    Raises:
        ValueError: If they pay for none.
    """
    if not isinstance(target, Watched):
        return steps
    paid = target.remaining // (answers + later)
    if not paid:
        raise ValueError(
            f"the {target.remaining} answers that the target still gives do not pay for a step, "
            f"which asks {answers + later}"
        )
    return min(steps, paid)
