"""Results of equal keys side by side: which agree to the bit, and which stage differs first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mibench.machine import in_words as made_on
from mibench.reporting.runs import Run, in_words

KINDS = (
    "images", "outliers", "classifier", "release", "student", "prior", "inversion", "lens",
    "evidence", "record",
)  # fmt: skip
"""Kinds of stages that a record may rest on, in the order of the stage graph."""
PAYLOAD = ("payload.safetensors", "payload.json")


@dataclass(frozen=True)
class Agreement:
    """What two sides have under equal keys.

    Attributes:
        alike: The results that agree to the bit in every stage, in words.
        first: The first stage that differs → the results that it differs in.
        only: How many keys one side lacks: those of A, those of B.
        machines: What each side's stages were computed on.
    """

    alike: Sequence[str]
    first: Mapping[str, Sequence[str]]
    only: tuple[int, int]
    machines: tuple[Sequence[str], Sequence[str]]


def agreement(a: Sequence[Run], b: Sequence[Run]) -> Agreement:
    """Returns what both have under equal keys and where it differs.

    Raises:
        ValueError: If no key is on both sides, or a side has two results of one key that differ.
    """
    left, right = _by_key(a, "A"), _by_key(b, "B")
    both = [key for key in left if key in right]
    if not both:
        raise ValueError(
            "no key is on both sides: all specs, data or versions differ; mibench compare without "
            "--by-key pairs rows and names what differs"
        )
    alike: list[str] = []
    first: dict[str, list[str]] = {}
    for key in both:
        run = left[key] if left[key].label else right[key]
        words = f"{run.label or in_words(run.cell)}, seed {run.seed[0]}"
        stage = _first(left[key], right[key])
        (alike if stage is None else first.setdefault(stage, [])).append(words)
    only = len(left) - len(both), len(right) - len(both)
    machines = [_machines([side[key] for key in both]) for side in (left, right)]
    return Agreement(alike, first, only, (machines[0], machines[1]))


def _by_key(runs: Sequence[Run], side: str) -> dict[str, Run]:
    by_key: dict[str, Run] = {}
    for run in runs:
        other = by_key.setdefault(key := run.stages[-1], run)
        if other is not run and _first(other, run) is not None:
            raise ValueError(f"{side} has two results of {key} that differ: name a part of it")
    return by_key


def _first(a: Run, b: Run) -> str | None:
    """Returns the first stage whose payload differs, in the order of the graph; None if none does.

    Of stages of one kind the target comes before evaluators. A stage that a side does not tell
    of is passed over; the results themselves are compared in any case.
    """
    for name, role in _ordered(a):
        digests = [_payload(run.meta(name)) for run in (a, b)]
        if None not in digests and digests[0] != digests[1]:
            return f"{name}{role}"
    return a.stages[-1] if a.digest != b.digest else None


def _ordered(run: Run) -> Iterator[tuple[str, str]]:
    """Yields stages as "kind/key", and which of a record's two kinds of classifiers one is."""
    classifiers = 0
    for name in sorted(run.stages, key=lambda name: KINDS.index(name.partition("/")[0])):
        is_classifier = name.startswith("classifier/")
        yield name, is_classifier * (" (evaluator)" if classifiers else " (target)")
        classifiers += is_classifier


def _payload(meta: Mapping[str, Any] | None) -> list[str | None] | None:
    digests = (meta or {}).get("sha256")
    return digests and [digests.get(name) for name in PAYLOAD]


def _machines(runs: Sequence[Run]) -> list[str]:
    metas = (meta for run in runs for name in run.stages if (meta := run.meta(name)))
    return list(dict.fromkeys(made_on(meta) for meta in metas))


def in_text(both: Agreement) -> str:
    """Returns the agreement for a terminal."""
    differ = sum(map(len, both.first.values()))
    lines = [
        f"Equal keys: {len(both.alike) + differ} ({both.only[0]} more in A, {both.only[1]} "
        f"more in B). To the bit, in every stage that both tell of, {len(both.alike)} agree and "
        f"{differ} differ."
    ]
    for stage, results in both.first.items():
        lines.append(f"First stage that differs: {stage} of {'; '.join(results)}")
    for side, machines in zip("AB", both.machines, strict=True):
        lines += [f"{side} was computed on {machine}" for machine in machines]
    a, b = map(set, both.machines)
    if differ and a == b and not any("not recorded" in machine for machine in a):
        lines.append(
            "Both sides name the same kind of machine, where equal keys should give equal bits: "
            "a side is not what was computed, or something differs that is not recorded."
        )
    elif differ:
        lines.append(
            "Where kinds of machines differ, equal keys agree within the interval over seeds and "
            "not to the bit: mibench compare without --by-key shows by how much."
        )
    return "\n".join(lines) + "\n"
