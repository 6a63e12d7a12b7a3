"""Architectures: the papers' sizes, the contract of a classifier, and the GAN's parts."""

import pytest
import torch
from torch import nn

from mibench.networks import MCNN, MLP, NETWORKS, SCNN
from mibench.networks.generators.dcgan import (
    FAR,
    Critic,
    Generator,
    InversionDiscriminator,
    MinibatchDiscrimination,
    doublings,
)
from mibench.roles import NetworkSpec
from mibench.seeding import seeded
from mibench.types import Classifier, Shape


def build(spec: NetworkSpec, shape: Shape, num_classes: int = 5) -> Classifier:
    with seeded("tests"):
        return spec.build(shape, num_classes).eval()


def convolutions(network: nn.Module) -> list[tuple[int, int]]:
    """Returns (output channels, kernel size) of each convolution."""
    kinds = nn.Conv2d | nn.ConvTranspose2d
    return [(m.out_channels, m.kernel_size[0]) for m in network.modules() if isinstance(m, kinds)]


# Classifiers --------------------------------------------------------------------------------


def test_the_mcnn_has_the_papers_three_latents(rng: torch.Generator) -> None:
    zs = build(MCNN(), (1, 32, 32)).latents(torch.rand(2, 1, 32, 32, generator=rng))
    assert [z.flatten(1).shape[1] for z in zs] == [64 * 14 * 14, 3200, 256]


def test_the_scnn_has_512_features_and_five_latents(rng: torch.Generator) -> None:
    zs = build(SCNN(), (1, 32, 32), 10).latents(torch.rand(2, 1, 32, 32, generator=rng))
    assert len(zs) == 5
    assert zs[-1].shape == (2, 512)


def test_a_block_is_convolution_normalisation_leaky_relu_and_pooling() -> None:
    network = build(MCNN(), (1, 32, 32))
    blocks = list(network.get_submodule("blocks").children())
    kinds = [[type(layer) for layer in block.children()] for block in blocks]
    plain = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert kinds == [[*plain, nn.MaxPool2d], [*plain, nn.MaxPool2d], plain]
    slopes = {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)}
    assert slopes == {0.2}


@pytest.mark.parametrize("spec", [MCNN(), SCNN()], ids=lambda s: s.name)
def test_an_image_that_is_too_small_is_refused_with_a_sentence(spec: NetworkSpec) -> None:
    sentence = f"{spec.name} with kernels .* does not fit images of 8x8 pixels"
    with pytest.raises(ValueError, match=sentence):
        build(spec, (1, 8, 8))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_of_the_last_latent_is_the_forward_pass(name: str, rng: torch.Generator) -> None:
    network = build(NETWORKS[name](), (3, 32, 32))
    x = torch.rand(3, 3, 32, 32, generator=rng)
    zs = network.latents(x)
    assert zs[-1].ndim == 2
    assert network(x).shape == (3, 5)
    torch.testing.assert_close(network.head(zs[-1]), network(x))


def test_each_latent_of_the_perceptron_is_made_of_the_one_before(rng: torch.Generator) -> None:
    network = build(MLP(width=7, depth=3), (1, 4, 4))
    zs = network.latents(torch.rand(2, 1, 4, 4, generator=rng))
    layers = network.get_submodule("layers")
    assert isinstance(layers, nn.ModuleList)
    assert [z.shape for z in zs] == [(2, 7)] * 3
    torch.testing.assert_close(layers[2](zs[1]), zs[2])


def test_as_many_kernels_as_widths_are_needed() -> None:
    with pytest.raises(ValueError, match="as many widths as kernels"):
        MCNN(widths=(4, 4), kernels=(3,), paddings=(0,))


# Generators and discriminators --------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_generator_draws_images_of_the_size_in_the_unit_range(
    size: int, channels: int, rng: torch.Generator
) -> None:
    with seeded("tests"):
        G = Generator(6, 2, (channels, size, size))
    x = G(10 * torch.randn(4, 6, generator=rng))
    assert x.shape == (4, channels, size, size)
    assert x.min() >= 0
    assert x.max() <= 1


def test_the_generator_has_the_released_layers_at_64_pixels() -> None:
    with torch.device("meta"):
        G = Generator(100, 64, (3, 64, 64))
    assert G.get_submodule("project.0").weight.shape == (512 * 16, 100)
    assert convolutions(G) == [(256, 5), (128, 5), (64, 5), (3, 5)]


def test_the_critic_has_the_released_layers_at_64_pixels() -> None:
    with torch.device("meta"):
        D = Critic(64, (3, 64, 64))
    assert convolutions(D) == [(64, 5), (128, 5), (256, 5), (512, 5), (1, 4)]
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in D.modules()) == 3


@pytest.mark.parametrize("size", [8, 16, 64])
def test_the_critic_gives_one_number_per_image(size: int, rng: torch.Generator) -> None:
    with seeded("tests"):
        D = Critic(2, (3, size, size))
    assert D(torch.rand(5, 3, size, size, generator=rng)).shape == (5,)


def test_the_critic_judges_each_image_by_itself(rng: torch.Generator) -> None:
    with seeded("tests"):
        D = Critic(2, (1, 16, 16))
    x = torch.rand(5, 1, 16, 16, generator=rng)
    torch.testing.assert_close(D(x)[:2], D(x[:2]))


@pytest.mark.parametrize(("size", "layers"), [
    (32, [(64, 5), (128, 5), (256, 5)]),
    (64, [(64, 5), (128, 5), (256, 5), (256, 3)]),
])  # fmt: skip
def test_the_inversion_discriminator_has_4096_features(
    size: int, layers: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        D = InversionDiscriminator(64, (3, size, size), 10, mbd=2, mbd_kernels=3)
        features, logits = D(torch.zeros(2, 3, size, size))
    assert convolutions(D) == layers
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in D.modules()) == len(layers)
    assert features.shape == (2, 256 * 4 * 4)
    assert logits.shape == (2, 10)
    assert D.last.in_features == 4096 + 2


def test_the_inversion_discriminator_looks_across_its_batch(rng: torch.Generator) -> None:
    with seeded("tests"):
        D = InversionDiscriminator(2, (1, 8, 8), 3, mbd=4, mbd_kernels=2)
        D.closeness.T.data /= 10
    x = torch.rand(4, 1, 8, 8, generator=rng)
    features, logits = D(x)
    alone_features, alone_logits = D(x[:1])
    torch.testing.assert_close(features[:1], alone_features)
    assert not torch.allclose(logits[:1], alone_logits)


def test_minibatch_discrimination_is_a_double_loop(rng: torch.Generator) -> None:
    with seeded("tests"):
        layer = MinibatchDiscrimination(features=6, out=3, kernels=4)
    f = torch.randn(5, 6, generator=rng) / 10
    M = (f @ layer.T).view(5, 3, 4)
    want = torch.zeros(5, 3)
    for i in range(5):
        for j in range(5):
            if i != j:
                want[i] += (-(M[i] - M[j]).abs().sum(1)).exp()
    torch.testing.assert_close(layer(f), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_samples_are_as_close_to_the_bit_as_without_a_limit(
    dtype: torch.dtype, rng: torch.Generator
) -> None:
    with seeded("tests"):
        layer = MinibatchDiscrimination(features=6, out=8, kernels=4).to(dtype)
    f = (3 * torch.randn(64, 6, generator=rng)).to(dtype).requires_grad_()
    m = (f @ layer.T).view(64, 8, 4).transpose(0, 1)
    distances = torch.cdist(m, m, p=1)
    assert distances.max() > 87 > FAR > distances.median()
    plain = (-distances).exp().sum(2).T - 1
    assert torch.equal(layer(f), plain)
    own, other = (torch.autograd.grad(o.sum(), f)[0] for o in (layer(f), plain))
    assert torch.equal(own, other)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 4, 4), (3, 32, 16)])
def test_a_size_that_doubling_does_not_reach_is_refused(shape: Shape) -> None:
    with pytest.raises(ValueError, match=f"8, 16, 32, … pixels a side, not {shape[1]}x{shape[2]}"):
        Generator(4, 2, shape)


def test_doublings_from_four_pixels() -> None:
    assert [doublings((1, s, s)) for s in (8, 16, 32, 64)] == [1, 2, 3, 4]
