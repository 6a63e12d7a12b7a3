"""Networks that come trained, every layer of them, from a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mibench.networks.foreign.weights import Weights, load_exactly, read_weights
from mibench.roles import NetworkSpec
from mibench.types import Classifier, Shape


@dataclass(frozen=True)
class Imported(NetworkSpec):
    """A classifier whose weights, all of them, are in a file that `mibench import` wrote.

    They are loaded after a defense has changed the network: MID's bottleneck is among them. A
    recipe of no epochs takes them as they are; one of more goes on training from there.

    Attributes:
        network: The architecture. Weights that it would start from itself are not looked for.
        weights: The file.
    """

    name: ClassVar[str] = "imported"
    trained: ClassVar[bool] = True

    network: NetworkSpec
    weights: Weights

    @property
    def has_skips(self) -> bool:
        """Whether the network is made of stages of residual blocks: if the architecture is."""
        return self.network.has_skips

    def build(self, shape: Shape, num_classes: int) -> Classifier:
        """Returns the architecture's network; raises as its ``build`` does."""
        return self.network.build(shape, num_classes)

    def fetch(self, root: Path) -> None:
        """Reads ``weights`` once."""
        read_weights(self.weights, root)

    def finish(self, network: Classifier, root: Path) -> None:
        """Loads ``weights``; raises ValueError unless every name and shape agrees."""
        load_exactly(network, read_weights(self.weights, root), f"weights/{self.weights.file}")
