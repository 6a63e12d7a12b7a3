"""A little of ``make fuzz`` in every run of the tests."""

import pytest
import torch

from mibench.commands.selection import Selection
from mibench.commands.shared import RefusedError, refusing
from tests.fuzz import PARSERS, fuzz

EXAMPLES = 12


@pytest.mark.parametrize("name", PARSERS)
def test_random_input_is_taken_or_refused_as_documented(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    before = torch.get_rng_state()
    _, slowest = fuzz(name, EXAMPLES, start=1)
    torch.set_rng_state(before)  # a state that was not damaged sets it
    assert slowest < 10


def test_so_many_repeats_that_their_stages_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"Trials\.repeats must be in \[1, 10000\]"), refusing():
        _ = Selection("smoke", settings=("trials.repeats=1000000000",)).table


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_more_random_input_is_taken_or_refused_as_documented(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    before = torch.get_rng_state()
    fuzz(name, 400, start=2)
    torch.set_rng_state(before)
