"""Specs are frozen dataclasses; their identity is the hash of their canonical JSON."""

import dataclasses
import difflib
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, TypeAlias

from mibench.sources import captured, is_foreign, source_digest

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
    class that mibench does not ship also carries its source: see
    :func:`~mibench.sources.source_digest`.

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
        if (module := sys.modules.get(type(value).__module__)) and is_foreign(module):
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
        home = cls.__module__.replace("__mp_main__", "__main__")  # a worker's name of the script
        head["class"] = f"{home}.{cls.__qualname__}"
        if digest := source_digest(cls):
            head["source"] = digest
    return head


def check_class(cls: type) -> None:
    """Refuses a user's class some of whose values would be in no key, or that has no name.

    Raises:
        TypeError: If it is not a frozen dataclass, has an ``__init__`` of its own or an
            ``InitVar``, takes values from a function that it is defined in, gives an inherited
            field a default without a type, or lacks the ``name`` that its role has.
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
    every: dict[str, dataclasses.Field[Any]] = getattr(cls, "__dataclass_fields__")  # noqa: B009
    if passing := [f.name for f in every.values() if "InitVar" in str(f.type)]:
        raise TypeError(
            f"{who}.{passing[0]} is an InitVar, whose value no key would tell: write a plain "
            f"field, such as {passing[0]}: float = 0.1"
        )
    if held := sorted(set().union(*map(captured, cls.__mro__))):
        raise TypeError(
            f"{who} takes {held[0]} from the function that makes it, and no key would tell its "
            f"value: make it a field, or define the class outside of functions"
        )
    if bare := [f.name for f in dataclasses.fields(cls) if f.name in own.keys() - types.keys()]:
        raise TypeError(
            f"{who}.{bare[0]} has a value and no type, so the inherited default would stay: "
            f"write {bare[0]}: TYPE = VALUE"
        )
    named = any("name" in inspect.get_annotations(base) for base in cls.__mro__)
    if named and not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f'{who} has no name: write name: ClassVar[str] = "{who.lower()}" in it')


def check_hashable(spec: object) -> None:
    """Refuses a spec that has a list, a dict or another value that can change in a field.

    Raises:
        TypeError: If it has; the message says which field.
    """
    try:
        hash(spec)
    except TypeError as error:
        raise TypeError(next(_changeable(spec, ""), str(error))) from None


def _changeable(value: object, field_: str) -> Iterator[str]:
    """Yields a sentence for each field that makes a spec unhashable."""
    if isinstance(value, tuple):
        for inner in value:
            yield from _changeable(inner, field_)
    elif dataclasses.is_dataclass(value):
        if not isinstance(value, Hashable):
            check_class(type(value))
        for name, inner in field_values(value).items():
            yield from _changeable(inner, f"{type(value).__qualname__}.{name}")
    elif not isinstance(value, Hashable):
        tuple_ = "a tuple of pairs" if isinstance(value, dict) else "a tuple"
        yield f"{field_} holds a {type(value).__name__}, which can change: write {tuple_}"


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
