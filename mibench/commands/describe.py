"""The commands list and describe: what there is, and what it takes."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from mibench.commands.shared import refusing

KINDS = (
    "tables", "attacks", "priors", "losses", "views", "defenses", "augmentations", "networks",
    "tasks", "metrics", "protocols",
)  # fmt: skip


def registries() -> dict[str, Mapping[str, Any]]:
    """Returns kind → name → component, for every kind of ``KINDS``."""
    from mibench.attacks import ATTACKS, LOSSES, PRIORS, VIEWS, Averaging, Framed, Shipped
    from mibench.benchmarks.tables import TABLES
    from mibench.data import TASKS
    from mibench.defenses import DEFENSES
    from mibench.evaluation import METRICS, PROTOCOLS
    from mibench.networks import FROM_FILES, NETWORKS
    from mibench.training.augment import AUGMENTATIONS

    attacks = ATTACKS | {Averaging.name: Averaging}
    priors = PRIORS | {prior.name: prior for prior in (Shipped, Framed)}
    components: tuple[Mapping[str, Any], ...] = (
        TABLES, attacks, priors, LOSSES, VIEWS, DEFENSES, AUGMENTATIONS,
        NETWORKS | FROM_FILES, TASKS, METRICS, PROTOCOLS,
    )  # fmt: skip
    return dict(zip(KINDS, components, strict=True))


@click.command("list")
@click.argument("what", type=click.Choice(KINDS))
def list_(what: str) -> None:
    """Find the names of tables, attacks, defenses and other components.

    Each name has a line that says what it is.

    Example: mibench list attacks
    """
    for name, line in registry(what):
        click.echo(f"{name:26s} {line}".rstrip())
    if sys.flags.optimize > 1 and what != "tables":
        click.echo("note: Python drops descriptions under PYTHONOPTIMIZE=2 or -OO", err=True)


def registry(what: str) -> Iterator[tuple[str, str]]:
    """Yields the names of a kind of component, each with a line that says what it is."""
    for name, component in registries()[what].items():
        if what == "tables":
            yield name, component.caption + f" [{component.source}]" * bool(component.source)
        elif what == "protocols":
            own = ", ".join(f"{field}={value}" for field, value in component.items())
            yield name, own or "the default; the others are described by how they differ from it"
        else:
            documented = component.compute if what == "metrics" else component
            text = documented.__doc__ or ""
            if text.startswith(f"{documented.__name__}("):
                text = ""  # a dataclass's own, where Python runs with -OO
            yield name, text.split("\n")[0]


@click.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Of which kind, where several have NAME.")
def describe(name: str, kind: str | None) -> None:
    """Learn what a component does and which values its fields take.

    NAME is one of those that `mibench list` prints.

    Example: mibench describe ked-mi
    """
    from mibench.spec import nearest

    every = {k: names for k, names in registries().items() if kind in (None, k)}
    kinds = [k for k, names in every.items() if name in names]
    with refusing():
        if not kinds:
            near = nearest(name, [n for names in every.values() for n in names])
            none = f"none of the {kind}" if kind else "no component"
            raise KeyError(f"{none} is called {name!r}{near}; see mibench list --help")
        if len(kinds) > 1:
            calls = " or ".join(f"--kind {k}" for k in kinds)
            raise ValueError(f"{name!r} is in {' and in '.join(kinds)}: say which, {calls}")
    click.echo("\n".join(lines_of(kinds[0], name, every[kinds[0]][name])))


def lines_of(kind: str, name: str, component: Any) -> Iterator[str]:  # noqa: ANN401
    """Yields what to print of a component."""
    from mibench.evaluation import Protocol, fields_of

    yield f"{name}, of the {kind}"
    if kind == "tables":
        yield from _paragraphs(component.caption, component.source)
        yield f"\nColumns\n  {', '.join(component.columns)}\n\nRows"
        yield from (f"  {label}" for label in component.rows)
        yield from ("\nNotes", *(f"  {note}" for note in component.notes)) * bool(component.notes)
    elif kind == "metrics":
        low, high = component.range
        yield from _paragraphs(_text(component.compute))
        better = f"{component.better} is better" if component.better else "neither way is better"
        yield f"\n  {component.title}: {better} for the defender"
        yield f"  measured on each {component.per}, {low:g} to {high:g} {component.unit}".rstrip()
    elif kind == "protocols":
        yield from _paragraphs(_text(Protocol))
        yield from _fields(Protocol, fields_of(name))
    else:
        own = _text(component)
        yield from _paragraphs(own, *_sources(component, own))
        yield from _fields(component, {}) if inspect.isclass(component) else ()


def _text(documented: object) -> str:
    """Returns a docstring without its sections, such as that of the attributes."""
    return re.split(r"\n+[A-Z]\w+:\n", inspect.getdoc(documented) or "")[0]


def _sources(component: object, text: str) -> list[str]:
    """Returns the docstring of the component's file where it, and not the text, has the source."""
    module = inspect.getdoc(inspect.getmodule(component)) or ""
    return [module] if "https://" in module and "https://" not in text else []


def _paragraphs(*texts: str) -> Iterator[str]:
    for text in filter(None, texts):
        yield from ("", *(f"  {line}".rstrip() for line in text.splitlines()))


def _fields(cls: type[Any], given: Mapping[str, object]) -> Iterator[str]:
    """Yields the fields of a dataclass: type, default (or what is given) and meaning."""
    import dataclasses

    from mibench.override import describe as words
    from mibench.override import hint_of

    meaning = meanings(cls)
    fields = dataclasses.fields(cls)
    yield "\nFields" if fields else "\nIt has no fields."
    for f in fields:
        value = given.get(f.name, f.default)
        if f.default_factory is not dataclasses.MISSING:
            value = f.default_factory()
        default = "no default" if value is dataclasses.MISSING else f"default {_value(value)}"
        if given:
            default = f"set to {_value(value)}" if f.name in given else "as the table says"
        yield f"  {f.name}: {words(hint_of(cls, f.name))}; {default}"
        yield f"      {meaning.get(f.name, 'no meaning found: python -OO leaves docstrings out')}"


def _value(value: object) -> str:
    """Returns a value as --set takes it; a spec with no field of its own by its name."""
    import json

    from mibench.spec import brief, canonical

    plain = canonical(value)
    return brief(value) if isinstance(plain, dict) else json.dumps(plain, ensure_ascii=False)


def meanings(cls: type[Any]) -> dict[str, str]:
    """Returns field → what the docstrings of a class and of those it derives from say of it."""
    meaning: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        section = (inspect.cleandoc(owner.__doc__ or "") + "\n\n").partition("Attributes:\n")[2]
        entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
        meaning |= {name: " ".join(text.split()) for name, text in entries}
    return meaning
