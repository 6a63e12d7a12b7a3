"""Transfer learning as a defense, Ho et al., CVPR 2024, https://arxiv.org/abs/2405.05588."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from mibench.roles import Batch, NoDefense
from mibench.spec import choose
from mibench.types import Classifier, Scalar


@dataclass(frozen=True)
class TransferLearning(NoDefense):
    """Trains the last layers alone on private images; the others stay as they came, TL-DMI.

    The paper's objective is Eq. (6) of Peng et al., minimised over the weights behind the frozen
    ones. So a network that comes with trained weights is needed.

    Attributes:
        last_frozen: Name of the last frozen module: "features.26" for VGG16 as released,
            "backbone.body.46" for IR152, "backbone.body.5" for FaceNet64. All that stands before
            it in the network is frozen, too.
        statistics: "frozen": in training, frozen layers compute as in eval mode, so that their
            running statistics stay; "moving", as released: they take the batch's statistics,
            and the running ones follow the private images.
        start: "trained" refuses networks without trained weights; with "random" layers may be
            frozen as they were drawn, as happens to FaceNet64 in the released code.
    """

    name: ClassVar[str] = "tl-dmi"
    undefended: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {"last_frozen": "layers.0", "start": "random"}

    last_frozen: str = "features.26"
    statistics: Literal["frozen", "moving"] = "frozen"
    start: Literal["trained", "random"] = "trained"

    def __post_init__(self) -> None:
        choose(self, statistics=("frozen", "moving"), start=("trained", "random"))

    def harden(self, network: Classifier) -> Classifier:
        """Freezes weights up to and including ``last_frozen``.

        Raises:
            ValueError: If there is no such module, or nothing is left to train.
        """
        for module in self._frozen(network):
            for weight in module.parameters(recurse=False):
                weight.requires_grad = False
        if not any(weight.requires_grad for weight in network.parameters()):
            raise ValueError(
                f"tl-dmi.last_frozen={self.last_frozen!r} leaves no weight to train: name a "
                "module further in front"
            )
        return network

    def step(
        self, network: Classifier, batch: Batch, optimizer: torch.optim.Optimizer
    ) -> dict[str, Scalar]:
        """Takes a step, in which frozen layers compute as ``statistics`` says."""
        layers = [m for m in self._frozen(network) if not list(m.children())]
        fixed = layers if self.statistics == "frozen" else []
        for layer in fixed:
            layer.train(mode=False)
        terms = super().step(network, batch, optimizer)
        for layer in fixed:
            layer.train(network.training)
        return terms

    def refuse(self, cell: Any) -> str:  # noqa: ANN401 - a Cell, which only higher floors know
        """Refuses a network whose frozen layers would be random."""
        network = cell.setting.network
        if self.start == "random" or network.starts_trained:
            return ""
        return (
            f"not applicable: tl-dmi freezes layers of {network.name}, whose weights are drawn at "
            "random; give the network trained weights, or set defense.start=random"
        )

    def _frozen(self, network: Classifier) -> Iterator[nn.Module]:
        """Yields modules, in the network's order, up to the last part of ``last_frozen``."""
        named = list(network.named_modules())
        ends = [
            i
            for i, (name, _) in enumerate(named)
            if name == self.last_frozen or name.startswith(f"{self.last_frozen}.")
        ]
        if not ends or not self.last_frozen:
            parts = ", ".join(name for name, _ in named[1:])
            raise ValueError(
                f"tl-dmi.last_frozen={self.last_frozen!r} names no module of the network: {parts}"
            )
        for _, module in named[: ends[-1] + 1]:
            yield module
