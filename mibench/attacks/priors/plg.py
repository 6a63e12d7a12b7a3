r"""PLG-MI's prior: a class-conditional GAN that the target teaches, Yuan et al., AAAI 2023.

https://arxiv.org/abs/2302.09814. Public images stand for the classes whose probability they get
most of; the generator is held to what the target says of its images:

.. math:: L_D = E[\max(0, 1 - D(x, y))] + E[\max(0, 1 + D(G(z, y), y))], \qquad
    L_G = -E[D(G(z, y), y)] + \alpha E[\max_{k \ne y} l_k - l_y]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.attacks.access import Watched
from mibench.attacks.losses import MaxMargin
from mibench.attacks.priors.conditional import ConditionalGAN, pseudo_labelled
from mibench.attacks.priors.gan import GANSpec, descend_on
from mibench.attacks.views import Augment, identity_loss, queries_per_image
from mibench.networks.generators.sngan import Discriminator, Generator
from mibench.roles import View
from mibench.spec import choose, require
from mibench.store import Work
from mibench.types import Access, Classifier, Images, ImageSet, Labels, Prior, Scalar, Shape

INF = float("inf")
LOOK = Augment(
    scale=(0.8, 1.0), flip=0.5, rotation=5.0, turned=0.5, brightness=0.2, contrast=0.2,
    jittered=0.5,
)  # fmt: skip
"""How the target looks at what the generator draws while it is trained."""


class ProjectionGAN(ConditionalGAN):
    """The generator and the projection discriminator.

    Args:
        z_dim: Size of the latent space.
        generator: Draws on the scale [-1, 1].
        discriminator: Judges.
        scaled: Whether the generator's images are brought to [0, 1].
    """

    def __init__(
        self, z_dim: int, generator: Generator, discriminator: Discriminator, *, scaled: bool
    ) -> None:
        super().__init__(z_dim, generator, discriminator, pooled=False)
        self.scaled = scaled

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns G(z, y)."""
        x = super().generate(z, y)
        return (x + 1) / 2 if self.scaled else x


@dataclass(frozen=True)
class PLGGAN(GANSpec):
    """PLG-MI's conditional GAN, taught by pseudo-labels and by the target's logits.

    An epoch is all pseudo-labelled images; the defaults are about 150,000 steps of the
    discriminator for 1,000 classes.

    Attributes:
        per_class: Public images of each class, those of its largest probability.
        alpha: α, the weight of the target's margin in the generator's loss.
        views: How the target looks at the generator's images; none: as they are.
        pixels: The generator ends in tanh: "scaled" brings that to [0, 1]; "released" leaves it
            and shows the discriminator images in [0, 1], which the generator has to learn to
            draw. Negative pixels of an attack's result are then black.
    """

    name: ClassVar[str] = "plg-gan"
    small: ClassVar[Mapping[str, Any]] = {**GANSpec.small, "per_class": 8}
    access: ClassVar[Access] = "white"

    z_dim: int = 128
    epochs: int = 320
    betas: tuple[float, float] = (0.0, 0.9)
    per_class: int = 30
    alpha: float = 0.2
    views: tuple[View, ...] = (LOOK,)
    pixels: Literal["scaled", "released"] = "scaled"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, per_class=(1, INF), alpha=(0, INF))
        choose(self, pixels=("scaled", "released"))

    def planned_steps(self, images: int) -> None:
        """Returns None: how many images an epoch has depends on the number of classes."""

    def planned_answers(self, images: int, classes: int, noisy: bool) -> int:
        """Returns one for each image, and one for each view of what the generator draws."""
        labelled = classes * min(self.per_class, images)
        size = min(self.batch_size, labelled)
        updates = ceil(self.epochs * (labelled // size) / self.critic_steps)
        return images + updates * size * queries_per_image(self.views)

    def build(self, shape: Shape, num_classes: int) -> ProjectionGAN:
        """Returns untrained networks."""
        return ProjectionGAN(
            self.z_dim,
            Generator(self.z_dim, self.generator_width, shape, num_classes),
            Discriminator(self.discriminator_width, shape, num_classes),
            scaled=self.pixels == "scaled",
        )

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: Watched,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Asks the target about each public image, and then about each that is drawn."""
        assert isinstance(prior, ProjectionGAN)
        chosen = pseudo_labelled(public, target.soft_answers(public), self.per_class)
        for_G, for_D = self._optimizers(prior)

        def draws(n: int) -> tuple[Tensor, Tensor]:
            y = torch.randint(target.num_classes, (n,), generator=rng)
            return prior.sample(n, rng).to(work.device), y.to(work.device)

        def step(picks: list[Tensor], update: bool) -> dict[str, Tensor]:
            terms = {}
            if update:
                terms = self.for_generator(prior, target, *draws(len(picks[0])), rng)
                descend_on(terms["generator"] + self.alpha * terms["margin"], for_G)
            batch = chosen.take(picks[0])
            x = batch.images + torch.rand(batch.pixels.shape, generator=rng).to(work.device) / 256
            terms["critic"] = self.for_discriminator(prior, x, batch.labels, *draws(len(picks[0])))
            descend_on(terms["critic"], for_D)
            return {name: term.detach() for name, term in terms.items()}

        self._alternate(prior, (for_G, for_D), chosen, 1, step, rng, work, generator_first=True)

    def for_generator(
        self,
        prior: ProjectionGAN,
        target: Classifier,
        z: Float[Tensor, "n z"],
        y: Int[Tensor, " n"],
        rng: torch.Generator,
    ) -> dict[str, Scalar]:
        """Returns the two terms of the generator's loss, the second without its weight."""
        x = prior.generate(z, y)
        wrong = identity_loss(MaxMargin(), self.views, target, x, y, [(len(x), rng)])
        return {"generator": -prior.realism(x, y).mean(), "margin": wrong.mean()}

    def for_discriminator(
        self,
        prior: ProjectionGAN,
        x: Images,
        classes: Int[Tensor, " n"],
        z: Float[Tensor, "n z"],
        y: Int[Tensor, " n"],
    ) -> Scalar:
        """Returns the discriminator's hinge loss of images and of others that are drawn."""
        with torch.no_grad():
            fake = prior.generate(z, y)
        drawn, real = prior.realism(fake, y), prior.realism(x, classes)
        return (1 - real).relu().mean() + (1 + drawn).relu().mean()
