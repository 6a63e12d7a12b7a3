r"""Views: an attack that looks at each reconstruction in several ways before it moves it.

A defense may bend the target's gradients so that they mislead whoever follows one of them. The
mean over views is harder to mislead (expectation over transformation, Athalye et al., ICML
2018, https://arxiv.org/abs/1707.07397):

.. math:: L = \frac1V \sum_v \frac1{D_v} \sum_d L_{id}(f(t_v(x); \epsilon_d), y)

with fresh noise ε for every draw d where the target answers with noise, as MID's does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import radians
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Watched
from mibench.roles import Attack, IdentityLoss, View
from mibench.spec import choose, require
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


@dataclass(frozen=True)
class Augment(View):
    """A random part, enlarged, mirrored, turned, and made lighter or darker.

    The changes that image classifiers are trained with, for attacks that look through them. The
    defaults change nothing but which side is left.

    Attributes:
        scale: Least and greatest area of the part, as a share of the image's.
        ratio: Least and greatest width of the part over its height, at most the image's own.
        flip: Probability of the mirror image.
        rotation: The largest angle by which it is turned, each way, in degrees.
        turned: Probability that it is turned at all.
        brightness: Pixels are multiplied by 1 and at most so much more or less.
        contrast: So are their distances from the image's mean.
        jittered: Probability that brightness and contrast change at all.
        each: Whether each image has changes of its own; otherwise all of a block have the same.
        corners: What fills the corners of a turned image: its "border" pixels, or "black".
        clip: Whether changed brightness and contrast stop at 0 and 1, where a pixel then has no
            gradient.
        looks: As how many views it counts.
    """

    name: ClassVar[str] = "augment"
    small: ClassVar[Mapping[str, Any]] = {
        "scale": (0.8, 1.0), "rotation": 5.0, "brightness": 0.2, "contrast": 0.2,
    }  # fmt: skip

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    rotation: float = 0.0
    turned: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    jittered: float = 1.0
    each: bool = True
    corners: Literal["border", "black"] = "border"
    clip: bool = False
    looks: int = 1
    draws: int = 1

    def __post_init__(self) -> None:
        require(
            self, scale=(1e-3, 1), ratio=(1e-2, 100), flip=(0, 1), rotation=(0, 45), turned=(0, 1),
            brightness=(0, 1), contrast=(0, 1), jittered=(0, 1), looks=(1, INF), draws=(1, INF),
        )  # fmt: skip
        choose(self, corners=("border", "black"))
        for name in ("scale", "ratio"):
            least, greatest = getattr(self, name)
            if least > greatest:
                raise ValueError(f"Augment.{name} is ({least}, {greatest}): the least comes first")

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        """Returns the images changed; every number is drawn, whether it is used or not."""
        drawn = torch.rand(10, len(x) if self.each else 1, generator=rng)
        area, wide, top, left, mirror, angle, turn, light, hard, jitter = drawn
        x = self._part(x, area, wide, (top, left), mirror < self.flip)
        if self.rotation:
            degrees = (2 * angle - 1) * self.rotation * (turn < self.turned)
            x = turned(x, degrees, black=self.corners == "black")
        if not self.brightness and not self.contrast:
            return x
        on = (jitter < self.jittered).float()
        bright = (1 + on * (2 * light - 1) * self.brightness).to(x)[:, None, None, None]
        stark = (1 + on * (2 * hard - 1) * self.contrast).to(x)[:, None, None, None]
        x = self._held(x * bright)
        mean = x.mean((1, 2, 3), keepdim=True)
        return self._held(mean + stark * (x - mean))

    def _held(self, x: Images) -> Images:
        return x.clamp(0, 1) if self.clip else x

    def _part(
        self, x: Images, area: Tensor, wide: Tensor, corner: tuple[Tensor, Tensor], mirror: Tensor
    ) -> Images:
        """Returns a random part of each image at the image's own size, mirrored or not."""
        (small, large), (narrow, broad) = self.scale, self.ratio
        share = small + (large - small) * area
        ratio = narrow * (broad / narrow) ** wide
        sides = [(share / ratio).sqrt().clamp(max=1), (share * ratio).sqrt().clamp(max=1)]
        lines = []
        for size, side, begin, flipped in zip(
            x.shape[2:], sides, corner, (torch.zeros_like(mirror), mirror), strict=True
        ):
            start = (1 - side) * begin * size
            at = start[:, None] + (torch.arange(size) + 0.5) * side[:, None] - 0.5
            at = torch.where(flipped[:, None], at.flip(1), at)
            lines.append(_weights(at.clamp(0, size - 1), size).to(x)[:, None])
        rows, columns = lines
        return rows @ x @ columns.mT


def turned(x: Images, degrees: Float[Tensor, " m"], *, black: bool) -> Images:
    """Returns images turned about their middle, by one angle each or all by the same.

    Three shears (Paeth 1986), each a linear interpolation along lines and a product of matrices,
    whose gradients are the same to the bit on every run of a GPU.

    Args:
        x: Square images.
        degrees: Clockwise, as one looks at them; as many as images, or one.
        black: What comes from outside is black; otherwise the border repeats.
    """
    angle = degrees * radians(1)
    along, across = -(angle / 2).tan(), angle.sin()
    x = _sheared(x, along, black=black)
    x = _sheared(x.mT, across, black=black).mT
    return _sheared(x, along, black=black)


def _sheared(x: Images, by: Float[Tensor, " m"], *, black: bool) -> Images:
    """Returns images whose rows are moved in proportion to their distance from the middle."""
    height, width = x.shape[2:]
    away = torch.arange(height) - (height - 1) / 2
    at = torch.arange(width) - by[:, None, None] * away[:, None]
    weights = _weights(at if black else at.clamp(0, width - 1), width).to(x)  # (m, h, out, in)
    return (weights[:, None] @ x[..., None])[..., 0]


VIEWS: dict[str, type[View]] = {
    cls.name: cls for cls in (Plain, Flip, Shift, Crop, Noise, Augment)
}


TAA: dict[str, Augment] = {
    "gmi": Augment(
        scale=(0.9, 1.0), ratio=(0.9, 1.1), flip=0.5, rotation=3.0, each=False, looks=30
    ),
    "ked-mi": Augment(
        scale=(0.8, 1.0), ratio=(0.9, 1.1), flip=0.5, rotation=5.0, each=False, looks=50
    ),
    "ppa": Augment(
        scale=(0.8, 1.0), ratio=(0.9, 1.1), flip=0.5, rotation=5.0, each=False, looks=50
    ),
}
"""Attack → the view over which AlignMI averages gradients: transformation-averaged alignment, Peng
et al. 2025, https://arxiv.org/abs/2509.20177. The gradient of the mean loss is that mean."""


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
    return _weights((start + (torch.arange(size) + 0.5) * scale - 0.5).clamp(0, size - 1), size)


def _weights(at: Float[Tensor, "*o"], size: int) -> Float[Tensor, "*o i"]:
    """Returns the weight of each pixel of a line at some places; 0 beyond its ends."""
    return (1 - (at[..., None] - torch.arange(size)).abs()).clamp(min=0)


def single(views: Sequence[View]) -> list[View]:
    """Returns the views with each that counts as several standing so many times."""
    return [view for view in views for _ in range(view.looks)]


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
    views = single(views)
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
    return sum(view.looks * view.draws for view in views) or 1


def affordable(attack: Attack, steps: int, images: int, reserved: int = 0) -> int:
    """Returns how many of ``steps`` the attack's ``max_queries`` pays for.

    Args:
        attack: Its views multiply what a step asks.
        steps: Wanted.
        images: Of each class, at every step.
        reserved: Answers for each class that are spent on other things than steps.

    Raises:
        ValueError: If it pays for none.
    """
    if not attack.max_queries:
        return steps
    each = images * attack.queries_per_image
    if attack.max_queries < each + reserved:
        beside = f", beside {reserved} for choosing among images" if reserved else ""
        raise ValueError(
            f"{type(attack).__name__}.max_queries is {attack.max_queries}, but a step asks "
            f"{each} answers for each class{beside}"
        )
    return min(steps, (attack.max_queries - reserved) // each)


def payable(
    target: Classifier, steps: int, answers: int, later: int = 0, reserved: int = 0
) -> int:
    """Returns how many of ``steps`` the answers that the target still gives pay for.

    Args:
        target: Limits its answers if it is :class:`Watched`.
        steps: Wanted.
        answers: That one step asks for.
        later: That one step asks for of the classes whose turn has not come yet, and which
            get as many steps.
        reserved: Answers that are spent on other things, such as choosing where to start.

    Raises:
        ValueError: If they pay for none.
    """
    if not isinstance(target, Watched):
        return steps
    paid = (target.remaining - reserved) // (answers + later)
    if paid < 1:
        beside = f", beside {reserved} for choosing among images" if reserved else ""
        raise ValueError(
            f"the {target.remaining} answers that the target still gives do not pay for a step, "
            f"which asks {answers + later}{beside}"
        )
    return min(steps, paid)
