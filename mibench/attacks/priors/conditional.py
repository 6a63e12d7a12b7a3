"""A GAN that draws images of a wanted class, as the target sees classes in public images.

The pseudo-labels are those of PLG-MI, Yuan et al., AAAI 2023, https://arxiv.org/abs/2302.09814;
the networks are GMI's, with the class joined to the latent, and the critic's projection is that
of Miyato & Koyama, ICLR 2018, https://arxiv.org/abs/1802.05637.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.attacks.access import Query
from mibench.attacks.priors.gan import GAN, WGANGP, GANSpec
from mibench.networks.generators.dcgan import Critic, Generator
from mibench.spec import require
from mibench.store import Work
from mibench.types import Access, Images, ImageSet, Labels, Prior, Shape

INF = float("inf")


class ConditionalGenerator(nn.Module):
    """A generator of latents beside which a learnt vector of the class stands."""

    def __init__(self, num_classes: int, embedding: int, generator: Generator) -> None:
        super().__init__()
        self.classes = nn.Embedding(num_classes, embedding)
        self.generator = generator

    def forward(self, z: Float[Tensor, "n z"], y: Labels) -> Images:
        """Returns images of the classes."""
        x: Images = self.generator(torch.cat([z, self.classes(y)], 1))
        return x


class ConditionalCritic(nn.Module):
    """A critic to whose score the product of the features and the class's vector is added."""

    def __init__(self, num_classes: int, critic: Critic) -> None:
        super().__init__()
        self.critic = critic
        self.classes = nn.Embedding(num_classes, critic.judge.in_channels)

    def forward(self, x: Images, y: Labels) -> Float[Tensor, " n"]:
        """Returns how real each image is as one of its class."""
        maps = self.critic.maps(x)
        fit = (maps.sum((2, 3)) * self.classes(y)).sum(1)
        score: Tensor = self.critic.judge(maps).flatten() + fit
        return score


class ConditionalGAN(GAN):
    """A generator and a critic that both take the class."""

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns G(z, y)."""
        x: Images = self.generator(z, self._given(y))
        return x

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the critic's score."""
        score: Tensor = self.discriminator(x, self._given(y))
        return score

    def realism_by_group(
        self, x: Images, sizes: object, y: Labels | None = None
    ) -> Float[Tensor, " n"]:
        """Returns the same: no image's score depends on others."""
        return self.realism(x, y)

    def _given(self, y: Labels | None) -> Labels:
        if y is None:
            raise ValueError("this prior draws images of a class: call prior.generate(z, y)")
        return y


@dataclass(frozen=True)
class PseudoLabelGAN(WGANGP):
    """WGAN-GP of images and classes, taught by the target's scores of public images.

    For each class it takes the public images to which the target gives the largest probability;
    an image may stand for several classes. An epoch is all of them.

    Attributes:
        embedding: Size of the vector of a class that joins the latent.
        per_class: Public images of each class.
    """

    name: ClassVar[str] = "pseudo-label-gan"
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {**GANSpec.small, "embedding": 4, "per_class": 8}
    access: ClassVar[Access] = "scores"

    embedding: int = 16
    per_class: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, embedding=(1, INF), per_class=(1, INF))

    def planned_steps(self, images: int) -> None:
        """Returns None: how many images an epoch has depends on the number of classes."""

    def build(self, shape: Shape, num_classes: int) -> ConditionalGAN:
        """Returns untrained networks."""
        draw = Generator(self.z_dim + self.embedding, self.generator_width, shape)
        return ConditionalGAN(
            self.z_dim,
            ConditionalGenerator(num_classes, self.embedding, draw),
            ConditionalCritic(num_classes, Critic(self.discriminator_width, shape)),
            pooled=False,
        )

    def train(  # type: ignore[override]
        self,
        prior: Prior,
        public: ImageSet,
        target: Query,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Asks the target once about each public image, then trains on those it is surest of."""
        chosen = pseudo_labelled(public, target.soft_answers(public), self.per_class)
        super().train(prior, chosen, None, rng, work)


def pseudo_labelled(public: ImageSet, soft: Float[Tensor, "n k"], per_class: int) -> ImageSet:
    """Returns the images of which each class has the largest probability, and these classes.

    An image may stand for several classes.

    Args:
        public: Images.
        soft: The target's probabilities of each.
        per_class: How many stand for a class; all, if there are fewer.
    """
    index = soft.topk(min(per_class, len(public)), 0).indices  # (images, classes)
    classes = torch.arange(soft.shape[1], device=index.device).expand_as(index)
    return ImageSet(public.pixels[index.flatten()], classes.flatten())
