"""Canonical JSON, fingerprints, overrides, and the digest of a user's source."""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from mibench.attacks import GMI, KEDMI, WGANGP
from mibench.benchmarks.tables import TABLES
from mibench.defenses import MID, BiDO, NoDefense, Recipe
from mibench.networks import MCNN
from mibench.override import override, paths
from mibench.running.userfile import load_afresh, load_user_file
from mibench.sources import source_digest
from mibench.spec import canonical, fingerprint

CELL = TABLES["smoke"].rows["GMI / BiDO-HSIC"]
assert isinstance(CELL.attack, GMI)
GMI_OF_CELL: GMI = CELL.attack


@dataclass(frozen=True)
class Plain:
    """A spec with one field of any kind."""

    value: object


@dataclass(frozen=True)
class Optional:
    """A spec with fields that a command line may find hard."""

    count: int | None = None
    share: float = 0.5
    name: str = "a"
    on: bool = False
    pair: tuple[float, float] = (0.0, 1.0)


# Canonical JSON and fingerprints ------------------------------------------------------------


def test_a_spec_is_its_name_version_and_fields_defaults_included() -> None:
    assert canonical(MID(lambda_=0.02)) == {
        "is": "mid", "version": 1, "lambda_": 0.02, "ratio": 0.5
    }  # fmt: skip


def test_specs_inside_specs_appear_whole() -> None:
    tree = canonical(GMI(WGANGP(epochs=7)))
    assert isinstance(tree, dict)
    assert isinstance(prior := tree["prior"], dict)
    assert (prior["is"], prior["epochs"]) == ("wgan-gp", 7)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None), (True, True), (3, 3), (3.0, 3), (0.5, 0.5), ("a", "a"),
        ((1, 2.5), [1, 2.5]), ([], []), ({"a": (1,)}, {"a": [1]}), ({1: 2}, {"1": 2}),
    ],
)  # fmt: skip
def test_plain_values_become_plain_json(value: object, plain: object) -> None:
    assert canonical(value) == plain


def test_a_fingerprint_is_sixteen_hexadecimal_digits() -> None:
    assert int(fingerprint(CELL), 16) >= 0
    assert len(fingerprint(CELL)) == 16


def test_a_fingerprint_never_changes_by_itself() -> None:
    """Stores are keyed by it: change this line only on purpose."""
    assert fingerprint({"b": [1, 2.5, None], "a": "é"}) == "84afbf1d4853005f"


def test_equal_specs_have_equal_fingerprints() -> None:
    assert fingerprint(MID(0.02)) == fingerprint(MID(lambda_=0.02, ratio=0.5))


def test_the_order_of_a_mapping_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_whole_floats_are_whole_numbers() -> None:
    assert fingerprint(BiDO("hsic", 1, 50)) == fingerprint(BiDO("hsic", 1.0, 50.0))


def test_true_is_not_one() -> None:
    assert fingerprint(Plain(True)) != fingerprint(Plain(1))


@pytest.mark.parametrize(
    "path", ["attack.steps", "recipe.epochs", "seeds.target", "defense.lambda_x"]
)
def test_every_field_enters_the_fingerprint(path: str) -> None:
    assert fingerprint(override(CELL, path, "7")) != fingerprint(CELL)


@pytest.mark.parametrize(
    "value", [Path("data"), torch.nn.Identity(), torch.device("cpu"), torch.zeros(1), {1}, MID]
)
def test_what_must_not_decide_a_result_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be part of a spec"):
        canonical(Plain(value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="numbers must be finite"):
        canonical(Plain(value))


def test_a_version_bump_changes_its_own_fingerprint_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = (GMI(), KEDMI(), MID(0.1), GMI().prior)
    before = [fingerprint(s) for s in specs]
    monkeypatch.setattr(GMI, "version", 99)
    after = [fingerprint(s) for s in specs]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, True, True]


def test_a_version_bump_changes_the_fingerprint_of_what_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = fingerprint(GMI())
    monkeypatch.setattr(WGANGP, "version", 99)
    assert fingerprint(GMI()) != before


def test_a_field_cannot_hide_what_a_spec_is() -> None:
    """A field called like an entry of the head must not silently replace it."""

    @dataclass(frozen=True)
    class Sly:
        name: ClassVar[str] = "sly"
        version: ClassVar[int] = 3
        source: str = "mine"

    with pytest.raises((TypeError, ValueError), match="source"):
        canonical(Sly())


# Overriding ---------------------------------------------------------------------------------


def test_a_nested_field_is_replaced_and_nothing_else() -> None:
    attack = GMI(WGANGP(epochs=7), steps=3)
    assert override(attack, "prior.lr", "0.5") == GMI(WGANGP(epochs=7, lr=0.5), steps=3)
    assert override(CELL, "attack.steps", "3").attack == replace(GMI_OF_CELL, steps=3)


def test_a_field_inside_a_tuple_is_reached_by_its_position() -> None:
    new = override(CELL, "setting.evaluators.0.recipe.epochs", "3")
    assert new.setting.evaluators[0].recipe.epochs == 3
    assert new.setting.evaluators[0].network == CELL.setting.evaluators[0].network


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("recipe.select", "last", "last"),
        ("recipe.milestones", "[3, 5]", (3, 5)),
        ("recipe.augment", '["flip"]', ("flip",)),
        ("recipe.nesterov", "false", False),
        ("recipe.lr", "1e-3", 0.001),
        ("recipe.lr", "1", 1.0),
        ("attack.prior.betas", "[0, 0.9]", (0.0, 0.9)),
        ("setting.network.widths", "[4, 8, 16]", (4, 8, 16)),
    ],
)
def test_text_is_read_as_the_fields_type(path: str, text: str, value: object) -> None:
    found: object = override(CELL, path, text)
    for step in path.split("."):
        found = getattr(found, step)
    assert found == value


@pytest.mark.parametrize(
    ("path", "text", "kind"),
    [
        ("attack.steps", "many", "a whole number"),
        ("attack.steps", "1.5", "a whole number"),
        ("attack.steps", "true", "a whole number"),
        ("recipe.lr", "fast", "a number"),
        ("recipe.lr", "NaN", "a number"),
        ("recipe.nesterov", "1", "true or false"),
        ("recipe.select", "best", "one of last, validation, test"),
        ("recipe.milestones", "3", "a list such as"),
        ("attack.prior.betas", "[0.5]", "a list such as"),
    ],
)
def test_text_of_the_wrong_type_is_refused(path: str, text: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{path} takes {kind}"):
        override(CELL, path, text)


@pytest.mark.parametrize("text", ["Infinity", "1e999"])
def test_a_number_beyond_all_bounds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="lr"):
        override(CELL, "recipe.lr", text)


def test_an_optional_field_takes_null_and_its_type() -> None:
    assert override(Optional(1), "count", "null") == Optional()
    assert override(Optional(), "count", "2") == Optional(2)


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("attack.pace", r"attack\.steps"),
        ("setting.evaluators.1.network", r"setting\.evaluators\.0\."),
        ("pace", r"attack\."),
        ("", r"attack\."),
        (".", r"attack\."),
    ],
)
def test_an_unknown_path_lists_the_known_ones(path: str, known: str) -> None:
    with pytest.raises(KeyError, match=f"no field '{path}'.*; known: .*{known}"):
        override(CELL, path, "1")


def test_a_path_to_several_fields_lists_those() -> None:
    with pytest.raises(KeyError, match=r"holds several fields; set one of: .*seeds\.target"):
        override(CELL, "seeds", "1")


@pytest.mark.parametrize("path", ["defense.lambda_x", "attack.steps", "recipe.lr", "trials.block"])
def test_a_negative_value_is_refused_with_its_limit(path: str) -> None:
    with pytest.raises(ValueError, match=f"{path.split('.')[1]} must be at least .*, got -1"):
        override(CELL, path, "-1")


def test_paths_name_the_fields_that_hold_values() -> None:
    assert paths(BiDO("hsic", 1, 2))[:3] == ["measure", "lambda_x", "lambda_y"]
    assert "setting.network.kernels" in paths(CELL)


# A user's source ----------------------------------------------------------------------------

MINE = """
from dataclasses import dataclass
from mibench.defenses import NoDefense
{above}

@dataclass(frozen=True)
class Mine(NoDefense):
    name = "mine"

    def loss_terms(self, network, batch):
        return helper(super().loss_terms(network, batch))
"""
BESIDE = "def helper(terms):\n    return {k: WEIGHT * v for k, v in terms.items()}\nWEIGHT = 1\n"


@pytest.fixture
def modules() -> Iterator[None]:
    """Forgets the user modules that a test imports."""
    known, folders = set(sys.modules), list(sys.path)
    yield
    _forget(known)
    sys.path[:] = folders


def _forget(known: set[str]) -> None:
    for name in set(sys.modules) - known:
        del sys.modules[name]


def digest(folder: Path, files: dict[str, str]) -> str:
    """Returns the fingerprint of ``Mine()`` in the first of some files in a fresh folder."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    module: ModuleType = importlib.import_module(next(iter(files)))
    found = fingerprint(module.Mine())
    sys.path.remove(str(folder))
    _forget(known)
    return found


@pytest.mark.usefixtures("modules")
def test_the_same_source_elsewhere_has_the_same_fingerprint(tmp_path: Path) -> None:
    files = {"mine": MINE.format(above=BESIDE)}
    assert digest(tmp_path / "a", files) == digest(tmp_path / "b", files)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("files", "changed"),
    [
        pytest.param(
            {"mine": MINE.format(above=BESIDE)},
            {"mine": MINE.format(above=BESIDE).replace("helper(super()", "helper(1 and super()")},
            id="the class",
        ),
        pytest.param(
            {"mine": MINE.format(above=BESIDE)},
            {"mine": MINE.format(above=BESIDE).replace("WEIGHT * v", "WEIGHT + v")},
            id="a function beside it",
        ),
        pytest.param(
            {"mine": MINE.format(above="from sibling import helper"), "sibling": BESIDE},
            {
                "mine": MINE.format(above="from sibling import helper"),
                "sibling": BESIDE.replace("WEIGHT * v", "WEIGHT + v"),
            },
            id="a function in a sibling file",
        ),
        pytest.param(
            {"mine": MINE.format(above="import sibling\nhelper = len"), "sibling": BESIDE},
            {
                "mine": MINE.format(above="import sibling\nhelper = len"),
                "sibling": BESIDE.replace("WEIGHT * v", "WEIGHT + v"),
            },
            id="a sibling module",
        ),
        pytest.param(
            {
                "mine": MINE.format(above="from sibling import helper"),
                "sibling": BESIDE + "from cousin import WEIGHTS\nimport cousin\n",
                "cousin": "WEIGHTS = [1, 2]\n",
            },
            {
                "mine": MINE.format(above="from sibling import helper"),
                "sibling": BESIDE + "from cousin import WEIGHTS\nimport cousin\n",
                "cousin": "WEIGHTS = [1, 3]\n",
            },
            id="a sibling's sibling",
        ),
        pytest.param(
            {
                "mine": MINE.format(above=BESIDE + "from sibling import WEIGHT"),
                "sibling": "WEIGHT = 1\n",
            },
            {
                "mine": MINE.format(above=BESIDE + "from sibling import WEIGHT"),
                "sibling": "WEIGHT = 2\n",
            },
            id="a number in a sibling file",
        ),
        pytest.param(
            {
                "mine": MINE.format(
                    above="def helper(t):\n    from sibling import helper\n    return helper(t)"
                ),
                "sibling": BESIDE,
            },
            {
                "mine": MINE.format(
                    above="def helper(t):\n    from sibling import helper\n    return helper(t)"
                ),
                "sibling": BESIDE.replace("WEIGHT * v", "WEIGHT + v"),
            },
            id="a sibling imported when needed",
        ),
    ],
)
def test_other_code_under_the_same_name_has_another_fingerprint(
    files: dict[str, str], changed: dict[str, str], tmp_path: Path
) -> None:
    assert digest(tmp_path / "a", files) != digest(tmp_path / "b", changed)


def test_what_mibench_ships_carries_no_source() -> None:
    for spec in (NoDefense(), Recipe(1), MCNN(), GMI()):
        tree = canonical(spec)
        assert isinstance(tree, dict)
        assert "source" not in tree


def test_files_imported_relatively_and_package_inits_count(tmp_path: Path) -> None:
    helpers = tmp_path / "far_helpers"
    helpers.mkdir()
    (tmp_path / "far.py").write_text(
        "from dataclasses import dataclass\nfrom far_helpers.a import f\n"
        "@dataclass(frozen=True)\nclass Far:\n    x: int = f\n"
    )
    (helpers / "a.py").write_text("from .b import K\nfrom . import c\nf = K\n")
    files = {"b.py": "K = 1\n", "c.py": "C = 1\n", "__init__.py": "from .core import q\n"}
    for name, text in (files | {"core.py": "q = 1\n"}).items():
        (helpers / name).write_text(text)
    try:
        before = source_digest(load_user_file(tmp_path / "far.py").Far)
        for name in ("a.py", "b.py", "c.py", "core.py", "__init__.py"):
            text = (helpers / name).read_text()
            (helpers / name).write_text(text + "# changed\n")
            assert source_digest(load_afresh(tmp_path / "far.py").Far) != before, name
            (helpers / name).write_text(text)
        assert source_digest(load_afresh(tmp_path / "far.py").Far) == before
    finally:
        for name in [n for n in sys.modules if n == "far" or n.startswith("far_helpers")]:
            del sys.modules[name]
        sys.path.remove(str(tmp_path))


CLASS = """
from dataclasses import dataclass
from typing import ClassVar
from pathlib import Path
from mibench import Defense
from beside_of_mine import helper

@dataclass(frozen=True)
class Mine(Defense):
    name: ClassVar[str] = "mine"

    def loss_terms(self, network, batch):
        return helper(network, batch)
"""


@pytest.fixture
def mine(tmp_path: Path, modules: None) -> Path:
    """A file with a class that calls a function of the file beside it."""
    (tmp_path / "beside_of_mine.py").write_text("def helper(*_):\n    return {}\n")
    (tmp_path / "class_of_mine.py").write_text(CLASS)
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path / "class_of_mine.py"


@pytest.mark.parametrize("file", ["class_of_mine", "beside_of_mine"])
@pytest.mark.parametrize("seen", [True, False])
def test_a_file_that_changed_after_it_was_loaded_is_refused_until_it_is_loaded_again(
    file: str, seen: bool, mine: Path
) -> None:
    """Whether the class has had a key before or not."""
    module = importlib.import_module("class_of_mine")
    before = fingerprint(module.Mine()) if seen else ""
    path = mine.with_name(f"{file}.py")
    text = path.read_text()
    path.write_text(text + "# changed\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{file}.py: the user's file changed while"):
            fingerprint(module.Mine())
    path.write_text(text)
    assert not seen or fingerprint(module.Mine()) == before
    before = fingerprint(module.Mine())
    path.write_text(text + "# changed\n")
    if file == "beside_of_mine":  # the class still has the function that it imported
        importlib.reload(sys.modules[file])
        with pytest.raises(ValueError, match="the user's file changed while"):
            fingerprint(module.Mine())
    after = fingerprint(importlib.reload(module).Mine())
    assert after != before
    assert fingerprint(load_afresh(mine).Mine()) == after


def test_a_file_that_changes_while_it_is_loaded_is_refused(mine: Path) -> None:
    """As one does that computes for long before it has made its table."""
    mine.write_text(f"{CLASS}\nPath(__file__).write_text('# another')\n")
    mine.write_text(mine.read_text().replace("from mibench import Defense", "Defense = object"))
    cls = load_user_file(mine).Mine
    with pytest.raises(ValueError, match=r"class_of_mine.py: the user's file changed while"):
        fingerprint(cls())


def test_a_worker_calls_the_classes_of_a_script_as_the_script_does(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load_user_file(mine)
    found = []
    for name in ("__main__", "__mp_main__"):
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(module.Mine, "__module__", name)
        found.append(fingerprint(module.Mine()))
    assert found[0] == found[1]
