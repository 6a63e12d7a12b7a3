"""Normalising flows: stock nflows as the peer, exact densities, and identities kept apart."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from nflows.transforms import ActNorm as StockActNorm
from nflows.transforms import AdditiveCouplingTransform, CompositeTransform
from nflows.transforms import Permutation as StockPermutation
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal, Normal
from torch.func import jacrev

from mibench.networks.generators.flow import (
    ActNorm,
    AdditiveCoupling,
    FlowBank,
    Linears,
    Permutation,
    Split,
    log_normal,
)

KINDS = pytest.mark.parametrize(
    ("joint", "levels"), [(False, 1), (True, 1), (False, 2), (True, 3)]
)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@torch.no_grad()
def stir(module: nn.Module, rng: torch.Generator, size: float = 0.3) -> None:
    """Moves every parameter, so that nothing is at its initial zero."""
    for p in module.parameters():
        p.add_(size * torch.randn(p.shape, generator=rng, dtype=p.dtype))


def log_density(law: Distribution, z: Tensor) -> Tensor:
    density: Tensor = law.log_prob(z)
    return density


def make(
    rng: torch.Generator, joint: bool = False, levels: int = 1, identities: int = 2, dim: int = 5
) -> FlowBank:
    """Returns a bank in float64, over 3 layers, that is far from its initial state."""
    seeds = generators(*range(identities))
    bank = FlowBank(seeds, layers=3, dim=dim, steps=2, hidden=6, joint=joint, levels=levels)
    stir(bank.double(), rng, 0.15)
    return bank


def noise_for(bank: FlowBank, samples: int, identities: int = 2) -> Tensor:
    return bank.sample_noise(samples, generators(*range(50, 50 + identities))).double()


# Stock nflows as the peer -------------------------------------------------------------------


class Net(nn.Module):
    """One flow's perceptron as nflows wants it: with a context."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        sizes = [inputs, hidden, hidden, outputs]
        with torch.device("meta"):  # draws nothing
            layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers).to_empty(device="cpu")

    def forward(self, x: Tensor, context: None) -> Tensor:
        for layer in list(self.layers)[:-1]:
            x = F.elu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


@torch.no_grad()
def stock(ours: nn.Module, flow: int) -> nn.Module:
    """Returns stock nflows' transform with the parameters of one flow of ours."""
    if isinstance(ours, ActNorm):
        norm: nn.Module = StockActNorm(ours.log_scale.shape[2]).double().eval()
        norm.get_parameter("log_scale").copy_(ours.log_scale[flow, 0])
        norm.get_parameter("shift").copy_(ours.shift[flow, 0])
        return norm
    if isinstance(ours, Permutation):
        permutation: nn.Module = StockPermutation(ours.order[flow, 0])
        return permutation
    if isinstance(ours, AdditiveCoupling):
        linears = [m for m in ours.net if isinstance(m, Linears)]
        changed = linears[-1].bias.shape[2]
        coupling: nn.Module = AdditiveCouplingTransform(
            [0] * ours.kept + [1] * changed, lambda i, o: Net(i, o, linears[0].bias.shape[2])
        )
        layers = coupling.get_submodule("transform_net.layers").children()
        for mine, theirs in zip(linears, layers, strict=True):
            theirs.get_parameter("weight").copy_(mine.weight[flow].T)
            theirs.get_parameter("bias").copy_(mine.bias[flow, 0])
        return coupling
    parts = ours.get_submodule("_transforms").children()
    composite: nn.Module = CompositeTransform([stock(part, flow) for part in parts])
    return composite


@pytest.mark.parametrize("dim", [4, 5])
@pytest.mark.parametrize("kind", ["actnorm", "permutation", "coupling"])
def test_a_transform_of_several_flows_is_nflows_own_for_each(
    kind: str, dim: int, rng: torch.Generator
) -> None:
    rngs = generators(1, 2, 3)
    order = torch.stack([torch.randperm(dim, generator=rng) for _ in rngs])
    ours = {
        "actnorm": ActNorm(3, dim),
        "permutation": Permutation(order),
        "coupling": AdditiveCoupling(dim, 7, rngs),
    }[kind].double()
    stir(ours, rng)
    x = torch.randn(3, 6, dim, generator=rng, dtype=torch.float64)
    rows, logabsdet = ours(x.flatten(0, 1))
    peers = [stock(ours, flow)(x[flow]) for flow in range(3)]
    torch.testing.assert_close(rows, torch.cat([p[0] for p in peers]))
    torch.testing.assert_close(logabsdet, torch.cat([p[1] for p in peers]))


def test_actnorm_is_initialised_as_nflows_initialises_it(rng: torch.Generator) -> None:
    x = 3 + 2 * torch.randn(2, 40, 5, generator=rng, dtype=torch.float64)
    ours = ActNorm(2, 5).double()
    ours.normalise(x.flatten(0, 1))
    for flow in range(2):
        peer = StockActNorm(5).double().train()
        peer(x[flow])
        torch.testing.assert_close(ours.log_scale[flow, 0], peer.log_scale)
        torch.testing.assert_close(ours.shift[flow, 0], peer.shift)


def test_a_layers_flow_is_stock_nflows_on_the_identitys_noise(rng: torch.Generator) -> None:
    bank = make(rng)
    noise = noise_for(bank, 4)
    z, log_q = bank(noise)
    for identity in range(2):
        for layer in range(3):
            want, logabsdet = stock(bank.transform, 3 * identity + layer)(noise[identity])
            torch.testing.assert_close(z[identity, :, layer], want)
            density = log_normal(noise[identity]) - logabsdet
            torch.testing.assert_close(log_q[identity, :, layer], density)


def test_a_joint_flow_is_stock_nflows_on_all_layers_at_once(rng: torch.Generator) -> None:
    bank = make(rng, joint=True)
    noise = noise_for(bank, 4)
    z, log_q = bank(noise)
    for identity in range(2):
        want, logabsdet = stock(bank.transform, identity)(noise[identity])
        torch.testing.assert_close(z[identity], want.view(4, 3, 5))
        torch.testing.assert_close(log_q[identity, :, 0], log_normal(noise[identity]) - logabsdet)


def test_a_3x3_convolution_of_a_single_pixel_is_a_linear_layer(rng: torch.Generator) -> None:
    """VMI's coupling nets convolve maps of 1x1: all but the kernel's centre meets padding."""
    kernel, bias = torch.randn(7, 5, 3, 3, generator=rng), torch.randn(7, generator=rng)
    x = torch.randn(6, 5, generator=rng)
    layer = Linears(1, 5, 7)
    with torch.no_grad():
        layer.weight[0] = kernel[:, :, 1, 1].T
        layer.bias[0, 0] = bias
    want = F.conv2d(x[..., None, None], kernel, bias, padding=1).flatten(1)
    torch.testing.assert_close(layer(x[None])[0], want)


# Exact densities ----------------------------------------------------------------------------


@KINDS
def test_the_log_determinant_is_that_of_the_jacobian(
    joint: bool, levels: int, rng: torch.Generator
) -> None:
    bank = make(rng, joint, levels, identities=1, dim=6)
    noise = noise_for(bank, 1, identities=1)
    jacobian = jacrev(lambda e: bank(e)[0].flatten())(noise)
    flows = jacobian.view(bank.flows_per_identity, bank.noise_dim, bank.noise_dim)
    want = log_normal(noise)[..., None] - torch.linalg.slogdet(flows).logabsdet
    assert want.shape == (1, 1, 1 if joint else 3)
    torch.testing.assert_close(bank(noise)[1], want)


def test_without_couplings_the_density_is_a_gaussian_with_the_actnorms_moments(
    rng: torch.Generator,
) -> None:
    bank = FlowBank(generators(4), 1, 3, steps=1, hidden=4).double()
    norm = next(m for m in bank.modules() if isinstance(m, ActNorm))
    order = next(m for m in bank.modules() if isinstance(m, Permutation)).order[0, 0]
    stir(norm, rng)
    std, mean = norm.log_scale.exp()[0, 0, order], norm.shift[0, 0, order]
    z, log_q = bank(noise_for(bank, 8, identities=1))
    torch.testing.assert_close(log_q, log_density(Normal(mean, std), z).sum(3))


def test_of_what_is_split_off_the_density_is_a_conditional_gaussian(rng: torch.Generator) -> None:
    split = Split(CompositeTransform([]), 4, flows=1).double()
    stir(split, rng)
    x = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    y, logabsdet = split(x)
    mean, log_std = split.prior(x[None, :, :2])[0].chunk(2, 1)
    gaussian = Normal(mean, log_std.exp())
    torch.testing.assert_close(y[:, :2], x[:, :2])
    density = log_normal(x[:, :2]) + log_density(gaussian, y[:, 2:]).sum(1)
    torch.testing.assert_close(log_normal(x) - logabsdet, density)


def test_the_standard_normal_density_is_summed_in_float64(rng: torch.Generator) -> None:
    z = torch.randn(3, 2, 5120, generator=rng)
    want = log_density(Normal(0, 1), z.double()).sum(2)
    torch.testing.assert_close(log_normal(z), want, rtol=1e-12, atol=0)


@KINDS
def test_float32_keeps_a_density_to_a_hundredth_of_a_nat(joint: bool, levels: int) -> None:
    bank = FlowBank(generators(0), 3, 128, steps=4, hidden=16, joint=joint, levels=levels)
    noise = bank.sample_noise(8, generators(1))
    with torch.no_grad():
        log_q = bank(noise)[1]
        exact = bank.double()(noise.double())[1]
    assert log_q.dtype == torch.float64
    torch.testing.assert_close(log_q, exact, rtol=0, atol=0.01)


# The first state ----------------------------------------------------------------------------


def test_levels_halve_the_features_and_couplings_keep_the_smaller_half() -> None:
    bank = FlowBank(generators(0), 1, 21, steps=2, hidden=3, levels=3)
    norms = [m for m in bank.modules() if isinstance(m, ActNorm)]
    couplings = [m for m in bank.modules() if isinstance(m, AdditiveCoupling)]
    splits = [m for m in bank.modules() if isinstance(m, Split)]
    assert [m.log_scale.shape[2] for m in norms] == [5, 5, 10, 10, 21, 21]
    assert [m.kept for m in couplings] == [2, 2, 5, 5, 10, 10]
    assert [m.kept for m in splits] == [10, 5]


@KINDS
def test_without_warmup_a_fresh_flow_is_a_permutation_and_its_kl_is_zero(
    joint: bool, levels: int
) -> None:
    bank = FlowBank(generators(0), 2, 8, 2, 5, joint=joint, levels=levels, warmup=0)
    noise = bank.sample_noise(6, generators(1))
    z, log_q = bank(noise)
    flows = z.reshape(6, bank.flows_per_identity, -1)
    sorted_noise = noise[0, :, None].expand_as(flows).sort(2).values
    assert torch.equal(flows.sort(2).values, sorted_noise)
    assert not torch.equal(flows, noise[0, :, None].expand_as(flows))
    torch.testing.assert_close(log_q[0], log_normal(flows))


@KINDS
def test_a_fresh_flow_normalises_its_warmup_vectors(joint: bool, levels: int) -> None:
    """They are what each identity's generator gives after the flow's weights."""
    drawn: list[Tensor] = []

    class Recorded(FlowBank):
        def sample_noise(self, samples: int, rngs: list[torch.Generator]) -> Tensor:  # type: ignore[override]
            drawn.append(super().sample_noise(samples, rngs))
            return drawn[-1]

    bank = Recorded(generators(0, 1), 2, 8, 2, 5, joint=joint, levels=levels, warmup=20)
    (noise,) = drawn
    z, _ = bank(noise)
    assert noise.shape == (2, 20, bank.noise_dim)
    std, mean = torch.std_mean(z, 1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    torch.testing.assert_close(std, torch.ones_like(std))


def test_a_fresh_flow_is_near_the_standard_normal_and_its_couplings_are_zero() -> None:
    bank = FlowBank(generators(0), 2, 64, 3, 5)
    z, log_q = bank(bank.sample_noise(500, generators(1)))
    kl = (log_q - log_normal(z)).mean().item()
    assert 0 < kl < 64 * 0.03  # a mean and a variance of 100 draws cost 1/100 nats a dimension
    for m in bank.modules():
        if isinstance(m, AdditiveCoupling):
            first, _, _, _, last = m.net.children()
            assert first.get_parameter("weight").std() > 0.05
            assert not any(p.any() for p in last.parameters())


def test_hidden_layers_are_drawn_between_the_inverse_roots_of_their_width() -> None:
    layer = Linears(2, 16, 400).draw(generators(0, 1))
    assert not torch.equal(layer.weight[0], layer.weight[1])
    for p in (layer.weight, layer.bias):
        assert 0.24 < p.max() <= 0.25
        assert -0.25 <= p.min() < -0.24


# Identities and layers ----------------------------------------------------------------------


@KINDS
def test_the_same_generators_give_the_same_flows_and_others_do_not(
    joint: bool, levels: int
) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        return FlowBank(generators(0, seed), 2, 8, 2, 5, joint=joint, levels=levels).state_dict()

    a, b, c = state(1), state(1), state(2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    flows = 1 if joint else 2
    changed = {k for k in a if not torch.equal(a[k], c[k])}
    assert {k.rpartition(".")[2] for k in changed} == {
        "log_scale", "shift", "order", "weight", "bias"
    }  # fmt: skip
    assert all(torch.equal(a[k][:flows], c[k][:flows]) for k in a)


@KINDS
def test_an_identity_alone_gives_the_bits_it_gives_among_others(joint: bool, levels: int) -> None:
    def fit(*seeds: int) -> tuple[Tensor, Tensor]:
        bank = FlowBank(generators(*seeds), 2, 12, 2, 20, joint=joint, levels=levels)
        optimizer = torch.optim.Adam(bank.parameters(), 1e-2)
        rngs = generators(*(100 + s for s in seeds))
        for _ in range(3):
            z, log_q = bank(bank.sample_noise(16, rngs))
            loss = ((z - 1).square().sum((2, 3)) + log_q.sum(2)).mean(1).sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        out, log_q = bank(bank.sample_noise(16, rngs))
        return out.detach(), log_q.detach()

    together = fit(3, 4, 5)
    for i, alone in enumerate([fit(3), fit(4), fit(5)]):
        for many, one in zip(together, alone, strict=True):
            assert torch.equal(many[i], one[0])


@KINDS
def test_the_loss_of_one_identity_has_no_gradient_in_anothers_parameters(
    joint: bool, levels: int, rng: torch.Generator
) -> None:
    bank = make(rng, joint, levels, identities=3, dim=9)
    z, log_q = bank(noise_for(bank, 4, identities=3))
    loss = z[1].square().sum() + log_q[1].sum()
    for p, g in zip(
        bank.parameters(), torch.autograd.grad(loss, list(bank.parameters())), strict=True
    ):
        first, own, last = g.view(3, bank.flows_per_identity, *p.shape[1:])
        assert own.any()
        assert not first.any()
        assert not last.any()


def test_identities_that_share_a_generator_draw_one_after_another() -> None:
    shared, twin = generators(7, 7)
    noise = FlowBank(generators(0), 1, 4, 1, 3).sample_noise(5, [shared, shared])
    assert torch.equal(noise[0], torch.randn(5, 4, generator=twin))
    assert torch.equal(noise[1], torch.randn(5, 4, generator=twin))


def test_layers_are_independent_flows_and_only_a_joint_flow_mixes_them(
    rng: torch.Generator,
) -> None:
    for joint in (False, True):
        bank = make(rng, joint, identities=1)
        z, _ = bank(noise_for(bank, 40, identities=1))
        grads = torch.autograd.grad(z[:, :, 2].square().sum(), list(bank.parameters()))
        reached = [True] if joint else [False, False, True]
        assert all(g.flatten(1).any(1).tolist() == reached for g in grads)


# Fitting ------------------------------------------------------------------------------------


def test_a_flow_learns_each_identitys_gaussian() -> None:
    mean = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    root = torch.tensor([[[1.0, 0.0], [0.8, 0.5]], [[0.4, 0.0], [-0.3, 1.2]]])
    target = MultivariateNormal(mean, scale_tril=root)
    bank = FlowBank(generators(0, 1), 1, 2, steps=3, hidden=16)
    rngs = generators(2, 3)
    optimizer = torch.optim.Adam(bank.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)

    def divergence(samples: int) -> Tensor:
        z, log_q = bank(bank.sample_noise(samples, rngs))
        gap: Tensor = log_q[..., 0] - log_density(target, z[:, :, 0].transpose(0, 1)).T
        return gap.mean(1)

    first = divergence(5000).detach()
    for _ in range(300):
        optimizer.zero_grad()
        torch.autograd.backward(divergence(128).sum())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        z = bank(bank.sample_noise(20_000, rngs))[0][:, :, 0]
        last = divergence(20_000)
    assert first.min() > 1
    assert last.max() < 0.02
    torch.testing.assert_close(z.mean(1), mean, rtol=0, atol=0.05)
    covariance = torch.stack([x.T.cov() for x in z])
    torch.testing.assert_close(covariance, root @ root.mT, rtol=0, atol=0.1)


# Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"steps": 0}, "steps of at least 1, got 0"),
        ({"hidden": -1}, "hidden of at least 1, got -1"),
        ({"levels": 0}, "levels of at least 1, got 0"),
        ({"rngs": []}, "identities of at least 1, got 0"),
        ({"warmup": 1}, "warmup must be 0 or at least 2 Gaussian vectors, got 1"),
        ({"warmup": -2}, "warmup must be 0 or at least 2 Gaussian vectors, got -2"),
        ({"levels": 3}, "7 dimensions cannot be halved 2 times and leave two to couple"),
        ({"dim": 1}, "1 dimensions cannot be halved 0 times"),
    ],
)
def test_an_impossible_size_is_refused_with_a_sentence(
    change: dict[str, int], sentence: str
) -> None:
    sizes = {"rngs": generators(0), "layers": 1, "dim": 7, "steps": 1, "hidden": 2}
    with pytest.raises(ValueError, match=sentence):
        FlowBank(**(sizes | change))  # type: ignore[arg-type]
