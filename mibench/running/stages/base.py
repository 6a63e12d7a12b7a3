"""What all stages share."""

from collections.abc import Callable, Iterable
from typing import Literal

from mibench.store import Payload, Stage

Load = Callable[[Stage], Payload]
Part = Literal["private", "evaluation"]


def graph(last: Iterable[Stage]) -> list[Stage]:
    """Returns every stage that the given ones rest on, once each, needs before needers."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for need in stage.needs:
                visit(need)
            found[stage.key] = stage

    for stage in last:
        visit(stage)
    return list(found.values())
