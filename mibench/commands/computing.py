"""What commands that compute share: where and how, and what becomes of faults."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands.shared import apply, fail, refusing

if TYPE_CHECKING:
    from mibench.running.executors import Bench, Executor
    from mibench.store import Stage, Store

where = apply(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--executor", default="auto", show_default=True,
                 help="serial, local[N]: N stages side by side, ray or slurm[N]. auto: local, "
                 "one per core."),
    click.option("--address", help="Of a running Ray cluster, such as HOST:6379."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True,
                 help="CPU threads of a stage; another number may change the last bits."),
    click.option("--download", is_flag=True, help="Fetch the data set if it is not there."),
    click.option("--quiet", is_flag=True, help="No progress."),
    click.option("--verbose", is_flag=True, help="A line for every stage that starts and ends."),
)  # fmt: skip


def compute(
    stages: "Sequence[Stage]",
    bench: "Bench",
    place: "Executor",
    show: Callable[[bool], None],
    out: Path,
    *,
    quiet: bool,
    verbose: bool,
) -> None:
    """Completes the stages, shows the result, says what was computed; exits with 1 on a fault.

    Args:
        stages: In an order where needs come first.
        bench: Where things are.
        place: What runs them.
        show: Writes the result; is told whether all stages are there. A stage that it finds
            damaged is computed again.
        out: Where it writes.
        quiet: No progress.
        verbose: A line for every stage that starts and ends.
    """
    from mibench.running.executors import Outcome, execute
    from mibench.running.grid import fetch_weights
    from mibench.running.progress import display
    from mibench.store import MENDED, DamagedError, Store, StoreError

    store = Store(bench.store)
    with refusing():
        store.set_aside_damaged(stages)
    states = store.states(stages)
    missing = [s for s in stages if states[s.key] != "done"]
    with refusing():
        fetch_weights(missing, bench.data)
    outcome = Outcome()
    for _ in range(MENDED):
        watcher = display(len(missing), quiet=quiet, verbose=verbose)
        try:
            outcome = execute(stages, bench, watcher, place)
        except KeyboardInterrupt as error:
            watcher.close()
            fail(interruption(error, missing, store))
        except StoreError as error:
            watcher.close()
            fail(str(error))
        watcher.close()
        try:
            show(not outcome.failures)
            break
        except KeyboardInterrupt as error:
            fail(interruption(error, missing, store))
        except DamagedError as error:
            if error.stage is not None:
                store.set_aside(error.stage, str(error))
        except StoreError as error:
            fail(str(error))
        except OSError as error:
            fail(f"cannot write to {out} ({error.strerror or error}); the store keeps all results")
    done = f"{outcome.computed} stages computed, {outcome.cached} found in {bench.store}"
    click.echo("nothing computed: " * (not outcome.computed) + done, err=True)
    if outcome.failures:
        names = {s.key: s.describe() for s in stages}
        told = "; ".join(f"{names[key]}: {why}" for key, why in outcome.failures.items())
        fail(f"{told} ({len(outcome.skipped)} other stages needed what failed)")


def interruption(error: BaseException, stages: "Iterable[Stage]", store: "Store") -> str:
    """Returns what to say of an interrupt: what ran, how far it came, what is kept."""
    told = getattr(error, "__notes__", [])
    saved = dict.fromkeys(s.describe() for s in stages if store.state(s) == "partial")
    told = told or [f"{', '.join(saved)} had begun"] * bool(saved)
    kept = f"what has finished is kept in {store.root}"
    again = "run the same command again to go on where it was"
    return "; ".join(["interrupted", *told, kept, again])
