"""Architectures, by the names the literature gives them. To add one: file, line."""

from mibench.networks.lenet import MCNN, MLP, SCNN
from mibench.types import NetworkSpec

NETWORKS: dict[str, type[NetworkSpec]] = {n.name: n for n in (MCNN, SCNN, MLP)}

__all__ = ["MCNN", "MLP", "NETWORKS", "SCNN"]
