"""What attacks spent: counts from the records, seconds and memory from the stages' metadata."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mibench.machine import each
from mibench.reporting.notes import fewer_seeds
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage
from mibench.store import Store

HEAD = (
    "", "Steps", "Queries", "Shared", "Gradients", "Seconds", "Peak MiB", "Prior's queries",
    "Prior's seconds", "Prior's peak MiB", "Device",
)  # fmt: skip
NOTES = (
    "Queries: answers of the target. Gradients: images that the attack took the gradient of the "
    "target's answers at. Both over all attacked classes and repeats. Shared: those of the "
    "queries that are about public images; they do not count against max_queries.",
    "A prior that does not see the target asks it nothing and is shared by all rows of its "
    "attack; its seconds are those of its one training. What students of the target ask and take "
    "(networks that learn its answers before the attack) is counted with the prior.",
    "Seconds and memory are those of the runs that were made, and vary; memory is the process's "
    "own on a CPU, PyTorch included.",
)


@dataclass(frozen=True)
class Budget:
    """What an attack on one target spent, the mean over seeds.

    Attributes:
        steps: Optimisation steps.
        queries: Answers of the target, images.
        shared: Those of the queries that are about public images.
        gradients: Images at which the gradient of the target was taken.
        surrogate_gradients: The same of networks that imitate it.
        seeds: How many seeds it is the mean over.
        prior_queries: Answers that the prior, and students, had of the target in their training.
        seconds: Of the inversion.
        prior_seconds: Of the prior's training.
        peak_memory_bytes: The most held at once while inverting; None if unknown.
        prior_peak_memory_bytes: The same while the prior was trained.
        device: Where it ran; several if seeds ran on different ones.
    """

    steps: float
    queries: float
    gradients: float
    prior_queries: float
    seconds: float
    prior_seconds: float
    peak_memory_bytes: int | None
    prior_peak_memory_bytes: int | None
    device: str
    shared: float = 0
    surrogate_gradients: float = 0
    seeds: int = 1


def spent(grid: Grid) -> dict[str, Budget | None]:
    """Returns the budget of every row; None where no seed is in the store."""
    return {label: _budget(list(done.values()), grid.store) for label, done in grid.done.items()}


def _budget(records: Sequence[RecordStage], store: Store) -> Budget | None:
    if not records:
        return None
    counts = [store.load(r)["budget"] for r in records]
    names = dict.fromkeys(name for count in counts for name in count)
    inversions = [[store.meta(e.inversion) for e in r.evidence] for r in records]
    flat = [meta for metas in inversions for meta in metas]
    runs = [r.evidence[0].inversion for r in records]
    before = [[store.meta(stage) for stage in (run.prior, *run.students)] for run in runs]
    return Budget(
        **{name: statistics.mean(c.get(name, 0) for c in counts) for name in names},
        seconds=statistics.mean(sum(m["seconds"] for m in metas) for metas in inversions),
        prior_seconds=statistics.mean(sum(m["seconds"] for m in metas) for metas in before),
        peak_memory_bytes=_peak(flat),
        prior_peak_memory_bytes=_peak([meta for metas in before for meta in metas]),
        seeds=len(records),
        device=", ".join(dict.fromkeys(m["device"] for meta in flat for m in each(meta))),
    )


def _peak(metas: Sequence[Mapping[str, Any]]) -> int | None:
    """Returns the largest of the stages' peaks; None if one is unknown."""
    peaks = [p for meta in metas if (p := meta.get("peak_memory_bytes")) is not None]
    return max(peaks) if len(peaks) == len(metas) else None


def render(caption: str, budgets: Mapping[str, Budget | None], seeds: int) -> str:
    """Returns the budgets as a table for a terminal; ``seeds`` is how many were asked for."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title=f"What was spent: {caption}", box=SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(HEAD):
        grid.add_column(name, justify="right" if i else "left", no_wrap=True)
    for label, b in budgets.items():
        grid.add_row(label, *(["--"] * (len(HEAD) - 1) if b is None else _show(b)))
    console = Console(width=1000, no_color=True, highlight=False)
    found = {label: 0 if b is None else b.seeds for label, b in budgets.items()}
    most = max(found.values())
    notes = [f"Mean over {most} seeds." if most > 1 else "One seed so far."] * (seeds > 1)
    notes += fewer_seeds(found, seeds)
    with console.capture() as capture:
        console.print(grid)
        for note in (*notes, *NOTES):
            console.print(note, soft_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _show(b: Budget) -> list[str]:
    peak, prior_peak = (
        "--" if size is None else f"{size / 2**20:.0f}"
        for size in (b.peak_memory_bytes, b.prior_peak_memory_bytes)
    )
    gradients = f"{b.gradients:,.0f}"
    if b.surrogate_gradients:
        gradients += f" + {b.surrogate_gradients:,.0f} of surrogates"
    return [
        f"{b.steps:,.0f}", f"{b.queries:,.0f}", f"{b.shared:,.0f}", gradients,
        f"{b.seconds:.1f}", peak, f"{b.prior_queries:,.0f}", f"{b.prior_seconds:.1f}", prior_peak,
        b.device,
    ]  # fmt: skip
