"""Adversarial training against inversion, towards wrong classes or against them.

Anti-adversarial training is that of its authors' released code, BreuerLabs, ICLR 2026,
https://github.com/BreuerLabs/Anti-Adversarial-Training; adversarial training is that of Madry et
al., ICLR 2018, https://arxiv.org/abs/1706.06083, with their values.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F

from mibench.roles import Batch, Defense
from mibench.spec import choose, require
from mibench.types import Classifier, Images, Labels, Scalar


@dataclass(frozen=True)
class AntiAdversarial(Defense):
    r"""Lets small changes of an image lead to wrong classes: adversarial examples count as theirs.

    .. math:: L(f(X), Y) + w\, L(f(X'), Y'), \quad \|X' - X\|_\infty \le \epsilon

    Y' is a wrong class, each equally likely but for the one after Y, which is twice as likely;
    X' lowers :math:`L(f(X'), Y')` by projected gradient descent from a uniform start. A row of
    ``epsilon`` 0 is its control: the loss of random wrong labels. Losses are means over the
    batch; the released code has sums, which are as many times larger.

    Attributes:
        weight: Of the second term (w), at least 0.
        epsilon: Largest change of a pixel, in [0, 1].
        rate: By how much a step changes each pixel.
        steps: Of the descent.
        mode: How the network computes in the descent: in "eval" mode, or as released in "train"
            mode, where it also moves the statistics of batch normalisation.
    """

    name: ClassVar[str] = "at-at"

    weight: float = 0.08
    epsilon: float = 2.5e-4
    rate: float = 5e-5
    steps: int = 5
    mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        require(self, weight=(0, float("inf")), epsilon=(0, 1), rate=(0, 1), steps=(0, 1000))
        choose(self, mode=("eval", "train"))

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy, and that of adversarial images, unless they weigh nothing."""
        terms = {"task": F.cross_entropy(network(batch.x), batch.y)}
        if self.weight:
            drawn = torch.randint(network.num_classes, batch.y.shape, generator=batch.rng)
            wrong = drawn.to(batch.y.device)
            wrong = torch.where(wrong == batch.y, (wrong + 1) % network.num_classes, wrong)
            x = perturbed(self, network, batch, wrong, towards=True)
            terms["adversarial"] = self.weight * F.cross_entropy(network(x), wrong)
        return terms


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    r"""Trains on adversarial images alone, Eq. (2.1) of Madry et al.

    .. math:: \min_f \max_{\|X' - X\|_\infty \le \epsilon} L(f(X'), Y)

    Attributes:
        epsilon: Largest change of a pixel, in [0, 1]; 0 is no defense.
        rate: By how much a step changes each pixel.
        steps: Of the ascent.
        mode: How the network computes in the ascent, as in ``at-at``.
    """

    name: ClassVar[str] = "adversarial-training"
    small: ClassVar[dict[str, int]] = {"steps": 2}

    epsilon: float = 0.005
    rate: float = 5e-4
    steps: int = 10
    mode: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        require(self, epsilon=(0, 1), rate=(0, 1), steps=(0, 1000))
        choose(self, mode=("eval", "train"))

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns the cross-entropy of adversarial images."""
        x = perturbed(self, network, batch, batch.y, towards=False)
        return {"task": F.cross_entropy(network(x), batch.y)}


def perturbed(
    how: AntiAdversarial | AdversarialTraining,
    network: Classifier,
    batch: Batch,
    labels: Labels,
    *,
    towards: bool,
) -> Images:
    """Returns images that the network takes more, or less, for those of the labels.

    Its weights get no gradient. It is left in the mode that it was found in.

    Args:
        how: Size and number of the steps.
        network: What is to be deceived.
        batch: The images, and the source of the start.
        labels: Classes.
        towards: Whether the loss of these classes is lowered, or else raised.
    """
    if not how.epsilon:
        return batch.x
    noise = 2 * torch.rand(batch.x.shape, generator=batch.rng, dtype=batch.x.dtype) - 1
    x = (batch.x + how.epsilon * noise.to(batch.x.device)).clamp(0, 1)
    low, high = (batch.x - how.epsilon).clamp(min=0), (batch.x + how.epsilon).clamp(max=1)
    training = network.training
    network.train(mode=how.mode == "train")
    for _ in range(how.steps):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), labels), x)
        change = how.rate * gradient.sign()
        x = (x.detach() - change if towards else x.detach() + change).clamp(low, high)
    network.train(training)
    return x.detach()
