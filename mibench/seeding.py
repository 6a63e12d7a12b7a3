"""Deterministic seeds, derived from names rather than from call order."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch

VERSION = 1
"""Raised by hand when names give other streams; it enters every key."""


def derive_seed(*path: str | int) -> int:
    """Returns a 63-bit seed that depends on ``path`` alone.

    >>> derive_seed(0, "attack", "gmi") == derive_seed(0, "attack", "gmi")
    True
    """
    digest = hashlib.sha256(json.dumps(path).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*path: str | int) -> torch.Generator:
    """Returns a fresh generator seeded by ``derive_seed(*path)``.

    It lives on the CPU: streams differ between devices, so draw here and move the draw.
    """
    return torch.Generator().manual_seed(derive_seed(*path))


@contextmanager
def seeded(*path: str | int) -> Iterator[None]:
    """Seeds the global generator inside the block (layers that draw) and restores it after."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(*path))
        yield
