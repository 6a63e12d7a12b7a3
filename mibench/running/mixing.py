"""A run and the finished stages it uses: all of one precision, or told, or refused."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mibench import precision
from mibench.running.executors import Bench, Executor
from mibench.spec import unknown
from mibench.store import AbsentError, Stage, Store, precisions_of, tell


def settled(
    bench: Bench,
    stages: Iterable[Stage],
    named: str | None,
    place: Executor,
    *,
    mix: bool = False,
) -> Bench:
    """Returns the bench with the precision of a run; says how many stages have another.

    Args:
        bench: Of the run, its devices being decided.
        stages: All that the run needs, in an order where needs come first.
        named: "float32", "bf16" or "auto" if somebody asked for it; None is float32.
        place: What runs the stages.
        mix: Whether finished stages of another precision may be used all the same.

    Raises:
        ValueError: If a precision was asked for and there are such stages, or "auto" was asked
            for and the stages run on other machines.
    """
    own = named or precision.FLOAT32
    if own not in precision.CHOICES:
        raise ValueError(unknown("precision", own, precision.CHOICES))
    if own == precision.AUTO:
        if place.package is not None:
            raise ValueError(
                "--precision auto is decided on this machine, and stages run on others: name "
                "float32 or bf16"
            )
        own = precision.decided(bench.store, bench.device, bench.threads)
    if count := others(stages, Store(bench.store), own):
        text = (
            f"{count} of the finished stages in {bench.store} were not computed in {own}, which "
            "is this run's precision"
        )
        if named and not mix:
            raise ValueError(
                f"{text}: take another store, name their precision, or use them all the same with "
                "--mix-precision"
            )
        tell(text)
    return replace(bench, precision=own)


def others(stages: Iterable[Stage], store: Store, own: str) -> int:
    """Returns how many of the finished stages were not computed at a precision.

    Damaged ones do not count: they are computed again.

    Args:
        stages: All that a run needs.
        store: Where the finished ones are.
        own: The precision.
    """
    stages = [stage for stage in stages if stage.has_precision]
    states = store.states(stages)
    done = [stage for stage in stages if states[stage.key] == "done"]
    beneath = {need.key for stage in done for need in stage.needs}
    tops = [stage for stage in done if stage.key not in beneath]  # they name all they rest on
    if all(precisions_of(stage, _meta(stage, store)) <= {own} for stage in tops):
        return 0
    return sum(
        _meta(stage, store).get("precision", precision.FLOAT32) != own
        for stage in done
        if not stage.exact
    )


def _meta(stage: Stage, store: Store) -> dict[str, Any]:
    """Returns the meta of a finished stage; of one that cannot be read, that of no precision."""
    try:
        meta = store.meta(stage)
        return meta if isinstance(meta, dict) else {"precisions": []}
    except (OSError, ValueError, AbsentError):
        return {"precisions": []}
