"""Why a table has a hole where a number should be."""

from mibench.benchmarks.stages import RecordStage, graph
from mibench.store import DamagedError, Payload, Store, tell


def readable(record: RecordStage, store: Store) -> Payload | None:
    """Returns a record's payload; None if it is not there, or is damaged, which is told."""
    if store.state(record) != "done":
        return None
    try:
        return store.load(record)
    except DamagedError as error:
        tell(f"{error}: run the table again to compute it anew")
        return None


def reason(record: RecordStage, store: Store) -> str | None:
    """Returns which stage of a record that is not there failed the last time, and why."""
    if store.state(record) == "done":
        return f"the record {record.key} is damaged"
    for stage in graph([record]):
        if why := store.failure(stage):
            return f"{stage.describe()} failed: {why}"
    return None
