r"""Stealthy shield defense, Zhuang et al., ICLR 2025, SSD.

Of an image's scores f a class k is drawn, whose mean scores are q, and what is let out is the
nearest to q within a budget:

.. math:: k \sim \mathrm{softmax}(f / T), \qquad
    \min_p \mathrm{KL}(p \,\Vert\, q_k) \;\text{ where }\; \|p - f\|_1 \le \epsilon H(f)
"""

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.defenses.release.base import LEAST, Answer, Release
from mibench.roles import Defense, NoDefense
from mibench.spec import require
from mibench.store import Work
from mibench.types import Images, ImageSet

INF = float("inf")


@dataclass(frozen=True)
class SSD(Release):
    """Moves scores towards the mean scores of a class that is drawn, the further the less sure.

    An uncertain image thus gets the class of a draw, which misleads label-only attacks. The draw
    is decided by the image's pixels, as bytes: asking again draws no other.

    Attributes:
        epsilon: L1 distance that scores may move for each nat of their entropy; the authors take
            0.35 to 1.5.
        temperature: Of the draw (T), over scores and not logits.
        inner: How the target is trained.
    """

    name: ClassVar[str] = "ssd"

    epsilon: float = 0.5
    temperature: float = 0.1
    inner: Defense = field(default_factory=NoDefense)

    def __post_init__(self) -> None:
        require(self, epsilon=(0, INF), temperature=(1e-6, INF))

    def fit(
        self, answer: Answer, held_out: ImageSet, rng: torch.Generator, work: Work
    ) -> dict[str, Tensor]:
        """Returns the mean scores of the held-out images of each class."""
        scores, labels = answer(held_out), held_out.labels
        counts = torch.bincount(labels, minlength=scores.shape[1])
        sums = torch.zeros(len(counts), scores.shape[1]).index_add_(0, labels, scores)
        return {"means": sums / counts.clamp(min=1)[:, None]}

    def __call__(
        self,
        probs: Float[Tensor, "n k"],
        x: Images,
        state: dict[str, Tensor],
        rng: torch.Generator,
    ) -> Float[Tensor, "n k"]:
        """Returns the moved scores."""
        f = probs.double()
        until = self.chances(f).cumsum(1)
        drawn = (until <= uniform_of(x).to(f.device)[:, None]).sum(1).clamp(max=f.shape[1] - 1)
        return self.moved(f, state["means"][drawn].double()).to(probs.dtype)

    def chances(self, f: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Returns the probability that each class is drawn."""
        return (f / self.temperature).softmax(1)

    def moved(self, f: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        r"""Returns the distributions nearest to q within the budget around f.

        They are f held within a and b times q. As a function of a, the mass that is added,
        :math:`\sum_i (a q_i - f_i)_+`, is the greatest of :math:`a Q - F` over sets of classes,
        and those are the smallest ratios f / q; so the a of half the budget is the least of
        :math:`(F + e/2) / Q`. Likewise b, of the mass that is taken away.
        """
        q = q.clamp(min=LEAST)
        half = self.epsilon * -torch.xlogy(f, f).sum(1, keepdim=True) / 2
        order = (f / q).argsort(1)
        fs, qs = f.gather(1, order), q.gather(1, order)
        low = ((fs.cumsum(1) + half) / qs.cumsum(1)).amin(1, keepdim=True)
        fs, qs = fs.flip(1), qs.flip(1)
        high = ((fs.cumsum(1) - half) / qs.cumsum(1)).amax(1, keepdim=True)
        near = (f - q).abs().sum(1, keepdim=True) <= 2 * half
        return torch.where(near, q, f.maximum(low * q).minimum(high * q)).clamp(0, 1)


def uniform_of(x: Images) -> Float[Tensor, " n"]:
    """Returns a number in [0, 1) for each image, which its pixels, as bytes, decide."""
    pixels = (255 * x).round().byte().cpu().numpy()
    heads = [hashlib.sha256(image.tobytes()).digest()[:8] for image in pixels]
    return torch.tensor(
        [(int.from_bytes(head, "big") >> 11) / 2**53 for head in heads], dtype=torch.float64
    )
