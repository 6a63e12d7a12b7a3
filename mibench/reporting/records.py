"""Record files: a cell's scores with all that decided them, to pass on and to check.

A record file holds what a record stage holds, the identities of all stages it rests on, and on
what they were computed.
"""

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TypeAlias

import mibench
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, graph
from mibench.spec import canonical
from mibench.store import Store, put, tell

Record: TypeAlias = dict[str, Any]

FORMAT = "mibench-record/1"
SUFFIXES = (".json", ".json.gz")
"""How names of record files end; one that is packed is a fifth of the other in size."""
UNPACKED = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a packed file raises where it is damaged."""


@cache
def schema(name: str) -> dict[str, Any]:
    """Returns the JSON schema of a "record" or a "table"."""
    text = files("mibench.reporting").joinpath(f"schemas/{name}.schema.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content


def digest(record: Mapping[str, Any]) -> str:
    """Returns the sha256 of a record without its own entry "sha256"."""
    rest = {k: v for k, v in record.items() if k != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def make(table: str, row: str, stage: RecordStage, store: Store) -> Record:
    """Returns the record of a finished cell.

    Raises:
        KeyError: If the cell is not in the store.
    """
    needed = graph([stage])
    done = [s for s in needed if store.state(s) == "done"]
    record: Record = {
        "format": FORMAT,
        "table": table,
        "row": row,
        "key": stage.key,
        "stages": [{"key": s.key, "identity": canonical(s.identity)} for s in needed],
        "payload": _finite(store.load(stage)),
        "runs": {f"{s.kind}/{s.key}": store.meta(s) for s in done},
        "mibench": mibench.__version__,
    }
    return record | {"sha256": digest(record)}


def _finite(value: Any) -> Any:  # noqa: ANN401 - nested plain data
    """Returns the same plain data with null for NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def opened(path: Path) -> BufferedIOBase:
    """Opens a file, packed or not; reading raises one of ``UNPACKED`` if it is damaged.

    Raises:
        OSError: If it cannot be opened, or is no plain file, such as a pipe to wait at.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no plain file")
    return gzip.GzipFile(path) if path.name.endswith(".gz") else path.open("rb")


def file_name(record: Record) -> str:
    """Returns a file name that says whose record it is, and differs between records."""
    words = re.sub(r"[^a-z0-9]+", "-", record["row"].lower()).strip("-")[:80]
    seed = record["payload"]["cell"]["seeds"]["target"]
    return f"{words or 'row'}-seed{seed}-{record['key'][:8]}.json"


def write(
    grid: Grid, out: Path, *, compact: bool = False, there: Store | None = None
) -> list[Path]:
    """Writes a file for every cell that is in the store and returns their paths.

    ``compact`` files are packed by gzip. The other form of the same file is removed, and a note
    says so. A cell whose record is ``there`` already gets no file.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths, others = [], []
    for row, done in grid.done.items():
        for stage in done.values():
            if there is not None and there.state(stage) == "done":
                continue
            record = make(grid.table.name, row, stage, grid.store)
            indent = None if compact else 1
            text = json.dumps(record, indent=indent, sort_keys=True, ensure_ascii=True) + "\n"
            plain = out / file_name(record)
            both = (plain, plain.with_name(f"{plain.name}.gz"))
            paths.append(both[compact])
            put(paths[-1], packed(text) if compact else text)
            others.append(both[not compact])
    remove_replaced([path for path in others if path.exists()])
    return paths


def remove_replaced(paths: Sequence[Path]) -> None:
    """Removes files whose cells have other files by now, and says so."""
    if paths:
        tell(f"{len(paths)} files that told of the same cells are replaced, such as {paths[0]}")
    for path in paths:
        path.unlink()


def packed(text: str) -> bytes:
    """Returns a record's text as gzip packs it, without the time."""
    return gzip.compress(text.encode("ascii"), mtime=0)


def find(paths: Iterable[Path]) -> list[Path]:
    """Returns the record files among those named, and in and below the folders named, in order.

    Tables as JSON, such as lie beside records in a folder of results, are passed over.

    Raises:
        FileNotFoundError: If one is not there.
    """
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (p for end in SUFFIXES for p in path.rglob(f"*{end}"))
            listed += sorted(p for p in below if p.is_file())
        elif path.exists():
            listed += [path] * path.name.endswith(SUFFIXES)
        else:
            raise FileNotFoundError(f"no file or folder {path}")
    return [path for path in dict.fromkeys(listed) if not _is_table(path)]


def _is_table(path: Path) -> bool:
    try:
        with opened(path) as file:
            return b'"format": "mibench-table/' in file.read(100)
    except (*UNPACKED, OSError):  # it is for a check to say why it cannot be read
        return False
