"""Overrides of fields: what a text may name, and what is answered to a name that is none."""

from typing import Any

import pytest

from mibench.attacks import GMI, StyleGAN2
from mibench.benchmarks.tables import TABLES
from mibench.data import Folder
from mibench.override import describe, hint_of, override
from mibench.roles import Defense, NetworkSpec
from mibench.running.checks import tiny
from mibench.running.userfile import load_user_file

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


@pytest.mark.parametrize(
    ("table", "setting", "value"),
    [
        ("smoke", "defense=label-smoothing", "LabelSmoothing("),
        (
            "digits-adaptive",
            'attack.views=[{"is": "flip"}, "plain"]',
            "(Flip(draws=1), Plain(draws=1))",
        ),
        ("digits-controls", "control=null", "None"),
        ("digits-controls", "control=prior-samples", "PriorSamples("),
    ],
)
def test_a_setting_reaches_every_row_that_has_the_field(
    table: str, setting: str, value: str
) -> None:
    """Whatever the field holds there: a spec without fields, one with fields, or a tuple."""
    rows = TABLES[table].modified([setting]).rows
    for cell in rows.values():
        found: Any = cell
        for step in setting.partition("=")[0].split("."):
            found = getattr(found, step)
        assert repr(found).startswith(value)


def test_a_component_without_all_defaults_is_answered_with_what_to_write() -> None:
    for text in ("mid", '{"is": "mid", "beta": 2}'):
        with pytest.raises(
            ValueError, match=r'mid has no default of lambda_: write {"is": "mid",'
        ):
            override(CELL, "defense", text)


def test_one_of_several_specs_is_not_replaced_by_itself() -> None:
    with pytest.raises(ValueError, match=r"set setting\.evaluators to a list of all of them"):
        override(CELL, "setting.evaluators.0", "1")


@pytest.mark.parametrize("text", ["2024", "true", "null", "[1]", "NaN"])
def test_a_name_may_be_one_that_is_also_json(text: str) -> None:
    assert override(Folder(), "folder", text) == Folder(folder=text)


LAZY = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mibench import Defense

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from typing import Any

@dataclass(frozen=True)
class Lazy(Defense):
    name: ClassVar[str] = "lazy"
    small: ClassVar[Mapping[str, Any]] = {}

    alpha: float
    beta: Decimal | None = None

    def loss_terms(self, network, batch):
        raise NotImplementedError

@dataclass(frozen=True)
class Strange(Lazy):
    name: ClassVar[str] = "strange"

    gamma: float = 0.0
"""


@pytest.fixture(scope="module")
def lazy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A user's module that imports types where only a type checker looks."""
    (path := tmp_path_factory.mktemp("lazy") / "lazy_types.py").write_text(LAZY)
    return load_user_file(path)


def test_types_that_only_a_type_checker_knows_keep_from_nothing_else(lazy: Any) -> None:
    made: Defense = tiny(lazy.Lazy)
    assert made == lazy.Lazy(0.1)
    assert override(made, "alpha", "0.5") == lazy.Lazy(0.5)
    assert hint_of(lazy.Strange, "alpha") is float


def test_a_type_that_a_field_needs_and_nobody_knows_is_named(lazy: Any) -> None:
    with pytest.raises(ValueError, match=r"type of Lazy\.beta .*'Decimal' is not defined.*import"):
        override(lazy.Strange(0.1), "beta", "1")
