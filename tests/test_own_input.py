"""A dependence on the input is one on what the network reads, whatever network it is."""

import pytest
import torch
from torch import Tensor

from mibench.attacks.access import Watched
from mibench.defenses import BiDO, Unilateral
from mibench.defenses.dependence import KERNELS, coco_frobenius
from mibench.networks import MCNN, ResNet34
from mibench.roles import Batch, NetworkSpec
from mibench.running.stages.dependence import dependences
from mibench.seeding import seeded
from mibench.store import Work
from mibench.types import Classifier, ImageSet

SHAPE = (1, 32, 32)
LABELS = torch.arange(8) % 4


def build(spec: NetworkSpec) -> Classifier:
    with seeded("tests"):
        return spec.build(SHAPE, 4).double().eval()


@pytest.fixture
def pixels(rng: torch.Generator) -> Tensor:
    return torch.randint(256, (8, *SHAPE), generator=rng, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("spec", "scale", "shift"),
    [(MCNN(), 1, 0), (ResNet34(width=0.1), 2, -1)],
    ids=lambda v: str(v),
)
def test_dependences_on_the_input_are_on_what_the_network_reads(
    spec: NetworkSpec, scale: int, shift: int, pixels: Tensor
) -> None:
    network = build(spec)
    x = pixels.double() / 255
    assert torch.equal(network.own_input(x), scale * x + shift)
    assert torch.equal(Watched(network, Work()).own_input(x), scale * x + shift)

    *zs, logits = (z.flatten(1) for z in (*network.latents(x), network(x)))
    K_x, *K_zs = KERNELS["gaussian"]([(scale * x + shift).flatten(1), *zs])
    want = torch.stack([coco_frobenius(K_z, K_x) for K_z in K_zs])
    terms = BiDO("coco_frobenius", 3, 1).loss_terms(network, Batch(x, LABELS))
    torch.testing.assert_close(terms["d(X,Z)"], 3 * want.sum())
    (K_out,) = KERNELS["linear"]([logits])
    terms = Unilateral(lambda_=3).loss_terms(network, Batch(x, LABELS))
    torch.testing.assert_close(terms["d(X,Y)"], 3 * coco_frobenius(K_out, K_x))

    measured = dependences(network.float(), ImageSet(pixels, LABELS), ["coco_frobenius"])
    torch.testing.assert_close(measured[0, 0], want, rtol=1e-4, atol=0)
