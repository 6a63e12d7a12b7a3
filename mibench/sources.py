"""Which source files stand behind a user's class, and whether they are still what was loaded."""

import ast
import hashlib
import importlib.util
import inspect
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

CHANGED = "the user's file changed while it ran; start again"

_loaded: dict[tuple[str, Path], tuple[object, dict[Path, bytes]]] = {}
"""Name and file of a loaded module → what loaded it, and the digests of files at that time."""


def source_digest(cls: type | Callable[..., Any]) -> str | None:
    """Returns the digest of the user's source behind ``cls``; None if mibench ships it all.

    A class, or a function, may call functions of its file, and those call others: every file is
    hashed that :func:`source_files` finds from there. Two of one name never share a result.

    Raises:
        ValueError: If a file changed since it was loaded.
    """
    classes = cls.__mro__ if isinstance(cls, type) else (cls,)
    digests = remember_sources(
        m for c in classes if (m := sys.modules.get(c.__module__)) and is_foreign(m)
    )
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16] if digests else None


def remember_sources(modules: Iterable[types.ModuleType]) -> list[bytes]:
    """Returns the digests of the modules' files and of all that they import, in their order.

    What runs is what was loaded, not what the files say now. So each loaded module's files are
    remembered from when it was first seen here; one that was loaded again, by
    ``importlib.reload`` or as a new module, is seen anew.

    Raises:
        ValueError: If a loaded module, or something that it imports, changed since.
    """
    found = {
        path: hashlib.sha256(path.read_bytes()).digest() for path in sorted(source_files(modules))
    }
    names = tuple(path.name for path in found)
    for name, module in list(sys.modules.items()) if found else ():
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not file.endswith(names):  # to resolve all takes a second
            continue
        if (path := Path(file).resolve()) not in found:
            continue
        before, seen = _loaded.get((name, path), (None, {}))
        if before is not _loading(module):
            _loaded[name, path] = _loading(module), dict(found)
            continue
        changed = {p for p in found if seen.setdefault(p, found[p]) != found[p]}
        if changed and (wrong := changed & source_files([module])):
            raise ValueError(f"{min(wrong)}: {CHANGED}")
        seen.update(found)  # what it does not import may change
    return list(found.values())


class Remembered:
    """A base of roles: what a user's class is made of is remembered from its definition on."""

    def __init_subclass__(cls) -> None:
        """Remembers it, once each time the class's module is loaded."""
        super().__init_subclass__()
        module = sys.modules.get(cls.__module__)
        if module is not None and is_foreign(module):
            place = module.__name__, Path(str(module.__file__)).resolve()
            if _loaded.get(place, (None,))[0] is not _loading(module):
                remember_sources([module])


def _loading(module: types.ModuleType) -> object:
    """Returns what is another object each time the module is loaded, again too."""
    return getattr(module, "__spec__", None) or module


def source_files(modules: Iterable[types.ModuleType]) -> set[Path]:
    """Returns the modules' files and all that they, and those in turn, import by name.

    Wherever those lie: beside the modules, on the path, or where an editable install points to.
    Python's own modules, mibench's and installed packages are not among them, nor what is
    imported by a name that is computed.
    """
    starts = {Path(str(m.__file__)) for m in modules}
    roots = [str(path.resolve().parent) for path in starts]
    files: set[Path] = set()
    todo = list(starts)
    while todo:
        path = todo.pop()
        if path.resolve() in files or not is_users(path):
            continue
        files.add(path.resolve())
        folders = itertools.takewhile(lambda f: (f / "__init__.py").is_file(), path.parents)
        todo += [folder / "__init__.py" for folder in folders]
        for level, name in _imports(path.read_bytes()) if path.suffix == ".py" else ():
            places = [str(path.parents[level - 1])] if level else roots
            todo += _locate(name, places, anywhere=not level)
    return files


def is_foreign(module: types.ModuleType) -> bool:
    """Whether the module is the user's: neither mibench's, nor Python's, nor installed."""
    path = getattr(module, "__file__", None)
    if path is None or module.__name__.partition(".")[0] == "mibench":
        return False
    return is_users(Path(path))


def is_users(path: Path) -> bool:
    """Whether a file is neither mibench's, nor Python's, nor of an installed package.

    A package that was installed from a folder is the user's: no version says what is in it.
    """
    path = path.resolve()
    if Path(__file__).resolve().parent in path.parents:
        return False
    for folder in path.parents:
        top = path.relative_to(folder).parts[0]
        standard = folder.name in SITES or folder == Path(inspect.__file__).resolve().parent
        if standard or top in _installed(folder, local=False):
            return top in _installed(folder, local=True)
    return True


SITES = ("site-packages", "dist-packages")
"""Folders of installed packages; those of others hold lists of what was installed there."""


@lru_cache
def _installed(folder: Path, *, local: bool) -> frozenset[str]:
    """Returns the files and folders in ``folder`` that installers put there.

    Args:
        folder: Where to look.
        local: Only those that come from a folder of the user's.
    """
    names: set[str] = set()
    for info in folder.glob("*.dist-info"):
        with suppress(OSError, ValueError):
            if local and (
                "dir_info" not in json.loads((info / "direct_url.json").read_bytes())
                or (info / "INSTALLER").read_bytes().strip() == b"conda"  # names its build's
            ):
                continue
            lines = (info / "RECORD").read_text(encoding="utf-8").splitlines()
            names |= {line.partition(",")[0].partition("/")[0] for line in lines}
    return frozenset(names)


def _locate(name: str, places: list[str], *, anywhere: bool) -> Iterator[Path]:
    """Yields the files of a dotted name and of the packages around it; imports none of them.

    Args:
        name: Of a module, or of something in one.
        places: Folders to look in.
        anywhere: Whether Python's path is looked through, too.
    """
    top, *rest = name.split(".")
    starts = [PathFinder.find_spec(top, places)]
    if anywhere:
        with suppress(ImportError, ValueError, AttributeError):  # such as of a script run as such
            starts.append(importlib.util.find_spec(top))
    for spec in starts:
        for part in (*rest, None):
            if spec is None:
                break
            if spec.has_location and spec.origin and Path(spec.origin).is_file():
                yield Path(spec.origin)
            inside = spec.submodule_search_locations
            spec = PathFinder.find_spec(part, list(inside)) if part and inside else None


@lru_cache(maxsize=4096)
def _imports(source: bytes) -> tuple[tuple[int, str], ...]:
    """Returns (dots before it, dotted name) of all that a source imports, wherever in it."""
    imports: list[tuple[int, str]] = []
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # Python could not import it either
        return ()
    for node in nodes:
        match node:
            case ast.Import(names=names):
                imports += [(0, alias.name) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = f"{module}." if module else ""
                imports += [(level, f"{base}{alias.name}") for alias in names]
            case ast.Call(
                func=ast.Name(id=caller) | ast.Attribute(attr=caller),
                args=[ast.Constant(value=str(name)), *_],
            ) if caller in ("import_module", "__import__"):
                bare = name.lstrip(".")
                imports.append((len(name) - len(bare), bare))
    return tuple(imports)


def captured(cls: type) -> frozenset[str]:
    """Returns the variables that a user's class takes from a function that it is defined in."""
    module = sys.modules.get(cls.__module__)
    if "<locals>" not in cls.__qualname__ or module is None or not is_foreign(module):
        return frozenset()
    path = Path(str(module.__file__))
    known = _free_variables(path.read_bytes()) if path.suffix == ".py" else {}
    return known.get(cls.__qualname__, frozenset())


@lru_cache(maxsize=64)
def _free_variables(source: bytes) -> dict[str, frozenset[str]]:
    """Returns qualified name → variables of functions around it, of all functions and classes.

    A class's are also those of its methods and of their defaults.
    """
    free: dict[str, frozenset[str]] = {}
    todo: list[types.CodeType] = []
    with suppress(SyntaxError):  # then it is not what was loaded, as its digest tells
        todo.append(compile(source, "<user's file>", "exec", dont_inherit=True))
    while todo:
        code = todo.pop()
        todo += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        own = free.get(code.co_qualname, frozenset())
        free[code.co_qualname] = own | set(code.co_freevars) - {"__class__"}
    return free
