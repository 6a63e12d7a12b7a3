"""What networks must offer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from mibench.sources import Remembered
from mibench.types import Classifier, Shape


class NetworkSpec(Remembered, ABC):
    """An architecture and its sizes. Subclasses are frozen dataclasses."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    small: ClassVar[Mapping[str, Any]] = {}
    """Values of fields that make it small enough for a test; numbers without a default get one."""
    trained: ClassVar[bool] = False
    """Whether ``finish`` loads every weight, so that a recipe of no epochs will do."""

    @property
    def starts_trained(self) -> bool:
        """Whether training starts from trained weights, of some layers at least."""
        return self.trained

    @property
    def has_skips(self) -> bool:
        """Whether the network is made of stages of residual blocks."""
        return False

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> Classifier:
        """Returns a freshly initialised network for images of ``shape`` (c, h, w).

        Raises:
            ValueError: If the architecture does not fit the image size.
        """

    def initialise(self, network: Classifier, root: Path) -> None:
        """Loads trained weights into a fresh network, if the spec names any.

        Args:
            network: What ``build`` returned, before a defense changes it.
            root: The data folder.
        """

    def finish(self, network: Classifier, root: Path) -> None:
        """Loads the weights of all layers into a fresh network, if the spec names any.

        Args:
            network: What ``build`` returned, after a defense has changed it.
            root: The data folder.

        Raises:
            ValueError: If they do not fit it.
        """

    def fetch(self, root: Path) -> None:
        """Makes sure that the trained weights the spec names can be had, if it names any.

        Args:
            root: The data folder.

        Raises:
            FileNotFoundError: If their file is missing.
            ValueError: If it is another one, or cannot be downloaded.
        """
