"""What the seams of attacks keep out of them."""

import ast
import inspect
from pathlib import Path

import pytest

from mibench.attacks import GMI, KEDMI
from mibench.roles import Attack

FOLDER = Path(inspect.getfile(GMI)).parent
LOOPS = ("work.load", "work.save", "set_state", "check_finite", "work.progress")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
def test_saving_resuming_and_reporting_are_the_loops_alone(path: Path) -> None:
    text = path.read_text()
    if path.stem == "descent":
        assert all(name in text for name in ("work.save", "check_finite", "work.progress"))
        return
    assert [name for name in LOOPS if name in text] == []


@pytest.mark.parametrize(("attack", "lines"), [(GMI, 20), (KEDMI, 30)])
def test_an_attack_is_about_itself(attack: type[Attack], lines: int) -> None:
    (function,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(attack.invert))).body
    assert isinstance(function, ast.FunctionDef)
    assert function.end_lineno is not None
    assert function.end_lineno - function.lineno + 1 <= lines
