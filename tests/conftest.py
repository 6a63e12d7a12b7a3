"""What every test shares: one thread, one seeded generator, an untouched global one, a browser."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.browsing import CHROMIUM, FLAGS, needed

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None and not needed("browser"):
        pytest.skip("no chromium here")
    assert CHROMIUM, "MIBENCH_REQUIRE asks for a browser, and there is no chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


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
