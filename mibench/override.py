"""Fields of specs by dotted path, replaced by what a text spells: ``--set PATH=VALUE``."""

import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterable
from contextlib import suppress
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


def has(spec: object, path: str) -> bool:
    """Whether ``path`` names a field below ``spec``, of one value or of several."""
    return any(f"{known}.".startswith(f"{path}.") for known in paths(spec))


def hint_of(cls: type[Any], name: str) -> Any:  # noqa: ANN401
    """Returns the type of a dataclass's field; what else the class annotates is not looked at.

    Raises:
        ValueError: If the type has a name that its file does not define when it runs.
    """
    field = cls.__dataclass_fields__[name]
    owner = next(  # a class inherits the very fields of its bases, and names are those of its file
        base
        for base in reversed(cls.__mro__)
        if vars(base).get("__dataclass_fields__", {}).get(name) is field
    )
    alone = type("Alone", (), {"__annotations__": {name: field.type}})
    names = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
    try:
        return typing.get_type_hints(alone, names, dict(vars(owner)))[name]
    except NameError as error:
        raise ValueError(
            f"the type of {owner.__qualname__}.{name} is not known when its file runs ({error}): "
            "import it outside of `if TYPE_CHECKING`"
        ) from error


def bare(cls: type[Any]) -> list[str]:
    """Returns the names of a dataclass's fields that have no default."""
    missing = dataclasses.MISSING
    return [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is missing and f.default_factory is missing
    ]


def override(spec: Any, path: str, text: str) -> Any:  # noqa: ANN401 - returns what it is given
    """Returns ``spec`` with the field at ``path`` replaced by the value that ``text`` spells.

    A field that holds a spec in a role, such as a network, or a tuple of specs, is replaced as a
    whole; one that holds another spec is not.

    Raises:
        KeyError: If ``path`` names no field; the message lists those that exist.
        ValueError: If ``text`` does not spell a value of the field's type, or the spec
            refuses it.
    """
    if not has(spec, path):
        raise KeyError(unknown_path(path, paths(spec)))
    return _replace(spec, path.split("."), text, path)


def _replace(spec: Any, steps: list[str], text: str, path: str) -> Any:  # noqa: ANN401
    head, *rest = steps
    if isinstance(spec, tuple):
        i = int(head)
        if not rest:
            whole = path.rpartition(".")[0]
            raise ValueError(f"{path} is not set by itself: set {whole} to a list of all of them")
        return (*spec[:i], _replace(spec[i], rest, text, path), *spec[i + 1 :])
    value = getattr(spec, head)
    if rest:
        new = _replace(value, rest, text, path)
    else:
        hint, inside = hint_of(type(spec), head), paths(value, path)
        if inside != [path] and dataclasses.is_dataclass(hint) and not inspect.isabstract(hint):
            raise KeyError(unknown_path(path, inside))
        new = _read(text, hint, path)
    changed = dataclasses.replace(spec, **{head: new})
    if getattr(changed, head) != new:
        who = type(spec).__name__
        raise ValueError(f"{path} cannot be set: another field of {who} decides it")
    return changed


def _read(text: str, hint: Any, path: str) -> Any:  # noqa: ANN401
    """Returns the value of type ``hint`` that ``text`` spells: as JSON, or else as a name."""
    spelt: list[Any] = [text]
    with suppress(ValueError, RecursionError):
        spelt.insert(0, json.loads(text, parse_constant=_refuse))
    for value in spelt:
        with suppress(TypeError):
            return _fit(value, hint)
    near = nearest(text, _choices(hint))
    raise ValueError(f"{path} takes {describe(hint)}, got {text!r}{near}")


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
        if value.keys() <= {f.name for f in dataclasses.fields(hint)}:
            make: Any = hint
            return make(**{k: _fit(v, hint_of(make, k)) for k, v in value.items()})
    elif inspect.isabstract(hint):  # a role: a name, or the fields with the name as "is"
        fields = {"is": value} if isinstance(value, str) else value
        if isinstance(fields, dict) and (cls := _players(hint).get(fields.get("is"))):
            own = {k: v for k, v in fields.items() if k != "is"}
            if lacking := [name for name in bare(cls) if name not in own]:
                example = "".join(f', "{name}": …' for name in (*own, *lacking))
                raise ValueError(
                    f"{fields['is']} has no default of {' and '.join(lacking)}: "
                    f'write {{"is": "{fields["is"]}"{example}}}'
                )
            return _fit(own, cls)
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
        known = _choices(hint)
        example = f'{{"is": "{known[0]}"}}' if known else '{"is": "NAME"}'
        return f"one of {', '.join(known)}, or an object with its name and fields, as in {example}"
    if dataclasses.is_dataclass(hint):
        return f"an object of {', '.join(f.name for f in dataclasses.fields(hint))}"
    names = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}
    return "null" if hint is type(None) else names.get(hint, str(hint))
