"""The keys of all stages of all shipped tables at seed 0: what a store's results are found by.

``tests/stage_keys.json`` holds a digest for each table and kind of stage; ``make keys`` rewrites
it after a change on purpose.
"""

import hashlib
import json
from pathlib import Path

import pytest

from mibench.benchmarks.tables import TABLES, Table
from mibench.data import TASKS
from mibench.running.stages import graph, record_stage

FROZEN = Path(__file__).parent / "stage_keys.json"
EXPECTED = json.loads(FROZEN.read_text()) if FROZEN.exists() else {"tables": {}, "tasks": {}}


def stage_keys(table: Table) -> dict[str, str]:
    """Returns, for each kind of stage, the digest of each row's keys of that kind."""
    rows: dict[str, dict[str, list[str]]] = {}
    for label, cell in table.rows.items():
        for stage in graph([record_stage(cell, table.columns, "data")]):
            rows.setdefault(stage.kind, {}).setdefault(str(label), []).append(stage.key)
    return {kind: digest({label: sorted(keys) for label, keys in of.items()})
            for kind, of in rows.items()}  # fmt: skip


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def task_digests() -> dict[str, str]:
    """Returns the digest of each task at its defaults that needs no files."""
    digests = {}
    for name, task in TASKS.items():
        try:
            digests[name] = task().digest(Path("there is no such folder"))
        except FileNotFoundError:
            continue
    return digests


def current() -> dict[str, dict[str, object]]:
    return {
        "tables": {name: dict(stage_keys(table)) for name, table in TABLES.items()},
        "tasks": dict(task_digests()),
    }


@pytest.mark.parametrize("name", sorted({*TABLES, *EXPECTED["tables"]}))
def test_the_keys_of_a_tables_stages_are_frozen(name: str) -> None:
    keys = stage_keys(TABLES[name]) if name in TABLES else {}
    expected = EXPECTED["tables"].get(name, {})
    changed = sorted(k for k in keys.keys() | expected.keys() if keys.get(k) != expected.get(k))
    assert not changed, (
        f"{name}: other keys of {', '.join(changed)}, so finished stages would not be found; if "
        "that is meant, run make keys and name the change in the changelog"
    )


def test_the_digests_of_tasks_that_need_no_files_are_frozen() -> None:
    assert task_digests() == EXPECTED["tasks"]
