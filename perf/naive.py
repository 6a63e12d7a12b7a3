"""The same maths written straightforwardly: what the hot paths are measured against.

Nothing here is used by mibench. One block at a time, the target asked for its soft labels at
every step, three separate passes of the discriminator, distances through a four-way tensor,
explicit inverses in float32, and gradients of all parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.attacks.priors.gan import GAN, entropy, soft_cross_entropy
from mibench.networks.generators.dcgan import InversionDiscriminator
from mibench.types import Classifier


def judge(D: InversionDiscriminator, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the features and logits of KED-MI's discriminator."""
    f = D.encode(x).flatten(1)
    M = (f @ D.closeness.T).view(len(f), D.closeness.out, -1)
    distance = (M[:, None] - M[None]).abs().sum(3)
    closeness = (-distance).exp().sum(1) - 1
    return f, D.last(torch.cat([f, closeness], 1))


class PriorTraining:
    """Steps of KED-MI's GAN."""

    def __init__(self, gan: GAN, target: Classifier) -> None:
        assert isinstance(gan.discriminator, InversionDiscriminator)
        self.gan, self.target, self.D = gan, target, gan.discriminator
        self.for_D = torch.optim.Adam(self.D.parameters(), 2e-4, (0.5, 0.999), foreach=False)
        self.for_G = torch.optim.Adam(
            gan.generator.parameters(), 2e-4, (0.5, 0.999), foreach=False
        )

    def discriminate(self, labelled: Tensor, unlabelled: Tensor, z: Tensor) -> None:
        """Takes a step of the discriminator."""
        soft = self.target(labelled).softmax(1).detach()
        supervised = soft_cross_entropy(judge(self.D, labelled)[1], soft)
        real = judge(self.D, unlabelled)[1].logsumexp(1)
        fake = judge(self.D, self.gan.generate(z))[1].logsumexp(1)
        adversarial = (F.softplus(real).mean() - real.mean() + F.softplus(fake).mean()) / 2
        self.for_D.zero_grad()
        (supervised + adversarial).backward()  # type: ignore[no-untyped-call]
        self.for_D.step()

    def generate(self, match: Tensor, z: Tensor) -> None:
        """Takes a step of the generator."""
        features, logits = judge(self.D, self.gan.generate(z))
        wanted = judge(self.D, match)[0].mean(0)
        loss = (features.mean(0) - wanted).abs().mean() + 1e-4 * entropy(logits)
        self.for_G.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.for_G.step()


class Attack:
    """Steps of KED-MI's attack on one block of classes."""

    def __init__(self, gan: GAN, target: Classifier, labels: Tensor) -> None:
        assert isinstance(gan.discriminator, InversionDiscriminator)
        self.gan, self.target, self.labels, self.D = gan, target, labels, gan.discriminator
        self.mu = torch.zeros(len(labels), gan.z_dim, requires_grad=True)
        self.log_var = torch.zeros(len(labels), gan.z_dim, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.mu, self.log_var], 0.02, foreach=False)

    def step(self, noise: Tensor) -> None:
        """Takes a step."""
        x = self.gan.generate(self.mu + (self.log_var / 2).exp() * noise)
        score = judge(self.D, x)[1].logsumexp(1)
        prior = F.softplus(score).mean() - score.mean()
        loss = prior + 100 * F.cross_entropy(self.target(x), self.labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def gaussian_kernel(x: Tensor) -> Tensor:
    """Returns the Gram matrix, float32."""
    squares = x.square().sum(1)
    distances = (squares[:, None] - 2 * x @ x.T + squares[None]).abs()
    return (-distances / (2 * 25 * x.shape[1])).exp()


def nhsic(K: Tensor, L: Tensor) -> Tensor:
    """Returns normalised HSIC, by explicit inverses."""
    m = len(K)
    H = torch.eye(m) - 1 / m
    shrunk = [(G @ H) @ torch.inverse(G @ H + 1e-5 * m * torch.eye(m)) for G in (K, L)]
    return (shrunk[0] * shrunk[1].T).sum()


def coco_frobenius(K: Tensor, L: Tensor) -> Tensor:
    """Returns COCO with the Frobenius norm."""
    m = len(K)
    H = torch.eye(m) - 1 / m
    norm: Tensor = torch.linalg.matrix_norm(H @ K @ H @ H @ L @ H)
    return norm.sqrt() / m


def bido(network: Classifier, x: Tensor, y: Tensor, measure: str, a: float, b: float) -> Tensor:
    """Returns BiDO's loss, layer by layer, the kernels of X and Y made anew for each."""
    d = {"nhsic": nhsic, "coco_frobenius": coco_frobenius}[measure]
    zs = network.latents(x)
    logits = network.head(zs[-1])
    loss: Tensor = nn.functional.cross_entropy(logits, y)
    for z in zs:
        labels = F.one_hot(y, logits.shape[1]).float()
        loss = loss + a * d(gaussian_kernel(x.flatten(1)), gaussian_kernel(z.flatten(1)))
        loss = loss - b * d(gaussian_kernel(z.flatten(1)), labels @ labels.T)
    return loss
