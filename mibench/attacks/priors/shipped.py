"""Priors whose weights come with the package: trained for long, once, on images of nobody."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from mibench.data import Avatars, Task
from mibench.networks.foreign.weights import load_exactly
from mibench.roles import PriorSpec
from mibench.store import Work
from mibench.types import ImageSet, Offer, Prior, Shape

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Shipped(PriorSpec):
    """A prior that was trained beforehand; its weights are a file of the package.

    It has seen the public images of ``task``, not those of the table, and every seed of a table
    gets the same weights: what varies with the seed of the prior is not in the intervals.

    Attributes:
        of: What was trained.
        task: Its public images were trained on. The attacked task must have images of the same
            shape.
        seed: The seed of that training.
        sha256: Digest of the file, whose name has its first eight digits.
    """

    name: ClassVar[str] = "shipped"

    of: PriorSpec
    task: Task
    sha256: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.of.access != "none":
            raise ValueError(f"Shipped.of must not ask the target, and {self.of.name} does")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(
                f"Shipped.sha256 must be 64 hexadecimal digits in lower case, got {self.sha256!r}"
            )

    @property
    def offers(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """What the trained prior offers."""
        return self.of.offers

    @property
    def path(self) -> Path:
        """Where the weights lie."""
        return FOLDER / f"{self.of.name}-{self.sha256[:8]}.safetensors"

    def build(self, shape: Shape, num_classes: int) -> Prior:
        """Returns untrained networks.

        Raises:
            ValueError: If the attacked task's images have another shape.
        """
        if shape != self.task.shape:
            drawn, wanted = ("x".join(map(str, s)) for s in (self.task.shape, shape))
            raise ValueError(
                f"the weights of {self.path.name} draw images of {drawn}, and the task's are "
                f"{wanted}: train a prior for it, such as {self.of.name}, in place of this one"
            )
        return self.of.build(shape, num_classes)

    def planned_steps(self, images: int) -> int:
        """Returns 0: nothing is trained."""
        return 0

    def fetch(self, root: Path) -> None:
        """Reads the file once."""
        self._state()

    def train(
        self, prior: Prior, public: ImageSet, target: None, rng: torch.Generator, work: Work
    ) -> None:
        """Loads the weights; nothing of ``public`` is looked at."""
        load_exactly(prior, self._state(), f"the weights in {self.path.name}")

    def _state(self) -> dict[str, Tensor]:
        """Returns the weights.

        Raises:
            FileNotFoundError: If the package does not have them.
            ValueError: If they are others.
        """
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is missing: `python -m perf.ship` in a checkout trains it again"
            )
        data = self.path.read_bytes()
        if (digest := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise ValueError(
                f"{self.path} has the sha256 {digest}, not {self.sha256}: install mibench again"
            )
        return load(data)


def packed(state: Mapping[str, Tensor]) -> bytes:
    """Returns the file of a prior's weights; the same weights give the same bytes."""
    data: bytes = save({name: tensor.contiguous() for name, tensor in sorted(state.items())})
    return data


STRANGERS = Avatars(strangers=20_000, each=1)
"""Whom the shipped priors have seen: 20,000 drawn persons, none of them private."""
