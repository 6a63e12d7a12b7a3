"""Specs are frozen dataclasses; their identity is the hash of their canonical JSON."""

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.machinery import PathFinder
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | list[Any] | dict[str, Any] | None
else:
    Json = object  # recursive types cannot be checked at run time


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


def hashed(plain: Json) -> str:
    """Returns the same of what is canonical JSON already, as read from a file.

    Raises:
        ValueError: If it holds a number that is not finite.
    """
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
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
    if isinstance(version := getattr(cls, "version", None), int):
        head["version"] = version
    if not cls.__module__.startswith("mibench."):
        if getattr(sys.modules.get(cls.__module__), "__file__", None) is None:
            raise TypeError(f"{cls.__qualname__} is defined interactively; put it into a file")
        head["class"] = f"{cls.__module__}.{cls.__qualname__}"
        if digest := source_digest(cls):
            head["source"] = digest
    return head


def source_digest(cls: type) -> str | None:
    """Returns the digest of the user's source behind ``cls``; None if mibench ships it all.

    A class may call functions of its file, and those call others: every file is hashed that
    :func:`source_files` finds from there. Two classes of one name never share a result.
    """
    own = [m for c in cls.__mro__ if (m := sys.modules.get(c.__module__)) and _foreign(m)]
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
    found: set[Path] = set()
    todo = list(starts)
    while todo:
        path = todo.pop()
        if path.resolve() in found or not is_users(path):
            continue
        found.add(path.resolve())
        folders = itertools.takewhile(lambda f: (f / "__init__.py").is_file(), path.parents)
        todo += [folder / "__init__.py" for folder in folders]
        for level, name in _imports(path.read_bytes()) if path.suffix == ".py" else ():
            places = [str(path.parents[level - 1])] if level else roots
            todo += _locate(name, places, anywhere=not level)
    return found


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
    found: list[tuple[int, str]] = []
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # Python could not import it either
        return ()
    for node in nodes:
        match node:
            case ast.Import(names=names):
                found += [(0, alias.name) for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = f"{module}." if module else ""
                found += [(level, f"{base}{alias.name}") for alias in names]
            case ast.Call(
                func=ast.Name(id=caller) | ast.Attribute(attr=caller),
                args=[ast.Constant(value=str(name)), *_],
            ) if caller in ("import_module", "__import__"):
                bare = name.lstrip(".")
                found.append((len(name) - len(bare), bare))
    return tuple(found)


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


def choose(spec: object, **allowed: Iterable[str]) -> None:
    """Checks text fields against the names allowed for them.

    Raises:
        ValueError: If a field (or an entry of a tuple field) is not among them.
    """
    for name, names in allowed.items():
        value = getattr(spec, name)
        for v in value if isinstance(value, tuple) else (value,):
            if v not in set(names):
                known = ", ".join(names)
                raise ValueError(f"unknown {type(spec).__name__}.{name} {v!r}; known: {known}")


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


def paths(spec: object, prefix: str = "") -> list[str]:
    """Returns the dotted paths of all fields below ``spec`` that hold a value."""
    if isinstance(spec, tuple) and any(map(dataclasses.is_dataclass, spec)):
        named: list[tuple[str, Any]] = [(str(i), v) for i, v in enumerate(spec)]
    elif dataclasses.is_dataclass(spec) and dataclasses.fields(spec):
        named = list(field_values(spec).items())
    else:
        return [prefix]
    return [p for n, v in named for p in paths(v, f"{prefix}.{n}" if prefix else n)]


def unknown_path(path: str, known: Iterable[str]) -> str:
    """Returns a sentence that lists the fields nearest to a path that names none."""
    known = list(known)
    steps = path.split(".")
    while steps and not any(p.startswith(".".join(steps) + ".") for p in known):
        steps.pop()
    prefix = "".join(f"{step}." for step in steps)
    near = sorted({p.split(".")[len(steps)] for p in known if p.startswith(prefix)})
    names = ", ".join(prefix + n + ("" if prefix + n in known else ".…") for n in near)
    if len(steps) == len(path.split(".")):
        return f"{path} holds several fields; set one of: {names}"
    return f"no field {path!r}; known: {names}"


def takes(spec: object, path: str, text: str) -> bool:
    """Whether ``path`` names a field that ``text`` may replace.

    That is one that holds a value; or one that holds a whole spec in a role, such as a network,
    if the text is a JSON object: the fields of another, with its name under "is".
    """
    known = paths(spec)
    if path in known:
        return True
    if not text.lstrip().startswith("{") or not any(p.startswith(f"{path}.") for p in known):
        return False
    *above, last = path.split(".")
    for step in above:
        spec = spec[int(step)] if isinstance(spec, tuple) else getattr(spec, step)
    hints = typing.get_type_hints(type(spec)) if dataclasses.is_dataclass(spec) else {}
    return inspect.isabstract(hints.get(last))


def override(spec: Any, path: str, text: str) -> Any:  # noqa: ANN401 - returns what it is given
    """Returns ``spec`` with the field at ``path`` replaced by the value that ``text`` spells.

    Raises:
        KeyError: If ``path`` names no field; the message lists those that exist.
        ValueError: If ``text`` does not spell a value of the field's type, or the spec
            refuses it.
    """
    if not takes(spec, path, text):
        known = paths(spec)
        raise KeyError(unknown_path(path, known))
    return _replace(spec, path.split("."), text, path)


def _replace(spec: Any, steps: list[str], text: str, path: str) -> Any:  # noqa: ANN401
    head, *rest = steps
    if isinstance(spec, tuple):
        i = int(head)
        return (*spec[:i], _replace(spec[i], rest, text, path), *spec[i + 1 :])
    if rest:
        new = _replace(getattr(spec, head), rest, text, path)
    else:
        new = _read(text, typing.get_type_hints(type(spec))[head], path)
    return dataclasses.replace(spec, **{head: new})


def _read(text: str, hint: Any, path: str) -> Any:  # noqa: ANN401
    """Returns the value of type ``hint`` that ``text`` spells."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = text
    try:
        return _fit(value, hint)
    except TypeError:
        raise ValueError(f"{path} takes {_describe(hint)}, got {text!r}") from None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _fit(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Returns ``value`` as ``hint`` wants it; raises TypeError if it cannot be."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _fit(value, arg)
            except TypeError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple and isinstance(value, list):
        hints = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else list(args)
        if len(hints) == len(value):
            return tuple(_fit(v, h) for v, h in zip(value, hints, strict=True))
    elif hint is float and type(value) in (int, float) and abs(value) < float("inf"):
        try:
            return float(value)
        except OverflowError:
            raise TypeError from None
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        fields = typing.get_type_hints(hint)
        if value.keys() <= fields.keys():
            make: Any = hint
            return make(**{k: _fit(v, fields[k]) for k, v in value.items()})
    elif inspect.isabstract(hint):  # a role: a name, or the fields with the name as "is"
        fields = {"is": value} if isinstance(value, str) else value
        if isinstance(fields, dict) and (cls := _players(hint).get(fields.get("is"))):
            return _fit({k: v for k, v in fields.items() if k != "is"}, cls)
    elif hint in (int, str, bool, type(None)) and type(value) is hint:
        return value
    raise TypeError


def _players(role: type[Any]) -> dict[Any, type[Any]]:
    """Returns the specs that can stand where ``role`` is wanted, by name."""
    found: dict[Any, type[Any]] = {}
    for player in role.__subclasses__():
        found |= _players(player)
        if dataclasses.is_dataclass(player) and not inspect.isabstract(player):
            found[getattr(player, "name", player.__qualname__)] = player
    return found


def _describe(hint: Any) -> str:  # noqa: ANN401
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is tuple:
        inside = ", ".join("…" if a is ... else _describe(a) for a in args)
        return f"a list such as [{inside}]"
    if inspect.isabstract(hint):
        return f'one of {", ".join(_players(hint))}, or its fields with that name as "is"'
    names = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}
    return "null" if hint is type(None) else names.get(hint, str(hint))
