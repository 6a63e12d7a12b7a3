"""Differentially private training, Abadi et al., CCS 2016, https://arxiv.org/abs/1607.00133."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd, log, pi
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from mibench.networks.classifiers.resnet import RectifiedNorm
from mibench.roles import Batch, Defense, NoDefense
from mibench.spec import require
from mibench.types import Classifier, Scalar

if TYPE_CHECKING:
    from mibench.training.train import Recipe

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64))
"""Of the Rényi divergences that epsilon is the best bound of; those of Opacus."""


@dataclass(frozen=True)
class DPSGD(NoDefense):
    r"""Clips each image's gradient and adds noise to their sum, Algorithm 1 of Abadi et al.

    .. math:: g = \frac{1}{m} \Big( \sum_i g_i \min(1, C / \|g_i\|) + \sigma C\, N(0, I) \Big)

    m is the recipe's batch size, whatever the batch's. A group normalisation takes the place of
    each batch normalisation, through which an image would change the gradients of others.

    Attributes:
        noise: Standard deviation of the noise (σ), in units of ``clip``, at least 0.
        clip: Largest norm of an image's gradient (C); 0 leaves gradients as they are, for a
            twin without noise.
        delta: Chance that epsilon does not hold, in (0, 1).
        groups: Channels are normalised in so many groups, or in the largest number below that
            divides both it and the channels.
        chunk: Images whose gradients are held in memory together; decides the last bits.
        strict: Whether cells are refused in which epsilon does not hold: it is that of the
            sampler "poisson", of weights that are not selected by private images, and of this
            training alone, whatever the network was trained on before.
    """

    name: ClassVar[str] = "dp-sgd"
    undefended: ClassVar[bool] = False
    idle: ClassVar[tuple[str, ...]] = ("delta", "chunk", "strict")
    small: ClassVar[Mapping[str, Any]] = {"strict": False}

    noise: float = 1.0
    clip: float = 1.0
    delta: float = 1e-5
    groups: int = 32
    chunk: int = 16
    strict: bool = True

    def __post_init__(self) -> None:
        most = float("inf")
        require(self, noise=(0, most), clip=(0, most), delta=(1e-100, 1 - 1e-9))
        require(self, groups=(1, most), chunk=(1, most))
        if self.noise and not self.clip:
            raise ValueError("DPSGD.noise is in units of DPSGD.clip, which is 0: raise it")

    def harden(self, network: Classifier) -> Classifier:
        """Returns the network with group normalisations."""
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.modules.batchnorm._BatchNorm):
                    setattr(parent, name, self._by_group(child))
        return network

    def _by_group(self, norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
        channels = norm.num_features
        groups = gcd(self.groups, channels)
        # A vector's group of one number would always be 0.
        alone = groups == channels and isinstance(norm, nn.BatchNorm1d)
        instead = Grouped(1 if alone else groups, channels, affine=norm.affine)
        for ours, theirs in zip(instead.parameters(), norm.parameters(), strict=True):
            ours.requires_grad = theirs.requires_grad
        return nn.Sequential(nn.ReLU(), instead) if isinstance(norm, RectifiedNorm) else instead

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        """Takes a step by the noisy gradient, also where the batch is empty."""
        if not self.clip:
            return super().step(network, batch, optimizer)
        weights = {k: p for k, p in network.named_parameters() if p.requires_grad}
        total = {k: torch.zeros_like(p) for k, p in weights.items()}
        losses = []
        for start in range(0, len(batch.y), self.chunk):
            part = slice(start, start + self.chunk)
            gradients, loss = per_image(network, weights, batch.x[part], batch.y[part])
            squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
            norms = torch.stack(squares).sum(0).sqrt()
            factors = self.clip / norms.clamp(min=self.clip)
            for name, gradient in gradients.items():
                total[name] += torch.tensordot(factors, gradient, dims=1)
            losses.append(loss)
        optimizer.zero_grad(set_to_none=True)
        for name, weight in weights.items():
            draw = torch.randn(weight.shape, generator=batch.rng, dtype=weight.dtype)
            noise = self.noise * self.clip * draw.to(weight.device)
            weight.grad = (total[name] + noise) / batch.expected
        optimizer.step()
        return {"task": torch.cat(losses).mean()} if losses else {}

    def twin(self) -> Defense:
        """Returns the same group normalisations, trained by the plain gradient."""
        return replace(self, noise=0.0, clip=0.0)

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Refuses recipes and networks for which epsilon does not hold, if ``strict``."""
        recipe, network = cell.recipe, cell.setting.network
        if not (self.strict and self.noise):
            return ""
        if network.trained:
            return (
                f"the epsilon of dp-sgd holds of its own training, and {network.name} comes "
                "trained, on images that it does not count; set defense.strict=false"
            )
        if recipe.sampler == "poisson" and recipe.select == "last":
            return ""
        return (
            "the epsilon of dp-sgd holds for recipe.sampler=poisson and recipe.select=last, not "
            f"for {recipe.sampler} and {recipe.select}; set these, or defense.strict=false"
        )

    def facts(self, recipe: "Recipe", images: int) -> dict[str, float]:
        """Returns epsilon and delta of the whole training, if there is one, with noise.

        They are those of the sampler "poisson" and the last weights, whatever the recipe's.
        """
        if not (self.noise and recipe.epochs):
            return {}
        rate = min(1.0, recipe.batch_size / images)
        epsilon = privacy(self.noise, rate, recipe.planned_steps(images), self.delta)
        return {"epsilon": epsilon, "delta": self.delta}


class Grouped(nn.GroupNorm):
    """A group normalisation that refuses groups of one number, of which it would make zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised; raises ValueError if an image has one number in each group."""
        if x.shape[1:].numel() == self.num_groups:
            raise ValueError(
                f"dp-sgd normalises {self.num_channels} channels in {self.num_groups} groups, and "
                "maps here have one pixel: each group is one number, which would become 0; lower "
                "defense.groups or take larger images"
            )
        return super().forward(x)


def per_image(
    network: Classifier,
    weights: dict[str, nn.Parameter],
    x: Float[Tensor, "m c h w"],
    y: Tensor,
) -> tuple[dict[str, Tensor], Float[Tensor, " m"]]:
    """Returns each image's gradient by the weights' names, and its loss."""

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, values, (image[None],))
        return F.cross_entropy(logits, label[None])

    each = vmap(grad_and_value(loss), in_dims=(None, 0, 0), randomness="different")
    gradients, losses = each({k: p.detach() for k, p in weights.items()}, x, y)
    return gradients, losses


def privacy(noise: float, rate: float, steps: int, delta: float) -> float:
    r"""Returns the epsilon of steps of the subsampled Gaussian mechanism, by Rényi divergences.

    Of order a, a step's is that of Mironov et al. 2019, https://arxiv.org/abs/1908.10530, Eq. (4),
    integrated numerically, and epsilon is that of Canonne et al., NeurIPS 2020,
    https://arxiv.org/abs/2004.00010, Proposition 12; the least over ``ORDERS`` counts.

    Args:
        noise: Standard deviation of the noise in units of the largest norm, above 0.
        rate: An image's chance to be in a batch.
        steps: How many batches.
        delta: Chance that epsilon does not hold.
    """
    best = float("inf")
    for order in ORDERS:
        divergence = steps * _log_moment(noise, rate, order) / (order - 1)
        epsilon = divergence - (log(delta) + log(order)) / (order - 1) + log((order - 1) / order)
        best = min(best, max(0.0, epsilon))
    return best


def _log_moment(noise: float, rate: float, order: float) -> float:
    r"""Returns log E[((1 - q) + q exp((2z - 1) / 2σ²))^a] for z ~ N(0, σ²)."""
    if rate == 1:
        return order * (order - 1) / (2 * noise**2)
    z = torch.arange(-40 * noise, order + 40 * noise, noise / 10, dtype=torch.float64)
    inner = torch.logaddexp(
        torch.full_like(z, log(1 - rate)), log(rate) + (2 * z - 1) / (2 * noise**2)
    )
    density = -z.square() / (2 * noise**2) - log(noise * (2 * pi) ** 0.5)
    return float(torch.logsumexp(density + order * inner, 0)) + log(noise / 10)
