"""Tables, attacks and defenses from a user's own Python file."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from mibench.sources import is_users, remember_sources, source_files
from mibench.store import tell

ADVICE = {
    FrozenInstanceError: "; in place of an __init__ write each hyper-parameter as a field, such "
    "as alpha: float = 0.1",
    SystemExit: "; a file that mibench loads must not end the process: what it does as a program "
    'goes below if __name__ == "__main__":',
}
"""What a user's file raises → what to change."""
LACKING = re.compile(r"Can't instantiate abstract class (\w+) .*abstract methods? (.+)")
"""What Python says of a class that lacks methods."""


def load_user_file(path: Path, *, again: bool = False) -> ModuleType:
    """Runs the file as a module, once per process; files beside it can be imported.

    Args:
        path: The file.
        again: Whether what is to be noted of it was said before.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not run, the message says where; or if it imports a file that
            changed since it was loaded.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix != ".py":
        raise ValueError(f"{path} is no Python file: its name must end in .py")
    path = path.resolve()
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    other = importlib.util.find_spec(name) if known is None else None
    if known is not None or (other is not None and other.origin != str(path)):
        raise ValueError(f"{path.name} has the name of a Python module; rename it")
    loaded = set(sys.modules)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        remember_sources([module])  # before it runs, which may take long
        with blaming(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    if not again:
        _note_unfollowed(module, sys.modules.keys() - loaded)
    return module


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turns what the code of a user's file raises, SystemExit too, into a sentence.

    Raises:
        ValueError: It says in which line of the file.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        path = path.resolve()
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = error.lineno if isinstance(error, SyntaxError) else (0, *lines)[-1]
        line = "" if where is None else f", line {where}"  # Python names none for a null byte
        advice = ADVICE.get(type(error), "")
        told = f"{type(error).__name__}: {error}".removesuffix(": ") + advice
        sentence = f"{path}{line}: {lacking(error) or told}"
        raise ValueError(sentence) from error


def lacking(error: BaseException) -> str:
    """Returns which methods a class lacks, if that is what an error says; else ""."""
    if found := LACKING.match(str(error)):
        return "the class {} must define {}".format(*found.groups()).replace("'", "")
    return ""


def user_modules(path: Path) -> dict[str, ModuleType]:
    """Returns the loaded modules of a user's file and of the user's files that it imports."""
    load_user_file(path)
    own = _sources(path.resolve())
    names = tuple(file.name for file in own)
    return {
        name: module
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None))
        and file.endswith(names)  # to resolve the path of every module takes a second
        and Path(file).resolve() in own
    }


@lru_cache(maxsize=1)
def _sources(path: Path) -> frozenset[Path]:
    """Returns the files of :func:`source_files` of a loaded user's file."""
    return frozenset(source_files([load_user_file(path)]))


def load_afresh(path: Path) -> ModuleType:
    """Runs the file, and the user's files that it imports, again: they remember nothing.

    Raises as :func:`load_user_file` does.
    """
    for name in user_modules(path):
        del sys.modules[name]
    return load_user_file(path, again=True)


def _note_unfollowed(module: ModuleType, loaded: Iterable[str]) -> None:
    """Says which of the modules that a file has loaded do not count as part of it."""
    files = {
        name: Path(file)
        for name in loaded
        if (file := getattr(sys.modules[name], "__file__", None)) is not None
    }
    followed = source_files([module])
    others = [n for n, f in files.items() if is_users(f) and f.resolve() not in followed]
    if others:
        tell(
            f"{module.__file__} loads {', '.join(sorted(others))} by a name that is computed: "
            "changes there do not make results count as new. Import what decides results by name"
        )
