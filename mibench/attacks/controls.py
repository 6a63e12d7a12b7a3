"""Controls: attacks that find nothing, to learn what an evaluator accepts all the same.

What an evaluation classifier says yes to here is its rate of false positives; see
``Cell.control`` and the metric ``attack_acc_corrected``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.bases import WhiteBox
from mibench.attacks.descent import rounds
from mibench.attacks.goal import Goal
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.priors.gan import InversionGAN
from mibench.attacks.views import payable
from mibench.roles import Attack, PriorSpec
from mibench.spec import choose, require
from mibench.store import Work
from mibench.types import BATCH_PIXELS, Access, Classifier, Offer, Prior, Reconstructions

INF = float("inf")
ROOM = 2 * BATCH_PIXELS
"""Values of images whose gradient is taken at once: more than tables have, as the last bits depend
on the parts."""


@dataclass(frozen=True)
class PriorSamples(Attack):
    """Draws from the prior, not optimised: what it knows before it asks the target.

    Of a prior that draws images of wanted classes, the class is drawn as well, from those
    attacked: what it was taught of the target must not count as what anybody's samples get.

    Attributes:
        prior: Where the images come from.
    """

    name: ClassVar[str] = "prior-samples"
    access: ClassVar[Access] = "none"

    prior: PriorSpec = field(default_factory=InversionGAN)

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns 0: nothing is optimised."""
        return 0

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Draws ``goal.samples`` images for every class; the class makes no difference."""
        z = goal.draws(prior)
        drawn = (goal.uniform(goal.samples) * len(goal.labels)).long()
        with torch.no_grad():
            x = prior.generate(z.flatten(0, 1), goal.labels[drawn].flatten()).clamp(0, 1)
        return Reconstructions(x.view(*z.shape[:2], *x.shape[1:]), z)


@dataclass(frozen=True)
class OtherClass(Attack):
    """Another attack's reconstructions of the class after the wanted one.

    They look like private images, of somebody else. The class after the last is the first.

    Attributes:
        prior: The attack's prior, in place of its own.
        attack: The attack.
    """

    name: ClassVar[str] = "other-class"
    small: ClassVar[Mapping[str, Any]] = {"attack": KEDMI(steps=5)}

    prior: PriorSpec = field(default_factory=InversionGAN)
    attack: Attack = field(default_factory=KEDMI)

    def __post_init__(self) -> None:
        attack: Any = self.attack
        if not isinstance(self.attack, WhiteBox) or attack.access != "white":
            raise ValueError(f"OtherClass.attack must be a white-box attack, {attack.name} is not")
        if attack.public:
            raise ValueError(
                f"OtherClass.attack must not be {attack.name}: a control is not shown public "
                "images"
            )
        if attack.identity.public or attack.identity.students:
            raise ValueError(
                f"OtherClass.attack must not have the identity loss {attack.identity.name}: a "
                "control is not shown public images and has no students"
            )
        object.__setattr__(self, "attack", replace(attack, prior=self.prior))

    @property
    def max_queries(self) -> int:  # type: ignore[override]
        """The attack's."""
        return self.attack.max_queries

    @property
    def wants(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """The attack's."""
        return self.attack.wants

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns those of the attack."""
        return self.attack.planned_steps(blocks, samples)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Inverts the next class in place of each.

        Raises:
            ValueError: If the target knows one class only.
        """
        if target.num_classes < 2:
            raise ValueError("a target of one class has no other class to invert")
        others = replace(goal, blocks=[(b + 1) % target.num_classes for b in goal.blocks])
        return self.attack.invert(target, prior, others, work)


@dataclass(frozen=True)
class AdversarialNoise(Attack):
    """Images that fool the target and look like nothing of its class.

    Projected gradient descent, Madry et al., ICLR 2018, https://arxiv.org/abs/1706.06083: steps
    along the sign of the gradient of the cross-entropy of the wanted class, within ``epsilon``
    of where they started.

    Attributes:
        prior: Gives the images' shape, and the images at the start.
        start: "prior" for draws from the prior, which stand for public images; "noise" for
            pixels drawn evenly from [0, 1].
        epsilon: How far a pixel may move, of the range of 1.
        steps: Steps.
        lr: Length of a step in each pixel.
    """

    name: ClassVar[str] = "adversarial-noise"
    small: ClassVar[Mapping[str, Any]] = {"steps": 5}

    prior: PriorSpec = field(default_factory=InversionGAN)
    start: Literal["prior", "noise"] = "prior"
    epsilon: float = 0.1
    steps: int = 40
    lr: float = 0.01

    def __post_init__(self) -> None:
        choose(self, start=("prior", "noise"))
        require(self, epsilon=(0, 1), steps=(1, INF), lr=(1e-12, 1))

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns the steps; all images take each together."""
        return self.steps

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Moves ``goal.samples`` images of every class; latents are where they started."""
        start = goal.images(prior, goal.draws(prior))
        if self.start == "noise":
            start = goal.uniform(goal.samples, *goal.shape)
        labels = goal.labels.repeat(goal.samples)
        x = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([x], self.lr)
        low, high = (start - self.epsilon).clamp(min=0), (start + self.epsilon).clamp(max=1)
        size = max(1, ROOM // torch.Size(goal.shape).numel())

        def advance(_: int) -> Tensor:
            gradients: list[Tensor] = []
            parts = torch.split(x.flatten(0, 1), size)
            for part, y in zip(parts, torch.split(labels, size), strict=True):
                wrong = torch.nn.functional.cross_entropy(target(part), y, reduction="sum")
                gradients += torch.autograd.grad(wrong, part)
            x.grad = torch.cat(gradients).view_as(x).sign()
            optimizer.step()
            x.data.clamp_(low, high)
            return x

        steps = payable(target, self.steps, len(labels))
        left = rounds({"x": x}, advance, steps, goal, work, what="a pixel")
        return Reconstructions(left["x"], start)
