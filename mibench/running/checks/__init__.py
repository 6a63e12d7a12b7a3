"""What every component promises, and how that is checked on small, drawn data.

``mibench check FILE`` runs the checks on a user's classes, ``tests/test_contracts.py`` on those
that mibench ships.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from mibench.attacks import WhiteBox
from mibench.defenses import Release
from mibench.roles import Attack, Defense, IdentityLoss, NetworkSpec, PriorSpec, View
from mibench.running.checks.attacks import ADAPTIVE, ATTACK, AttackTrial
from mibench.running.checks.base import (
    BrokenPromiseError,
    Check,
    CheckedWork,
    NotCheckedError,
    Trial,
    tiny,
)
from mibench.running.checks.parts import LOSS, NETWORK_CHECKS, RELEASE, VIEW
from mibench.running.checks.training import DEFENSE, PRIOR, DefenseTrial, PriorTrial

ROLES: dict[type, tuple[str, type[Trial], tuple[Check, ...]]] = {
    WhiteBox: ("attack", AttackTrial, (*ATTACK, ADAPTIVE)),
    Attack: ("attack", AttackTrial, ATTACK),
    Release: ("release", Trial, RELEASE),
    Defense: ("defense", DefenseTrial, DEFENSE),
    PriorSpec: ("prior", PriorTrial, PRIOR),
    NetworkSpec: ("network", Trial, NETWORK_CHECKS),
    View: ("view", Trial, VIEW),
    IdentityLoss: ("identity loss", Trial, LOSS),
}
"""Role → its name, how a component of it is run, and its checks; the first that fits counts."""


def role_of(cls: type) -> tuple[str, type[Trial], tuple[Check, ...]]:
    """Returns what :data:`ROLES` has of a component's class."""
    return next(entry for role, entry in ROLES.items() if issubclass(cls, role))


def own_components(module: ModuleType) -> Iterator[type]:
    """Yields the components that a user's file defines, in its order.

    One that lacks a method is among them, unless it is a base: another class of the file
    derives from it, or it declares abstract methods.
    """
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and issubclass(value, tuple(ROLES))
    ]
    for cls in own:
        base = any(cls in other.__mro__[1:] for other in own) or any(
            getattr(value, "__isabstractmethod__", False) for value in vars(cls).values()
        )
        if not (base and inspect.isabstract(cls)):
            yield cls


def trial_of(cls: type, path: Path | None = None) -> Trial:
    """Returns a component as its checks take it; ``path`` is the user's file it is from."""
    return role_of(cls)[1](cls, path)


__all__ = [
    "BrokenPromiseError", "Check", "CheckedWork", "NotCheckedError", "Trial", "own_components",
    "role_of", "tiny", "trial_of",
]  # fmt: skip
