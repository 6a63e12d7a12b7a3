"""Overrides of fields: what a text may name, and what is answered to a name that is none."""

import pytest

from mibench.attacks import GMI, StyleGAN2
from mibench.benchmarks.tables import TABLES
from mibench.override import describe, override
from mibench.roles import NetworkSpec

CELL = TABLES["smoke"].rows["GMI / BiDO-HSIC"]


@pytest.mark.parametrize(
    ("spec", "path", "text", "near"),
    [
        (CELL, "attack.identity", "max-margni", "max-margin"),
        (StyleGAN2(), "pipeline", "bcg", "bgc"),
    ],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(
    spec: object, path: str, text: str, near: str
) -> None:
    with pytest.raises(ValueError, match=f"{path} takes one of .*did you mean '{near}'"):
        override(spec, path, text)


def test_a_name_stands_for_a_component_with_its_default_fields() -> None:
    attack = override(CELL, "attack.identity", "max-margin").attack
    assert isinstance(attack, GMI)
    assert attack.identity.name == "max-margin"


def test_a_role_is_described_by_the_names_that_can_play_it() -> None:
    """The base of several networks plays none itself."""
    words = describe(NetworkSpec)
    assert words.startswith("one of ")
    assert "mobilefacenet" in words
    assert "FaceSpec" not in words
