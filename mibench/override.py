"""Fields of specs by dotted path, replaced by what a text spells: ``--set PATH=VALUE``."""

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, Union

from mibench.spec import field_values, nearest


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
    whole = sorted((p for p in known if p.endswith(f".{path}")), key=len)
    wrong = ".".join(path.split(".")[: len(steps) + 1])
    hint = nearest(whole[0], known) if whole else nearest(wrong, near, prefix)
    return f"no field {path!r}{hint}; known: {names}"


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
        raise KeyError(unknown_path(path, paths(spec)))
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
    changed = dataclasses.replace(spec, **{head: new})
    if getattr(changed, head) != new:
        who = type(spec).__name__
        raise ValueError(f"{path} cannot be set: another field of {who} decides it")
    return changed


def _read(text: str, hint: Any, path: str) -> Any:  # noqa: ANN401
    """Returns the value of type ``hint`` that ``text`` spells."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = text
    try:
        return _fit(value, hint)
    except TypeError:
        near = nearest(text, _choices(hint))
        raise ValueError(f"{path} takes {describe(hint)}, got {text!r}{near}") from None


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
    players: dict[Any, type[Any]] = {}
    for player in role.__subclasses__():
        players |= _players(player)
        if dataclasses.is_dataclass(player) and not inspect.isabstract(player):
            players[getattr(player, "name", player.__qualname__)] = player
    return players


def _choices(hint: Any) -> list[str]:  # noqa: ANN401
    """Returns the names that a field takes, if it takes names."""
    if typing.get_origin(hint) is Literal:
        return [str(choice) for choice in typing.get_args(hint)]
    return list(_players(hint)) if inspect.isabstract(hint) else []


def describe(hint: Any) -> str:  # noqa: ANN401
    """Returns in words what a field of a type takes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(_choices(hint))}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in args)
    if origin is tuple:
        inside = ", ".join("…" if a is ... else describe(a) for a in args)
        return f"a list such as [{inside}]"
    if inspect.isabstract(hint):
        return f'one of {", ".join(_choices(hint))}, or its fields with that name as "is"'
    if dataclasses.is_dataclass(hint):
        return f"an object of {', '.join(f.name for f in dataclasses.fields(hint))}"
    names = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}
    return "null" if hint is type(None) else names.get(hint, str(hint))
