"""What the hot paths are measured against computes the same."""

import pytest
import torch

from mibench.defenses import BiDO
from mibench.networks import MLP
from mibench.networks.dcgan import InversionDiscriminator
from mibench.seeding import seeded
from perf import naive


def test_the_straightforward_discriminator_is_ours(rng: torch.Generator) -> None:
    with seeded("test"):
        D = InversionDiscriminator(4, (1, 16, 16), 5, mbd=6, mbd_kernels=3)
        D.closeness.T.data /= 10
    x = torch.rand(7, 1, 16, 16, generator=rng)
    for got, want in zip(D(x), naive.judge(D, x), strict=True):
        torch.testing.assert_close(got, want)
    apart = D(x, [3, 4])[1]
    torch.testing.assert_close(
        apart, torch.cat([naive.judge(D, x[:3])[1], naive.judge(D, x[3:])[1]])
    )


@pytest.mark.parametrize("measure", ["nhsic", "coco_frobenius"])
def test_the_straightforward_regulariser_is_ours(measure: str, rng: torch.Generator) -> None:
    with seeded("test"):
        network = MLP().build((1, 8, 8), 5)
    x, y = torch.rand(16, 1, 8, 8, generator=rng), torch.arange(16) % 5
    want = naive.bido(network, x, y, measure, 0.5, 2.0)
    terms = BiDO(measure, lambda_x=0.5, lambda_y=2.0).loss_terms(network, x, y)
    torch.testing.assert_close(sum(terms.values()), want, rtol=1e-3, atol=1e-3)
