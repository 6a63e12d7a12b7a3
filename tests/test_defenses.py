"""Defenses: their losses by hand, and what they do to the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.defenses import MID, BiDO, NoDefense, Unilateral
from mibench.defenses.dependence import (
    KERNELS,
    MEASURES,
    coco_frobenius,
    gaussian_kernel,
    linear_kernel,
)
from mibench.defenses.mid import Bottleneck, gaussian_kl
from mibench.networks import MLP
from mibench.roles import Batch
from mibench.seeding import generator, seeded
from mibench.types import Classifier, Images, predict

every_measure = pytest.mark.parametrize("measure", MEASURES)


class Necked(Classifier):
    """A linear classifier with a batch normalisation as its neck."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_classes = 3
        self.neck = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 3)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        z: Tensor = self.neck(x.flatten(1))
        return (z,)


@pytest.fixture
def network() -> Classifier:
    with seeded("tests"):
        return MLP(width=6, depth=3).build((1, 4, 4), 3).double()


@pytest.fixture
def x(rng: torch.Generator) -> Tensor:
    return torch.rand(12, 1, 4, 4, generator=rng, dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.arange(12) % 3


# The terms of Eq. (7), written once more and naively ----------------------------------------


def gaussian(x: Tensor) -> Tensor:
    x = x.flatten(1)
    gaps = (x[:, None] - x[None]).square().sum(2)
    return (-gaps / (2 * 25 * x.shape[1])).exp()


def naive(measure: str, K: Tensor, L: Tensor) -> Tensor:
    n = len(K)
    H = torch.eye(n, dtype=K.dtype) - 1 / n
    K, L = H @ K @ H, H @ L @ H
    if measure == "hsic":
        return (K @ L).trace() / (n - 1) ** 2
    if measure == "nhsic":
        ridge = 1e-5 * n * torch.eye(n, dtype=K.dtype)
        return (K @ (K + ridge).inverse() @ L @ (L + ridge).inverse()).trace()
    if measure == "kcca":
        shrunk = [torch.linalg.solve(G + 1e-5 * len(G) / 2 * torch.eye(len(G)), G) for G in (K, L)]
        first: Tensor = torch.linalg.svdvals(shrunk[0] @ shrunk[1].T)[0]
        return first
    if measure == "coco":
        largest: Tensor = torch.linalg.svdvals(K @ L)[0]
        return largest.sqrt() / n
    return (K @ L).square().sum().sqrt().sqrt() / n


def naive_terms(
    measure: str, network: Classifier, x: Tensor, y: Tensor, weights: tuple[float, float]
) -> dict[str, Tensor]:
    zs = network.latents(x)
    Y = F.one_hot(y, 3).double()
    labels = Y @ Y.T
    log = network(x).log_softmax(1)
    forget, keep = torch.zeros(2, dtype=x.dtype)
    for z in zs:
        forget = forget + naive(measure, gaussian(x), gaussian(z))
        keep = keep + naive(measure, gaussian(z), labels)
    return {
        "task": -(Y * log).sum(1).mean(),
        "d(X,Z)": weights[0] * forget,
        "d(Z,Y)": -weights[1] * keep,
    }


# No defense and BiDO ------------------------------------------------------------------------


def test_no_defense_is_the_cross_entropy_of_two_classes_by_hand(rng: torch.Generator) -> None:
    """Eq. (6) for k = 2: -log p_y = log(1 + exp(other logit - own logit))."""
    with seeded("tests"):
        network = MLP(width=5).build((1, 2, 2), 2)
    x, y = torch.rand(6, 1, 2, 2, generator=rng), torch.tensor([0, 1, 1, 0, 0, 1])
    own, other = (network(x).gather(1, i[:, None])[:, 0] for i in (y, 1 - y))
    terms = NoDefense().loss_terms(network, Batch(x, y))
    assert list(terms) == ["task"]
    torch.testing.assert_close(terms["task"], (1 + (other - own).exp()).log().mean())


@every_measure
def test_bido_without_weights_is_no_defense(
    measure: str, network: Classifier, x: Tensor, y: Tensor
) -> None:
    terms = BiDO(measure, lambda_x=0, lambda_y=0).loss_terms(network, Batch(x, y))
    plain = NoDefense().loss_terms(network, Batch(x, y))["task"]
    torch.testing.assert_close(sum(terms.values()), plain)


@every_measure
def test_bido_is_three_terms_summed_over_all_layers(
    measure: str, network: Classifier, x: Tensor, y: Tensor
) -> None:
    """Eq. (7) with the measure; Eq. (8) for "coco", Eq. (10) for "hsic"."""
    terms = BiDO(measure, lambda_x=2, lambda_y=3).loss_terms(network, Batch(x, y))
    torch.testing.assert_close(terms, naive_terms(measure, network, x, y, (2, 3)))


@every_measure
@pytest.mark.parametrize("term", ["d(X,Z)", "d(Z,Y)"])
def test_a_dependence_term_trains_every_layer_through_every_latent(
    measure: str, term: str, network: Classifier, x: Tensor, y: Tensor
) -> None:
    """A latent that were detached would be missing from the gradient."""
    hidden = [p for name, p in network.named_parameters() if not name.startswith("last")]
    ours = BiDO(measure, lambda_x=2, lambda_y=3).loss_terms(network, Batch(x, y))[term]
    hand = naive_terms(measure, network, x, y, (2, 3))[term]
    got, want = (torch.autograd.grad(loss, hidden) for loss in (ours, hand))
    assert all(g.abs().max() > 0 for g in want)
    torch.testing.assert_close(got, want)


def test_bido_leaves_the_network_as_it_is(network: Classifier) -> None:
    assert BiDO("hsic", lambda_x=1, lambda_y=1).harden(network) is network


def test_bido_refuses_an_unknown_measure_and_lists_the_known() -> None:
    with pytest.raises(ValueError, match="known: hsic, nhsic, coco, coco_frobenius"):
        BiDO("HSIC", lambda_x=1, lambda_y=1)


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, -1.0)])
def test_bido_refuses_a_negative_weight(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        BiDO("hsic", *weights)


# MID ----------------------------------------------------------------------------------------


def hardened(width: int) -> Classifier:
    with seeded("tests"):
        return MID(lambda_=0.1).harden(Necked(width))


@pytest.mark.parametrize(("width", "half"), [(4, 2), (9, 4), (16, 8)])
def test_the_bottleneck_is_half_as_wide_as_the_last_latent(width: int, half: int) -> None:
    network = hardened(width)
    assert isinstance(network.last, Bottleneck)
    assert network.noise_dim == half
    assert network.last.statistics.out_features == 2 * half
    assert network.last.classify.in_features == half


def test_mid_takes_the_neck_away() -> None:
    assert isinstance(hardened(4).neck, nn.Identity)


def test_the_bottleneck_halves_its_statistics_into_mean_and_softplus_deviation(
    rng: torch.Generator,
) -> None:
    last = hardened(8).last
    assert isinstance(last, Bottleneck)
    h = torch.randn(5, 8, generator=rng)
    mu, std = last.encode(h)
    torch.testing.assert_close(mu, last.statistics(h)[:, :4])
    torch.testing.assert_close(std, (1 + (last.statistics(h)[:, 4:] - 5).exp()).log())


def test_the_bottleneck_classifies_mean_plus_deviation_times_noise(
    rng: torch.Generator,
) -> None:
    last = hardened(8).last
    assert isinstance(last, Bottleneck)
    h, noise = torch.randn(5, 8, generator=rng), torch.randn(5, 4, generator=rng)
    mu, std = last.encode(h)
    torch.testing.assert_close(last(h, noise), last.classify(mu + std * noise))


def test_gaussian_kl_is_its_closed_form() -> None:
    mu, std = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.5], [1.0, 1.0]])
    first = 0.5 * (1 + 4 + 1 + 0.25 - 2 - 2 * torch.tensor(0.5).log())
    torch.testing.assert_close(gaussian_kl(mu, std), first / 2)  # a mean over two images


def test_gaussian_kl_of_the_standard_normal_is_zero() -> None:
    assert gaussian_kl(torch.zeros(3, 4), torch.ones(3, 4)).item() == 0


def test_gaussian_kl_agrees_with_torch_distributions(rng: torch.Generator) -> None:
    mu, std = torch.randn(7, 5, generator=rng), torch.rand(7, 5, generator=rng) + 0.1
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(
        normal(mu, std), normal(torch.zeros_like(mu), torch.ones_like(std))
    )
    torch.testing.assert_close(gaussian_kl(mu, std), divergence.sum(1).mean())


def test_gaussian_kl_and_its_gradient_stay_finite_where_softplus_underflows() -> None:
    rho = torch.full((2, 3), -200.0, requires_grad=True)
    loss = gaussian_kl(torch.zeros(2, 3), F.softplus(rho))
    (slope,) = torch.autograd.grad(loss, rho)
    assert loss.isfinite()
    assert slope.isfinite().all()


def test_mid_is_the_cross_entropy_of_one_draw_plus_the_weighted_kl(rng: torch.Generator) -> None:
    network = hardened(8)
    last = network.last
    assert isinstance(last, Bottleneck)
    x, y = torch.rand(6, 2, 2, 2, generator=rng), torch.arange(6) % 3
    with seeded("noise"):
        terms = MID(lambda_=0.1).loss_terms(network, Batch(x, y))
    with seeded("noise"):
        noise = torch.randn(6, 4)
    mu, std = last.encode(x.flatten(1))
    logits = last.classify(mu + std * noise)
    want = {"task": F.cross_entropy(logits, y), "I(X;Z)": 0.1 * gaussian_kl(mu, std)}
    torch.testing.assert_close(terms, want)


def test_mid_draws_its_noise_at_test_time_too(rng: torch.Generator) -> None:
    network = hardened(8).eval()
    x = torch.rand(4, 2, 2, 2, generator=rng)
    with seeded("noise"):
        assert not torch.equal(network(x), network(x))


def test_prediction_by_mid_does_not_depend_on_the_batch_size(rng: torch.Generator) -> None:
    network = hardened(8)
    x = torch.rand(10, 2, 2, 2, generator=rng)
    few, many = (predict(network, x, generator("same"), batch)[0] for batch in (3, 10))
    other, _ = predict(network, x, generator("other"))
    torch.testing.assert_close(few, many)
    assert not torch.allclose(many, other)


def test_prediction_leaves_the_mode_of_the_network_as_it_was(rng: torch.Generator) -> None:
    network = hardened(8)
    network.train()
    predict(network, torch.rand(4, 2, 2, 2, generator=rng), rng)
    assert network.training


@pytest.mark.parametrize("ratio", [0.0, 1.5])
def test_mid_refuses_a_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"MID\.ratio must be in"):
        MID(lambda_=0.1, ratio=ratio)


def test_unilateral_is_the_task_loss_plus_the_weighted_dependence_of_the_logits(
    rng: torch.Generator,
) -> None:
    with seeded("test"):
        network = MLP(width=4).build((1, 2, 2), 3)
    x, y = torch.rand(6, 1, 2, 2, generator=rng), torch.arange(6) % 3
    logits = network(x)
    terms = Unilateral(lambda_=7.0).loss_terms(network, Batch(x, y))
    want = coco_frobenius(gaussian_kernel([x.flatten(1)])[0], linear_kernel([logits])[0])
    torch.testing.assert_close(terms["task"], F.cross_entropy(logits, y))
    torch.testing.assert_close(terms["d(X,Y)"], 7 * want.float())


def test_bido_takes_other_kernels(rng: torch.Generator) -> None:
    with seeded("test"):
        network = MLP(width=4).build((1, 2, 2), 3)
    x, y = torch.rand(6, 1, 2, 2, generator=rng), torch.arange(6) % 3
    values = {
        kernel: BiDO("hsic", 1, 1, kernel=kernel).loss_terms(network, Batch(x, y))["d(X,Z)"].item()
        for kernel in KERNELS
    }
    assert len(set(values.values())) == len(KERNELS)
    with pytest.raises(ValueError, match="known: gaussian, median, imq, linear"):
        BiDO("hsic", 1, 1, kernel="rbf")
