"""Normalising flows for many identities at once, as VMI's posterior over style vectors.

Glow's step without the learned rotation: Kingma & Dhariwal, NeurIPS 2018,
https://arxiv.org/abs/1807.03039, with the additive couplings of Dinh et al., ICLR workshop 2015,
https://arxiv.org/abs/1410.8516. Their use: Wang et al., NeurIPS 2021,
https://arxiv.org/abs/2201.10787.

The transforms keep nflows' interface, rows (batch, features) in and rows with one log-determinant
each out, so that they compose with nflows' own; nothing here needs an inverse. Every one holds the
parameters of several independent flows, and its batch is theirs flow after flow, equally many rows
each: one batched product serves them all.
"""

from collections.abc import Sequence
from math import log, pi

import torch
from jaxtyping import Float
from nflows.transforms.base import CompositeTransform, Transform
from torch import Tensor, nn

Rows = Float[Tensor, "rows d"]
LogDet = Float[Tensor, " rows"]


def log_normal(z: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    r"""Returns log N(z; 0, I) = −½ Σ_d (z_d² + log 2π), in nats, summed in float64."""
    return -(z.double().square().sum(-1) + z.shape[-1] * log(2 * pi)) / 2


class Linears(nn.Module):
    """One linear layer per flow; zero until drawn.

    Args:
        flows: Number of flows.
        inputs: Features that each layer reads.
        outputs: Features that each layer writes.
    """

    def __init__(self, flows: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(flows, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(flows, 1, outputs))

    @torch.no_grad()
    def draw(self, rngs: Sequence[torch.Generator]) -> "Linears":
        """Draws every flow's layer from its own generator, U(−k, k) with k² = 1 / inputs."""
        bound = self.weight.shape[1] ** -0.5
        for weight, bias, rng in zip(self.weight, self.bias, rngs, strict=True):
            weight.uniform_(-bound, bound, generator=rng)
            bias.uniform_(-bound, bound, generator=rng)
        return self

    def forward(self, x: Float[Tensor, "f s i"]) -> Float[Tensor, "f s o"]:
        """Returns x W + b, flow by flow."""
        return torch.baddbmm(self.bias, x, self.weight)


class FlowwiseTransform(Transform):  # type: ignore[misc] # nflows ships no types
    """A transform of several flows; subclasses map (f, s, d) with one log-determinant a row.

    Args:
        flows: Number of flows f; a batch has s rows for each of them.
    """

    def __init__(self, flows: int) -> None:
        super().__init__()
        self.flows = flows

    def forward(self, inputs: Rows, context: None = None) -> tuple[Rows, LogDet]:
        """Maps noise towards samples."""
        outputs, logabsdet = self.push(inputs.view(self.flows, -1, inputs.shape[1]))
        return outputs.flatten(0, 1), logabsdet.expand(outputs.shape[:2]).flatten()

    def push(self, x: Float[Tensor, "f s d"]) -> tuple[Tensor, Tensor]:
        """Returns the image of ``x`` and log|det|, broadcastable to (f, s)."""
        raise NotImplementedError


class ActNorm(FlowwiseTransform):
    """x ↦ e^a x + b, one a and b per flow and feature, zero at first."""

    def __init__(self, flows: int, dim: int) -> None:
        super().__init__(flows)
        self.log_scale = nn.Parameter(torch.zeros(flows, 1, dim))
        self.shift = nn.Parameter(torch.zeros(flows, 1, dim))

    @torch.no_grad()
    def normalise(self, inputs: Rows) -> None:
        """Sets scale and shift so that each flow's rows leave with mean 0 and variance 1."""
        x = inputs.view(self.flows, -1, inputs.shape[1])
        std, mean = torch.std_mean(x, 1, keepdim=True)
        self.log_scale.copy_(-std.log())
        self.shift.copy_(-mean / std)

    def push(self, x: Float[Tensor, "f s d"]) -> tuple[Tensor, Tensor]:
        """Scales, then shifts."""
        return torch.addcmul(self.shift, x, self.log_scale.exp()), self.log_scale.sum(2)


class Permutation(FlowwiseTransform):
    """Reorders the features, every flow in its own fixed order.

    Args:
        order: Which input each output is, a permutation per flow, shape (flows, dim).
    """

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__(len(order))
        self.register_buffer("order", order[:, None])

    def push(self, x: Float[Tensor, "f s d"]) -> tuple[Tensor, Tensor]:
        """Reorders; volumes stay."""
        return x.gather(2, self.order.expand_as(x)), x.new_zeros(1, 1)


class AdditiveCoupling(FlowwiseTransform):
    """(x₁, x₂) ↦ (x₁, x₂ + m(x₁)), x₁ the first half of the features; zero m at first.

    m is a perceptron with two hidden layers and ELU. VMI's 3x3 convolutions see maps of one
    pixel, where all but the kernel's centre meets padding: they are linear layers.

    Args:
        dim: Features, at least 2.
        hidden: Width of both hidden layers.
        rngs: One generator per flow; draws the hidden layers.
    """

    def __init__(self, dim: int, hidden: int, rngs: Sequence[torch.Generator]) -> None:
        super().__init__(len(rngs))
        self.kept = dim // 2
        self.net = nn.Sequential(
            Linears(self.flows, self.kept, hidden).draw(rngs),
            nn.ELU(),
            Linears(self.flows, hidden, hidden).draw(rngs),
            nn.ELU(),
            Linears(self.flows, hidden, dim - self.kept),
        )

    def push(self, x: Float[Tensor, "f s d"]) -> tuple[Tensor, Tensor]:
        """Adds m of the first half to the second; volumes stay."""
        first, second = x[..., : self.kept], x[..., self.kept :]
        return torch.cat([first, second + self.net(first)], 2), x.new_zeros(1, 1)


class Split(FlowwiseTransform):
    """Lets an inner transform work on the first half, given which the second half is Gaussian.

    (x₁, x₂) ↦ (h, μ(h) + e^{s(h)} x₂) with h the inner transform of x₁; μ and s are linear and
    zero at first. The multi-scale architecture of Dinh et al., ICLR 2017,
    https://arxiv.org/abs/1605.08803, with Glow's learned prior of what is split off.

    Args:
        inner: What maps the first ``dim // 2`` features.
        dim: Features of both halves together.
        flows: Number of flows.
    """

    def __init__(self, inner: nn.Module, dim: int, flows: int) -> None:
        super().__init__(flows)
        self.inner = inner
        self.kept = dim // 2
        self.prior = Linears(flows, self.kept, 2 * (dim - self.kept))

    def push(self, x: Float[Tensor, "f s d"]) -> tuple[Tensor, Tensor]:
        """Maps the first half, then places the second."""
        inside, logabsdet = self.inner(x[..., : self.kept].flatten(0, 1))
        first = inside.view(*x.shape[:2], -1)
        mean, log_std = self.prior(first).tensor_split([x.shape[2] - self.kept], 2)
        second = torch.addcmul(mean, x[..., self.kept :], log_std.exp())
        return torch.cat([first, second], 2), log_std.sum(2) + logabsdet.view(x.shape[:2])


def glow(
    dim: int, steps: int, hidden: int, levels: int, rngs: Sequence[torch.Generator]
) -> CompositeTransform:
    """Builds independent flows of ``steps`` times ActNorm, permutation, additive coupling.

    Args:
        dim: Features, at least 2 on the innermost level.
        steps: Steps per level.
        hidden: Width of the couplings' hidden layers.
        levels: Levels; each but the outermost works on half of the next one's features.
        rngs: One generator per flow.
    """
    flows = len(rngs)
    parts: list[nn.Module] = []
    if levels > 1:
        parts.append(Split(glow(dim // 2, steps, hidden, levels - 1, rngs), dim, flows))
    for _ in range(steps):
        order = torch.stack([torch.randperm(dim, generator=rng) for rng in rngs])
        parts += [ActNorm(flows, dim), Permutation(order), AdditiveCoupling(dim, hidden, rngs)]
    return CompositeTransform(parts)


class FlowBank(nn.Module):
    """Independent flows q_b of each identity's style vectors, computed together.

    A flow of ``joint`` covers all layers of an identity; otherwise each layer has its own, and
    the flows of one identity share their noise, as in VMI's released code. At first, samples
    are the noise in another order, normalised over ``warmup`` draws. An identity's flows depend
    on its own generator alone; the others beside it change rounding at most.

    Args:
        rngs: One generator per identity; the same one may stand for several, which then draw
            one after another.
        layers: Style layers L.
        dim: Dimensions D of a layer's style vector.
        steps: Steps per level: ActNorm, permutation, additive coupling.
        hidden: Width of the couplings' hidden layers.
        joint: One flow per identity over L·D dimensions instead of L over D.
        levels: Scales; between two of them half of the features is split off as a Gaussian
            with learned mean and variance. VMI's flows have 3 with 10 steps each.
        warmup: Gaussian vectors that initialise ActNorm; 0 leaves it the identity.

    Attributes:
        noise_dim: Dimensions of an identity's noise: L·D if joint, D otherwise.

    Raises:
        ValueError: If a size is below one, ``warmup`` is 1 or negative, or the innermost level
            has fewer than two features.
    """

    def __init__(
        self,
        rngs: Sequence[torch.Generator],
        layers: int,
        dim: int,
        steps: int,
        hidden: int,
        *,
        joint: bool = False,
        levels: int = 1,
        warmup: int = 100,
    ) -> None:
        super().__init__()
        sizes = {
            "identities": len(rngs), "layers": layers, "dim": dim, "steps": steps,
            "hidden": hidden, "levels": levels,
        }  # fmt: skip
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"a bank of flows needs {name} of at least 1, got {value}")
        if warmup < 0 or warmup == 1:
            raise ValueError(f"warmup must be 0 or at least 2 Gaussian vectors, got {warmup}")
        self.identities, self.layers, self.dim = len(rngs), layers, dim
        self.flows_per_identity = 1 if joint else layers
        self.noise_dim = layers * dim if joint else dim
        if self.noise_dim >> (levels - 1) < 2:
            raise ValueError(f"{self.noise_dim} dimensions cannot be halved {levels - 1} times "
                             "and leave two to couple")  # fmt: skip
        each = [rng for rng in rngs for _ in range(self.flows_per_identity)]
        self.transform = glow(self.noise_dim, steps, hidden, levels, each)
        if warmup:
            self._normalise(self.sample_noise(warmup, rngs))

    def sample_noise(
        self, samples: int, rngs: Sequence[torch.Generator]
    ) -> Float[Tensor, "b s e"]:
        """Draws N(0, I), in float32 on the CPU, each identity's from its own generator."""
        shape = samples, self.noise_dim
        return torch.stack([torch.randn(shape, generator=rng) for rng in rngs])

    def forward(
        self, noise: Float[Tensor, "b s e"]
    ) -> tuple[Float[Tensor, "b s l d"], Float[Tensor, "b s f"]]:
        """Returns samples and the log-density of each, in nats, in float64.

        Args:
            noise: Draws of N(0, I), samples of every identity.

        Returns:
            The style vectors z, and log q(z) of each flow: f is the number of layers, or 1 for
            a joint flow.
        """
        rows, logabsdet = self.transform(self._rows(noise))
        z, logabsdet = self._fold(rows, len(noise)), self._fold(logabsdet, len(noise))
        log_q = log_normal(noise)[..., None] - logabsdet
        return z.reshape(*noise.shape[:2], self.layers, self.dim), log_q

    def divergence(
        self, z: Float[Tensor, "b s l d"], log_q: Float[Tensor, "b s f"]
    ) -> Float[Tensor, "b s"]:
        """Returns log q(z) − log N(z; 0, I) per layer, in nats.

        Its mean over draws of q estimates the mean over layers of KL(q_l ‖ N(0, I)), or, of a
        joint flow, KL(q ‖ N(0, I)) / L.
        """
        return (log_q.sum(2) - log_normal(z).sum(2)) / self.layers

    def _rows(self, noise: Float[Tensor, "b s e"]) -> Rows:
        """Returns each identity's noise once per flow, flow after flow."""
        copies = noise[:, None].expand(-1, self.flows_per_identity, -1, -1)
        return copies.reshape(-1, self.noise_dim)

    def _fold(self, rows: Tensor, identities: int) -> Tensor:
        """Turns rows, flow after flow, into (identities, samples, flows of an identity, …)."""
        folded = rows.view(identities, self.flows_per_identity, -1, *rows.shape[1:])
        return folded.transpose(1, 2)

    @torch.no_grad()
    def _normalise(self, noise: Float[Tensor, "b s e"]) -> None:
        """Initialises every ActNorm with what reaches it from ``noise``."""
        norms = [m for m in self.modules() if isinstance(m, ActNorm)]
        hooks = [m.register_forward_pre_hook(lambda m, x: m.normalise(x[0])) for m in norms]
        self.transform(self._rows(noise))
        for hook in hooks:
            hook.remove()
