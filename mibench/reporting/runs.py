"""Scores of cells, from record files or straight from a store, to be set side by side."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mibench.reporting.records import find
from mibench.reporting.verify import Verdict, check, first_told
from mibench.store import DamagedError, read_payload, told_meta


@dataclass(frozen=True)
class Run:
    """One cell's scores, from a record file or straight from a store.

    Attributes:
        label: The row's label; None from a store, which knows none.
        cell: The cell as plain JSON.
        scores: Metric → mean.
        stages: All that it rests on, as "kind/key", needs before needers, and last itself.
        meta: Returns the meta of a stage's run; None if it is not known.
        digest: Of the payload itself.
    """

    label: str | None
    cell: dict[str, Any]
    scores: dict[str, float]
    stages: tuple[str, ...] = ()
    meta: Callable[[str], dict[str, Any] | None] = lambda name: None
    digest: str = ""

    @property
    def seed(self) -> tuple[int, int, int]:
        """The seeds of target, prior and attack."""
        seeds = self.cell["seeds"]
        return (seeds["target"], seeds["prior"], seeds["attack"])


def run_of(
    label: str | None,
    payload: Mapping[str, Any],
    key: str,
    meta: Callable[[str], dict[str, Any] | None],
) -> Run:
    """Returns a record's payload as a run."""
    means = {k: s["mean"] for k, s in payload["scores"].items()}
    scores = {k: v for k, v in means.items() if v is not None}
    text = json.dumps(payload, sort_keys=True).encode()
    stages = (*payload["stages"], f"record/{key}")
    return Run(label, payload["cell"], scores, stages, meta, hashlib.sha256(text).hexdigest())


def runs(path: Path) -> tuple[list[Run], list[Verdict]]:
    """Returns the runs in a store, a record file or a folder of them, and the refused files.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If a store's record is damaged.
    """
    if (path / "record").is_dir():
        metas = sorted((path / "record").glob("*/meta.json"))
        whole = [p.parent for p in metas if "." not in p.parent.name]  # not a commit's leftover
        return [_run_in(folder) for folder in whole], []
    verdicts = first_told([check(p) for p in find([path])])
    good = [
        run_of(r["row"], r["payload"], r["key"], r["runs"].get)
        for v in verdicts
        if (r := v.record)
    ]
    return good, [v for v in verdicts if v.problem]


def _run_in(folder: Path) -> Run:
    """Returns a finished record stage of a store."""
    try:
        payload = read_payload(folder)[0]
    except DamagedError as error:
        raise ValueError(f"{error}; delete {folder} and run again") from error
    return run_of(None, payload, folder.name, partial(_meta_in, folder.parents[1]))


def _meta_in(root: Path, name: str) -> dict[str, Any] | None:
    """Returns the meta.json of a stage of a store; None if the stage is not there.

    Raises:
        ValueError: If it is damaged.
    """
    path = root / name
    return told_meta(path) if (path / "meta.json").exists() else None


def in_words(cell: Mapping[str, Any]) -> str:
    """Returns "attack / defense" with the defense's numbers, and the task."""
    defense = {k: v for k, v in cell["defense"].items() if isinstance(v, str | int | float)}
    numbers = [f"{k.rstrip('_')}={v}" for k, v in defense.items() if k not in ("is", "version")]
    who = " ".join([cell["defense"]["is"], *numbers])
    return f"{cell['setting']['task']['is']}: {cell['attack']['is']} / {who}"


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401
    """Yields (path, value in a, value in b) of every field that differs; None is no such field."""
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys([*a, *b]):
            yield from differences(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}.{i}".lstrip("."))
    elif a != b:
        yield path, a, b
