"""Networks that learn the target's answers to public images, and a loss that asks them, too.

Nguyen et al. (LOMMA), CVPR 2023, https://arxiv.org/abs/2304.01669: model augmentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.losses import CrossEntropy
from mibench.data import Corpus
from mibench.networks import MCNN, MLP
from mibench.roles import Batch, Defense, IdentityLoss, NetworkSpec
from mibench.store import Payload, Work
from mibench.training.train import Recipe, train_classifier
from mibench.types import Classifier, ImageSet, Labels, Logits, Scalar


def _recipe() -> Recipe:
    return Recipe(20, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, select="last")


@dataclass(frozen=True)
class Student:
    """A network and how it learns what the target answers about public images.

    The loss is KL(target ‖ student), a mean over the batch: distillation at temperature 1, as
    LOMMA's. The target is asked once about each image; a recipe's augmentations change what the
    student sees and not what it should say.

    Attributes:
        network: Its architecture.
        recipe: How it is trained; the defaults are LOMMA's. There are no classes to select by,
            nor to balance.
    """

    name: ClassVar[str] = "student"
    version: ClassVar[int] = 1

    network: NetworkSpec = field(default_factory=MCNN)
    recipe: Recipe = field(default_factory=_recipe)

    def __post_init__(self) -> None:
        if (self.recipe.select, self.recipe.sampler) != ("last", "shuffle"):
            raise ValueError(
                "Student.recipe must have select=last and sampler=shuffle: public images have no "
                "private classes"
            )

    def start(self, network: Classifier, root: Path) -> None:
        """Loads the weights that the network comes with, if it comes with any.

        Args:
            network: A fresh one.
            root: The data folder.
        """
        self.network.initialise(network, root)
        self.network.finish(network, root)

    def train(
        self,
        network: Classifier,
        public: ImageSet,
        soft: Float[Tensor, "n k"],
        rng: torch.Generator,
        work: Work,
    ) -> Payload:
        """Trains the network and returns its "state" and "history".

        Args:
            network: A fresh one, for the target's classes.
            public: Images to learn from.
            soft: What the target says of each: probabilities.
            rng: Draws batches and augmentations.
            work: Where state is saved and progress told.
        """
        positions = ImageSet(public.pixels, torch.arange(len(public), device=soft.device))
        none = torch.zeros(len(public), dtype=torch.bool)
        corpus = Corpus(positions, none, positions, soft.shape[1])
        return train_classifier(network, Distillation(soft), self.recipe, corpus, rng, work)


class Distillation(Defense):
    """Trains a network to answer as another; the batch's labels are positions of answers.

    Args:
        soft: The other's probabilities of each train image.
    """

    name = "distillation"

    def __init__(self, soft: Float[Tensor, "n k"]) -> None:
        self.soft = soft

    def loss_terms(self, network: Classifier, batch: Batch) -> dict[str, Scalar]:
        """Returns KL(other ‖ network), in nats."""
        log = network(batch.x).log_softmax(1)
        return {"divergence": F.kl_div(log, self.soft[batch.y], reduction="batchmean")}


@dataclass(frozen=True)
class Augmented(IdentityLoss):
    """Another identity loss, the mean over the target and its students: LOMMA's augmentation.

    A penalty of the other loss is of the target alone.

    Attributes:
        of: The other loss.
        students: Networks that learn the target's answers to public images.
    """

    name: ClassVar[str] = "augmented"
    small: ClassVar[Mapping[str, Any]] = {
        "students": (Student(MLP(), Recipe(2, batch_size=8, select="last")),)
    }

    of: IdentityLoss = field(default_factory=CrossEntropy)
    students: tuple[Student, ...] = field(default_factory=lambda: (Student(),))

    def __post_init__(self) -> None:
        if self.of.students:
            raise ValueError(
                "Augmented.of must not have students: name them in Augmented.students"
            )
        if len({student.network for student in self.students}) < len(self.students):
            raise ValueError(
                "Augmented.students names a network twice, and both would begin with the same "
                "weights: give each another network, or another width of it"
            )

    @property
    def public(self) -> bool:  # type: ignore[override]
        """Whether the other loss reads last latents."""
        return self.of.public

    def __call__(self, logits: Logits, labels: Labels) -> Float[Tensor, " n"]:
        """Returns the other loss of one network."""
        return self.of(logits, labels)

    def penalty(self, offset: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Returns the other loss's."""
        return self.of.penalty(offset)
