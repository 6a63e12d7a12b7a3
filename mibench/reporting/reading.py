"""Records as tables read them: which are sound, and why the others are left out."""

from collections import Counter
from contextlib import suppress
from typing import Any

from mibench.evaluation.significance import FEWEST_VALUES
from mibench.running.stages import RecordStage, graph
from mibench.store import AbsentError, DamagedError, Payload, Store, tell


def readable(record: RecordStage, store: Store) -> tuple[Payload, dict[str, Any]] | None:
    """Returns a finished record's payload and meta; None, and says so, if it is damaged."""
    try:
        payload, meta = store.read(record)
    except (AbsentError, DamagedError) as error:
        tell(f"{error.args[0]}: run the table again to compute it anew")
        return None
    try:
        _check(payload, [name for name, _ in record.metrics])
    except (LookupError, TypeError, ValueError) as error:
        why = lacking(payload, record) or f"is no record of mibench ({error})"
        tell(f"{store.path(record)} {why}: it is left out")
        return None
    return payload, meta


def lacking(payload: Payload, record: RecordStage) -> str:
    """Returns which of the table's columns a record was written without; "" if it has all."""
    scores = payload.get("scores") if isinstance(payload, dict) else None
    if not isinstance(scores, dict):
        return ""
    names = [name for name, _ in record.metrics if name not in scores]
    return f"has no column {', '.join(names)}" if names else ""


def _check(payload: Payload, metrics: list[str]) -> None:
    """Raises ValueError, LookupError or TypeError unless a table can be made of a record."""
    numbers = [payload["evaluator"]["accuracy"]]
    for name in metrics:
        score = payload["scores"][name]
        numbers += [n for n in (score["mean"], score["std"]) if n is not None]
    if not all((isinstance(n, int | float) and abs(n) < 1e300) or n != n for n in numbers):
        raise ValueError("a score is no number")
    least = {"reconstructions": 0, "real": 1, "dimensions": 1, "classes": 1}  # none may succeed
    if not all(
        type(n := payload["sizes"][k]) is int and low <= n < 2**53 for k, low in least.items()
    ):
        raise ValueError("a size is no number")


def reason(record: RecordStage, store: Store, failed: frozenset[str]) -> str | None:
    """Returns which stage of a record that is not there failed the last time, and why.

    Args:
        record: The record.
        store: Where it should be.
        failed: The keys that :meth:`Store.failed` returns.
    """
    if store.state(record) == "done":
        with suppress(AbsentError, DamagedError):
            if why := lacking(store.read(record)[0], record):
                return f"the record {record.key} {why}"
        return f"the record {record.key} is damaged"
    for stage in graph([record]) if failed else ():
        if stage.key in failed and (cause := store.failure(stage)):
            return f"{stage.describe()} failed: {cause}"
    return None


def common_seeds(rows: list[set[int]]) -> list[int]:
    """Returns seeds that some rows have, or two of them share, with which most values are there.

    Fewer than an interval needs count as one: no row is given up for them. Of equals, the most
    seeds.
    """
    counts = Counter(map(frozenset, rows))

    def values(seeds: frozenset[int]) -> tuple[int, int]:
        worth = len(seeds) if len(seeds) >= FEWEST_VALUES else 1
        return worth * sum(n for row, n in counts.items() if seeds <= row), len(seeds)

    some = dict.fromkeys(a & b for a in counts for b in counts)
    single = dict.fromkeys(frozenset({seed}) for row in counts for seed in sorted(row))
    most = max([seeds for seeds in some | single if seeds], key=values)
    return sorted(most)
