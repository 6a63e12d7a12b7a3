r"""A decoder of the target's scores, Yang et al., CCS 2019, https://arxiv.org/abs/1902.08552.

It learns to draw public images from what the target says of them:

.. math:: \min_\theta \; E_x \lVert G_\theta(\tau(f(x))) - x \rVert^2, \qquad
    \tau_t(p)_k = \max(\log p_k, b) + c

for the t largest scores, raised together where the least of them is negative; the others are 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.attacks.access import Query
from mibench.attacks.priors.gan import descend_on
from mibench.networks.generators.dcgan import doublings
from mibench.roles import PriorSpec
from mibench.spec import require, require_betas
from mibench.store import Payload, Work, check_finite
from mibench.types import Access, Images, ImageSet, Labels, Offer, Prior, Shape

INF = float("inf")
SHIFT = 50.0
"""c, what is added to logarithms of scores."""


def transformed(
    scores: Float[Tensor, "n k"], truncation: int = 0, floor: float = -SHIFT
) -> Float[Tensor, "n k"]:
    """Returns τ_t of scores, not negative.

    Args:
        scores: Probabilities.
        truncation: t, how many of the largest scores are given; 0 for all.
        floor: b, the least logarithm.
    """
    kept = scores.topk(min(truncation or scores.shape[1], scores.shape[1]), 1)
    values = kept.values.log().clamp(min=floor) + SHIFT
    values = values + (-values.amin(1, keepdim=True)).clamp(min=0)
    return torch.zeros_like(scores).scatter(1, kept.indices, values)


class Decoder(Prior):
    """Scores to images: transposed convolutions, each followed by normalisation and tanh.

    Its latents are scores.

    Args:
        num_classes: Scores of an image.
        width: Channels before the image; each map of half the side has twice as many.
        shape: Of an image, (c, h, w).
        truncation: As :func:`transformed` takes it.
        floor: The same.
    """

    def __init__(
        self, num_classes: int, width: int, shape: Shape, truncation: int, floor: float
    ) -> None:
        super().__init__()
        self.z_dim, self.truncation, self.floor = num_classes, truncation, floor
        widths = [width * 2**i for i in reversed(range(doublings(shape)))]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([num_classes, *widths], widths, strict=False):
            stride, padding = (2, 1) if layers else (1, 0)
            up = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding)
            layers += [up, nn.BatchNorm2d(outputs), nn.Tanh()]
        last = nn.ConvTranspose2d(widths[-1], shape[0], 4, stride=2, padding=1)
        self.decode = nn.Sequential(*layers, last, nn.Sigmoid())

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n z"]:
        """Draws scores, any as likely as any, on the CPU."""
        parts = -torch.rand(n, self.z_dim, generator=rng).clamp(min=1e-12).log()
        return parts / parts.sum(1, keepdim=True)

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns the images of scores."""
        scores = transformed(z, self.truncation, self.floor)
        x: Images = self.decode(scores[:, :, None, None])
        return x


@dataclass(frozen=True)
class InversionNetwork(PriorSpec):
    """A decoder that has learnt to draw public images from the target's scores of them.

    Attributes:
        width: Channels before the image; maps before have more.
        truncation: t, how many of the largest scores the decoder is given; 0 for all.
        floor: b, the least logarithm of a score. -1000, as released, lifts all others by about
            950 where a score is exactly 0.
        epochs: Passes over the public images; the last counts.
        batch_size: Images per step.
        lr: Of Adam, in the variant AMSGrad.
        betas: Its decay rates.
    """

    name: ClassVar[str] = "inversion-network"
    small: ClassVar[Mapping[str, Any]] = {"width": 4, "epochs": 2, "batch_size": 16}
    access: ClassVar[Access] = "scores"
    offers: ClassVar[tuple[Offer, ...]] = ()

    width: int = 128
    truncation: int = 0
    floor: float = -SHIFT
    epochs: int = 100
    batch_size: int = 128
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)

    def __post_init__(self) -> None:
        require(
            self, width=(1, INF), truncation=(0, INF), floor=(-INF, 0), epochs=(1, INF),
            batch_size=(2, INF), lr=(1e-12, INF),
        )  # fmt: skip
        require_betas(self, self.betas)

    def build(self, shape: Shape, num_classes: int) -> Decoder:
        """Returns an untrained decoder."""
        return Decoder(num_classes, self.width, shape, self.truncation, self.floor)

    def planned_steps(self, images: int) -> int:
        """Returns the optimiser's steps."""
        return self.epochs * (images // min(self.batch_size, images))

    def optimizer(self, prior: Prior) -> torch.optim.Optimizer:
        """Returns what moves the decoder."""
        return torch.optim.Adam(prior.parameters(), self.lr, self.betas, amsgrad=True)

    def train(
        self, prior: Prior, public: ImageSet, target: Query, rng: torch.Generator, work: Work
    ) -> None:
        """Asks the target once about each public image, and learns to draw it from the answer."""
        soft = work.part("answers", lambda: {"soft": target.soft_answers(public)})["soft"]
        optimizer = self.optimizer(prior)
        size = min(self.batch_size, len(public))
        losses: list[float] = []
        if (saved := work.load()) is not None:
            prior.load_state_dict(saved["prior"])
            optimizer.load_state_dict(saved["optimizer"])
            rng.set_state(saved["rng"])
            losses = saved["losses"].tolist()
        prior.train()

        def state() -> Payload:
            modules = {"prior": prior.state_dict(), "optimizer": optimizer.state_dict()}
            return {**modules, "rng": rng, "losses": torch.tensor(losses, dtype=torch.float64)}

        for epoch in range(len(losses), self.epochs):
            order = torch.randperm(len(public), generator=rng).to(work.device)
            total = torch.zeros((), device=work.device)
            for pick in order.split(size)[: len(public) // size]:  # type: ignore[no-untyped-call]
                loss = F.mse_loss(prior.generate(soft[pick]), public.take(pick).images)
                descend_on(loss, optimizer)
                total += loss.detach()
            losses.append(float(total / (len(public) // size)))
            check_finite(total, f"the loss in epoch {epoch + 1}")
            work.save(state)
            work.progress(epoch + 1, self.epochs)
        prior.history = {"error": torch.tensor(losses)}
