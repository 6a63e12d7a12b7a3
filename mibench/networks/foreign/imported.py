"""Networks whose trained weights come from a file: of every layer, or of all but the last."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mibench.networks.foreign.weights import Weights, load_exactly, read_weights
from mibench.roles import NetworkSpec
from mibench.types import Classifier, Shape

LAST = "last."


@dataclass(frozen=True)
class FromFile:
    """An architecture, and a file of weights for it.

    Attributes:
        network: The architecture. Weights that it would start from itself are not looked for.
        weights: The file, such as one that `mibench import` wrote.
    """

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


@dataclass(frozen=True)
class Imported(FromFile, NetworkSpec):
    """A classifier whose weights, all of them, are in a file that `mibench import` wrote.

    They are loaded after a defense has changed the network: MID's bottleneck is among them. A
    recipe of no epochs takes them as they are; one of more goes on training from there.

    Attributes:
        network: The architecture. Weights that it would start from itself are not looked for.
        weights: The file.
    """

    name: ClassVar[str] = "imported"
    trained: ClassVar[bool] = True

    def finish(self, network: Classifier, root: Path) -> None:
        """Loads ``weights``; raises ValueError unless every name and shape agrees."""
        load_exactly(network, read_weights(self.weights, root), f"weights/{self.weights.file}")


@dataclass(frozen=True)
class Pretrained(FromFile, NetworkSpec):
    """A classifier whose layers, but for the last, start from weights that a file holds.

    They may have been trained for other classes: what the file has of the last layer is not read,
    and that layer is drawn at random. A defense changes the network after they are loaded.

    Attributes:
        network: The architecture. Weights that it would start from itself are not looked for.
        weights: The file, such as one that `mibench import` wrote.
    """

    name: ClassVar[str] = "pretrained"

    @property
    def starts_trained(self) -> bool:
        """True."""
        return True

    def initialise(self, network: Classifier, root: Path) -> None:
        """Loads ``weights``; raises ValueError unless names and shapes of other layers agree."""
        drawn = {k: v for k, v in network.state_dict().items() if k.startswith(LAST)}
        read = read_weights(self.weights, root)
        state = {k: v for k, v in read.items() if not k.startswith(LAST)}
        load_exactly(network, state | drawn, f"the layers in weights/{self.weights.file}")
