"""CelebA as VMI splits it, Wang et al., NeurIPS 2021, https://arxiv.org/abs/2201.10787."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mibench.data.base import Sizes
from mibench.data.celeba import AlignedFaces, by_identity
from mibench.data.images import Box
from mibench.seeding import generator
from mibench.spec import require

INF = float("inf")


@dataclass(frozen=True)
class CelebAVMI(AlignedFaces):
    """Aligned faces; private are the identities with the most images.

    Identities are ordered by their number of images, the largest first, and by ascending
    identity where numbers are equal; labels follow that order. The released code sorts by
    numbers alone, so that among the many identities with 30 images its choice depends on the
    sorting routine: its classes are others, and its classifiers do not fit these labels.

    With the defaults and the official list: 25,000 train and 5,038 test images of 1,000
    identities, and 172,561 public images of all others.

    Attributes:
        num_classes: Private identities: the first in that order.
        train: Train images of each, the first by file name; the rest are test images.
        public: Public images, drawn from all of the other identities; 0 takes them all.
        size: Height and width in pixels, resized from 128.
        validation: Share of each identity's train images held out for selection.
    """

    name: ClassVar[str] = "celeba-vmi"
    official: ClassVar[Sizes] = Sizes(private=25_000, evaluation=25_000, public=172_561)
    box: ClassVar[Box] = (25, 45, 153, 173)  # the central 128x128 pixels

    num_classes: int = 1000
    train: int = 25
    public: int = 0
    size: int = 64
    validation: float = 0.1

    def __post_init__(self) -> None:
        require(
            self, num_classes=(2, INF), train=(1, INF), public=(0, INF), size=(8, 1024),
            validation=(0, 0.5),
        )  # fmt: skip

    def split(self, identities: dict[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Returns the parts' files and labels; see :meth:`AlignedFaces.split`.

        Which images are public is drawn by a fixed seed. Labels of public images follow those
        of private ones, by ascending identity.
        """
        images = by_identity(identities)
        order = sorted(images, key=lambda identity: (-len(images[identity]), identity))
        many = sum(len(names) > self.train for names in images.values())
        if many < self.num_classes:
            raise ValueError(
                f"the identity list has {many} identities with more than the {self.train} images "
                f"of setting.task.train, fewer than the {self.num_classes} of "
                "setting.task.num_classes"
            )
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": [], "public": []}
        for label, identity in enumerate(order[: self.num_classes]):
            named = [(name, label) for name in sorted(images[identity])]
            parts["train"] += named[: self.train]
            parts["test"] += named[self.train :]
        others = sorted(order[self.num_classes :])
        pool = [(n, self.num_classes + i) for i, o in enumerate(others) for n in sorted(images[o])]
        wanted = max(2, self.public)
        if len(pool) < wanted:
            raise ValueError(
                f"the identities that are not private have {len(pool)} images, fewer than the "
                f"{wanted} that setting.task.public asks for"
            )
        if self.public:
            drawn = torch.randperm(len(pool), generator=generator(self.name, "public"))
            pool = [pool[i] for i in sorted(drawn[: self.public].tolist())]
        parts["public"] = pool
        return parts
