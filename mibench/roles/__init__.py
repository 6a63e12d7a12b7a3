"""The roles: what networks, defenses, priors, views, identity losses and attacks must offer.

A component derives from one of them; a new one is one file and one line.
"""

from mibench.roles.attack import Attack, IdentityLoss, PriorSpec, View
from mibench.roles.defense import Batch, Defense, Helper, NoDefense
from mibench.roles.network import NetworkSpec

__all__ = [
    "Attack",
    "Batch",
    "Defense",
    "Helper",
    "IdentityLoss",
    "NetworkSpec",
    "NoDefense",
    "PriorSpec",
    "View",
]
