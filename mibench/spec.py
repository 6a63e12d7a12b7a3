"""Specs are frozen dataclasses; their identity is the hash of their canonical JSON."""

import ast
import dataclasses
import difflib
import hashlib
import importlib.util
import inspect
import itertools
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.machinery import PathFinder
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
else:
    Json = object  # recursive types cannot be checked at run time


MOST_SEEDS = 10_000
"""Of a table: every seed from 0 on is planned before one is computed or read."""


def canonical(value: object) -> Json:
    """Returns ``value`` as plain JSON, the same for equal specs on every machine.

    A spec appears as its name, its ``version`` where it has one, and all its fields,
    defaults included; one that defines ``__canonical__`` (a stage) as what that returns. A
    class that mibench does not ship also carries its source: see :func:`source_digest`.

    Raises:
        TypeError: If ``value`` holds anything but specs, sequences, mappings and scalars.
            Paths, devices and modules are refused: they must not decide a result.
        ValueError: If a number is not finite.
    """
    plain: Json = json.loads(_text(value))
    return plain


def fingerprint(value: object) -> str:
    """Returns the 16-digit hexadecimal name of a spec: of its canonical JSON, keys sorted."""
    return hashlib.sha256(_text(value).encode()).hexdigest()[:16]


_texts: dict[int, tuple[object, str]] | None = None


@contextmanager
def remembering() -> Iterator[None]:
    """Makes each spec's text once while this lasts: a grid's cells share most of their specs."""
    global _texts
    _texts = {}  # by identity; the spec beside its text, so that it lives
    try:
        yield
    finally:
        _texts = None


def _number(value: float) -> str:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} cannot be part of a spec: numbers must be finite")
    return int.__repr__(int(value)) if value.is_integer() else float.__repr__(value)


_SCALARS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: int.__repr__,
    float: _number,
}


def _text(value: object) -> str:
    """Returns a value's canonical JSON, compact and with sorted keys."""
    if (scalar := _SCALARS.get(type(value))) is not None:
        return scalar(value)
    if _texts is not None and id(value) in _texts:
        return _texts[id(value)][1]
    for kind, scalar in _SCALARS.items():  # of a class made from it, such as NumPy's float64
        if isinstance(value, kind):
            return scalar(value)
    if isinstance(value, tuple | list):
        text = f"[{','.join(map(_text, value))}]"
        if _texts is not None and isinstance(value, tuple):
            _texts[id(value)] = (value, text)
        return text
    if isinstance(value, dict):
        return _braces({str(k): v for k, v in value.items()})
    if isinstance(value, type):
        name = value.__qualname__
        raise TypeError(f"the class {name} cannot be part of a spec: write {name}(...), an object")
    if not dataclasses.is_dataclass(value):
        if (module := sys.modules.get(type(value).__module__)) and _foreign(module):
            check_class(type(value))
        raise TypeError(f"{type(value).__qualname__} cannot be part of a spec")
    if own := getattr(value, "__canonical__", None):
        text = _text(own())
    else:
        head = _head(value)
        fields = field_values(value)
        if clash := head.keys() & fields.keys():
            name = type(value).__qualname__
            raise TypeError(f"{name}: a field cannot be called {sorted(clash)[0]!r}")
        text = _braces(head | fields)
    if _texts is not None:
        _texts[id(value)] = (value, text)
    return text


_names: dict[type, tuple[str, ...]] = {}


def field_values(spec: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    """Returns name → value of a dataclass's fields, none of them copied."""
    cls = type(spec)
    if cls not in _names:
        _names[cls] = tuple(f.name for f in dataclasses.fields(spec))
    return {name: getattr(spec, name) for name in _names[cls]}


def _braces(fields: dict[str, Any]) -> str:
    pairs = [
        f"{_quoted(k)}:{scalar(v) if (scalar := _SCALARS.get(type(v))) else _text(v)}"
        for k, v in sorted(fields.items())
    ]  # a third of a plan's time is spent here, and most values are scalars
    return f"{{{','.join(pairs)}}}"


_quoted = lru_cache(encode_basestring_ascii)
"""Names of fields as JSON: there are few."""


def _head(value: object) -> dict[str, Json]:
    """Returns what a spec says before its fields: name, version, and a foreign class's source."""
    cls = type(value)
    head: dict[str, Json] = {"is": getattr(value, "name", cls.__qualname__)}
    if isinstance(version := getattr(value, "version", None), int):  # its own, or its class's
        head["version"] = version
    if not cls.__module__.startswith("mibench."):
        check_class(cls)
        if getattr(sys.modules.get(cls.__module__), "__file__", None) is None:
            raise TypeError(f"{cls.__qualname__} is defined interactively; put it into a file")
        head["class"] = f"{cls.__module__}.{cls.__qualname__}"
        if digest := source_digest(cls):
            head["source"] = digest
    return head


def source_digest(cls: type | Callable[..., Any]) -> str | None:
    """Returns the digest of the user's source behind ``cls``; None if mibench ships it all.

    A class, or a function, may call functions of its file, and those call others: every file is
    hashed that :func:`source_files` finds from there. Two of one name never share a result.
    """
    classes = cls.__mro__ if isinstance(cls, type) else (cls,)
    own = [m for c in classes if (m := sys.modules.get(c.__module__)) and _foreign(m)]
    files = sorted(source_files(own))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


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


def _foreign(module: types.ModuleType) -> bool:
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


def check_class(cls: type) -> None:
    """Refuses a user's class some of whose values would be in no key, or that has no name.

    Raises:
        TypeError: If it is not a frozen dataclass, has an ``__init__`` of its own, gives an
            inherited field a default without a type, or lacks the ``name`` that its role has.
    """
    who, own = cls.__qualname__, vars(cls)
    types = inspect.get_annotations(cls)
    decorate = "write @dataclass(frozen=True) above the class"
    fields = "each hyper-parameter as a field, such as alpha: float = 0.1"
    home = next(base for base in cls.__mro__ if "__init__" in vars(base))
    code = getattr(home.__init__, "__code__", None)  # type: ignore[misc]
    # Code that @dataclass has written is of no file.
    if code and code.co_filename != "<string>" and not home.__module__.startswith("mibench."):
        raise TypeError(f"{who} has an __init__: delete it, {decorate} and {fields}")
    annotated = any("ClassVar" not in str(hint) for hint in types.values())
    if not dataclasses.is_dataclass(cls) or (annotated and "__dataclass_fields__" not in own):
        raise TypeError(f"{who} is not a dataclass: {decorate} and {fields}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"{who} is a dataclass that is not frozen: {decorate}")
    if bare := [f.name for f in dataclasses.fields(cls) if f.name in own.keys() - types.keys()]:
        raise TypeError(
            f"{who}.{bare[0]} has a value and no type, so the inherited default would stay: "
            f"write {bare[0]}: TYPE = VALUE"
        )
    named = any("name" in inspect.get_annotations(base) for base in cls.__mro__)
    if named and not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f'{who} has no name: write name: ClassVar[str] = "{who.lower()}" in it')


def check_role(spec: object, role: type, where: str) -> None:
    """Refuses what cannot play a role; what mibench ships can.

    Args:
        spec: What is to play it.
        role: The role's abstract class.
        where: What is said of the place, such as "a cell's attack".

    Raises:
        TypeError: If ``spec`` is a class, or not of a class that derives from the role, or of
            one that :func:`check_class` refuses or whose methods take other arguments.
    """
    wanted = f"an object of a class that derives from mibench.{role.__qualname__}"
    if isinstance(spec, type):
        raise TypeError(f"{where} must be {wanted}: write {spec.__qualname__}(...)")
    if not isinstance(spec, role):
        raise TypeError(f"{where} must be {wanted}, got {type(spec).__qualname__}")
    if not type(spec).__module__.startswith("mibench."):
        check_class(type(spec))
        for method in sorted(getattr(role, "__abstractmethods__", ())):
            _check_method(type(spec), role, method)


def _check_method(cls: type, role: type, method: str) -> None:
    names = list(inspect.signature(getattr(role, method)).parameters)
    try:
        inspect.signature(getattr(cls, method)).bind(*names)
    except TypeError:
        raise TypeError(
            f"{cls.__qualname__}.{method} must take what it is called with: "
            f"write def {method}({', '.join(names)})"
        ) from None


def require(spec: object, **bounds: tuple[float, float]) -> None:
    """Checks numeric fields against closed ranges; ``(1, inf)`` means at least one.

    Raises:
        ValueError: If a field is outside its range; the message says the field, the range
            and the value.
    """
    who = type(spec).__name__
    for name, (low, high) in bounds.items():
        value = getattr(spec, name)
        for v in value if isinstance(value, tuple) else (value,):
            if not low <= v <= high:
                limit = f"at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
                raise ValueError(f"{who}.{name} must be {limit}, got {v}")


def require_betas(spec: object, betas: tuple[float, ...]) -> None:
    """Checks Adam's decay rates, two numbers in [0, 1).

    Raises:
        ValueError: If they are others.
    """
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            f"{type(spec).__name__}.betas must be two numbers of at least 0 and below 1, "
            f"got {betas}"
        )


def choose(spec: object, **allowed: Iterable[str]) -> None:
    """Checks text fields against the names allowed for them.

    Raises:
        ValueError: If a field (or an entry of a tuple field) is not among them.
    """
    for name, names in allowed.items():
        value = getattr(spec, name)
        for v in value if isinstance(value, tuple) else (value,):
            if v not in set(names):
                raise ValueError(unknown(f"{type(spec).__name__}.{name}", v, names))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Returns a sentence on a name that is none of the known ones."""
    known = list(known)
    return f"unknown {what} {name!r}{nearest(name, known)}; known: {', '.join(known)}"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns the question whether another name was meant; "" if no known one is near.

    Args:
        name: The name that somebody gave.
        known: Names that there are.
        prefix: What ``name`` and all of them begin with, but left out of ``known``.
    """
    alike = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(str(name).removeprefix(prefix).lower(), alike, n=1)
    return f" (did you mean {prefix + alike[near[0]]!r}?)" if near else ""


def brief(spec: object) -> str:
    """Returns a spec's name with its text and number fields that are not at their default."""
    words = []
    for f in dataclasses.fields(spec) if dataclasses.is_dataclass(spec) else ():
        value = getattr(spec, f.name)
        if value == f.default or not isinstance(value, str | int | float):
            continue
        if isinstance(value, int | float):
            number = f"{value:g}" if abs(value) < 2**53 else f"{value}"
            value = f"{f.name.rstrip('_')}={number}"
        words.append(value)
    return " ".join([getattr(spec, "name", type(spec).__name__), *words])
