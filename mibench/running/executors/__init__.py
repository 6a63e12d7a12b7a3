"""Executors, one file each. To add one: write the file, name it here."""

from dataclasses import fields

from mibench.override import override, paths
from mibench.running.executors.base import Bench, Executor, Outcome, execute, prepare
from mibench.running.executors.local import Local
from mibench.running.executors.ray import Ray
from mibench.running.executors.serial import Serial
from mibench.running.executors.slurm import Slurm
from mibench.spec import nearest

EXECUTORS: dict[str, type[Executor]] = {e.name: e for e in (Serial, Local, Ray, Slurm)}


def choose_executor(text: str, address: str | None = None) -> Executor:
    """Returns the executor that ``NAME[N, field=value, ...]`` spells.

    Args:
        text: A name, or a name and in brackets how many stages run side by side and values of
            the executor's fields. "auto" is "local".
        address: Of a running cluster, for an executor that has such a field.

    Raises:
        ValueError: If there is no such executor or a value does not fit.
        KeyError: If it has no such field.
    """
    name, bracket, rest = text.partition("[")
    name = "local" if text == "auto" else name
    if name not in EXECUTORS or (bracket and not rest.endswith("]")):
        known = ", ".join(f"{n}[…]" if fields(e) else n for n, e in EXECUTORS.items())
        raise ValueError(f"unknown executor {text!r}{nearest(name, EXECUTORS)}; known: {known}")
    if bracket and not fields(EXECUTORS[name]):
        raise ValueError(f"{name} takes nothing in brackets, got {text!r}")
    executor = EXECUTORS[name]()
    for i, part in enumerate(p.strip() for p in rest.removesuffix("]").split(",")):
        path, equals, value = part.partition("=")
        if bracket and not equals and i == 0:
            path, value = "jobs", part
        if part or bracket:
            executor = override(executor, path.strip(), value.strip())
    if address is not None:
        if "address" not in paths(executor):
            raise ValueError(f"--address is for ray; {name} runs without one")
        executor = override(executor, "address", address)
    return executor


__all__ = [
    "EXECUTORS", "Bench", "Executor", "Local", "Outcome", "Ray", "Serial", "Slurm",
    "choose_executor", "execute", "prepare",
]  # fmt: skip
