"""Controls: attacks that find nothing, to learn what an evaluator accepts all the same.

What an evaluation classifier says yes to here is its rate of false positives; see
``Cell.control`` and the metric ``attack_acc_corrected``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mibench.attacks.gan import InversionGAN
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.views import payable
from mibench.spec import choose, require
from mibench.store import Payload, Work
from mibench.types import Attack, Classifier, Prior, PriorSpec, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class PriorSamples(Attack):
    """Draws from the prior, not optimised: what it knows before it asks the target.

    Attributes:
        prior: Where the images come from.
    """

    name: ClassVar[str] = "prior-samples"

    prior: PriorSpec = field(default_factory=InversionGAN)

    def planned_steps(self, blocks: int, samples: int = 1) -> int:
        """Returns 0: nothing is optimised."""
        return 0

    def invert(
        self,
        target: Classifier,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Draws ``samples`` images for every class; the class makes no difference."""
        z = _draws(prior, blocks, samples, rngs).to(work.device)
        return Reconstructions(_images(prior, z), z)


@dataclass(frozen=True)
class OtherClass(Attack):
    """Another attack's reconstructions of the class after the one that is asked for.

    They look like private images, of somebody else. The class after the last is the first.

    Attributes:
        prior: The attack's prior, in place of its own.
        attack: The attack.
    """

    name: ClassVar[str] = "other-class"

    prior: PriorSpec = field(default_factory=InversionGAN)
    attack: Attack = field(default_factory=KEDMI)

    def __post_init__(self) -> None:
        attack: Any = self.attack
        if attack.access != "white":
            raise ValueError(f"OtherClass.attack must be a white-box attack, {attack.name} is not")
        if attack.identity.public:
            raise ValueError(
                f"OtherClass.attack must not have the identity loss {attack.identity.name}: a "
                "control is not shown public images"
            )
        object.__setattr__(self, "attack", replace(attack, prior=self.prior))

    @property
    def max_queries(self) -> int:  # type: ignore[override]
        """The attack's."""
        return self.attack.max_queries

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns those of the attack."""
        return self.attack.planned_steps(blocks, samples)

    def invert(
        self,
        target: Classifier,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Inverts the next class in place of each.

        Raises:
            ValueError: If the target knows one class only.
        """
        if target.num_classes < 2:
            raise ValueError("a target of one class has no other class to invert")
        others = [(block + 1) % target.num_classes for block in blocks]
        return self.attack.invert(target, prior, others, samples, rngs, work)


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

    def invert(
        self,
        target: Classifier,
        prior: Prior,
        blocks: Sequence[Tensor],
        samples: int,
        rngs: Sequence[torch.Generator],
        work: Work,
    ) -> Reconstructions:
        """Moves ``samples`` images of every class towards it; latents are where they started."""
        start = _images(prior, _draws(prior, blocks, samples, rngs).to(work.device))
        if self.start == "noise":
            shape = (samples, *start.shape[2:])
            start = torch.cat(
                [
                    torch.rand(samples, len(block), *shape[1:], generator=rng)
                    for block, rng in zip(blocks, rngs, strict=True)
                ],
                dim=1,
            ).to(work.device)
        labels = torch.cat(list(blocks)).to(work.device).repeat(samples)
        x = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([x], self.lr)
        low, high = (start - self.epsilon).clamp(min=0), (start + self.epsilon).clamp(max=1)
        first = 0
        if (saved := work.load()) is not None:
            x.data.copy_(saved["x"])
            first = saved["step"]

        steps = payable(target, self.steps, first, len(labels))

        def state() -> Payload:
            return {"x": x, "step": step + 1}

        for step in range(first, steps):
            wrong = torch.nn.functional.cross_entropy(
                target(x.flatten(0, 1)), labels, reduction="sum"
            )
            (slope,) = torch.autograd.grad(wrong, x)
            x.grad = slope.sign()
            optimizer.step()
            x.data.clamp_(low, high)
            work.steps += 1
            work.save(state)
            work.progress(step + 1, steps)
        return Reconstructions(x.detach(), start)


def _draws(
    prior: Prior, blocks: Sequence[Tensor], samples: int, rngs: Sequence[torch.Generator]
) -> Tensor:
    """Returns latents (samples, classes, z), each block from its own generator."""
    draws = [
        prior.sample(samples * len(block), rng).view(samples, len(block), -1)
        for block, rng in zip(blocks, rngs, strict=True)
    ]
    return torch.cat(draws, dim=1)


@torch.no_grad()
def _images(prior: Prior, z: Tensor) -> Tensor:
    """Returns images (samples, classes, c, h, w) of latents (samples, classes, z)."""
    images = prior.generate(z.flatten(0, 1)).clamp(0, 1)
    return images.view(*z.shape[:2], *images.shape[1:])
