"""What every test shares: one thread, one seeded generator, and an untouched global one."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _global_generator_stays_put() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    moved = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    assert not moved, "the test moved torch's global generator: draw from a generator or seeded()"
