"""One page of many runs' record files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mibench.evaluation import METRICS
from mibench.evaluation.significance import interval
from mibench.reporting.page.render import render, visible
from mibench.reporting.page.rows import origin
from mibench.reporting.records import Record
from mibench.reporting.results import Entry, show
from mibench.reporting.sheet import heading
from mibench.reporting.verify import Verdict
from mibench.spec import fingerprint


def leaderboard(verdicts: Sequence[Verdict], root: Path) -> str:
    """Returns the page: seeds of one cell make one row; files left out are named at the end.

    Of several records of a cell and its seeds, as of other columns, the first alone is taken.

    Args:
        verdicts: Of the files, in order.
        root: The folder that the files' paths are relative to.

    Raises:
        ValueError: If no file is sound.
    """
    groups: dict[str, dict[tuple[int, ...], tuple[Path, Record]]] = {}
    left_out = []
    for verdict in verdicts:
        if verdict.record is None:
            left_out.append((verdict.path, verdict.problem))
            continue
        own = groups.setdefault(_row_key(verdict.record), {})
        path, taken = own.setdefault(_seeds(verdict.record), (verdict.path, verdict.record))
        if taken["key"] != verdict.record["key"]:  # of other columns, or another metric's version
            why = f"it has the cell and the seeds of {_below(path, root)}, which was taken"
            left_out.append((verdict.path, why))
    if not groups:
        raise ValueError(f"there is no sound record file among the {len(verdicts)} given")
    metrics = {name for rs in groups.values() for _, r in rs.values() for name in _scores(r)}
    columns = [name for name in METRICS if name in metrics]
    return render(
        "leaderboard.html.j2",
        title="mibench leaderboard",
        records=sum(len(own) for own in groups.values()),
        columns=[
            {
                "name": name,
                "heading": heading(name),
                "unit": "%" if METRICS[name].unit == "percent" else "",
            }
            for name in columns
        ],
        rows=[
            _row(f"r{i}", list(own.values()), columns, root)
            for i, own in enumerate(groups.values())
        ],
        refused=[
            {"path": visible(_below(path, root)), "problem": visible(problem)}
            for path, problem in left_out
        ],
    )


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _scores(record: Record) -> Mapping[str, Mapping[str, float | None]]:
    scores: Mapping[str, Mapping[str, float | None]] = record["payload"]["scores"]
    return {name: s for name, s in scores.items() if s["mean"] is not None}


def _row_key(record: Record) -> str:
    """Returns what the seeds of one row have in common."""
    cell = {k: v for k, v in record["payload"]["cell"].items() if k != "seeds"}
    return fingerprint([record["table"], record["row"], cell])


def _seeds(record: Record) -> tuple[int, ...]:
    seeds = record["payload"]["cell"]["seeds"]
    return tuple(seeds[name] for name in ("target", "prior", "attack"))


def _row(
    anchor: str, own: Sequence[tuple[Path, Record]], columns: Sequence[str], root: Path
) -> dict[str, Any]:
    first = own[0][1]
    numbers = {}
    for name in columns:
        numbers[name] = _number([s[name] for _, r in own if name in (s := _scores(r))])
    return {
        "id": anchor,
        "label": visible(first["row"]),
        "table": visible(first["table"]),
        "task": visible(first["payload"]["cell"]["setting"]["task"]["is"]),
        "numbers": numbers,
        "seeds": len(own),
        "runs": [_run(path, record, root) for path, record in own],
    }


def _number(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """Returns a metric's mean over seeds, and as text with its spread."""
    means = [s["mean"] for s in scores if s["mean"] is not None]
    if not means:
        return {"value": None, "text": ""}
    over = interval(means)
    values, undefined = dict(enumerate(means)), len(scores) - len(means)
    entry = Entry(over.mean, scores[0]["std"], over, values, undefined=undefined)
    return {"value": over.mean, "text": show(entry, len(scores))}


def _run(path: Path, record: Record, root: Path) -> dict[str, Any]:
    identities = {s["key"]: s["identity"] for s in record["stages"]}
    names = [(i["kind"], f"{i['kind']}/{key}") for key, i in identities.items()]
    stages = [(kind, name, record["runs"].get(name, {})) for kind, name in names]
    data = [i["digest"] for i in identities.values() if i["kind"] == "images" and "digest" in i]
    payload = record["payload"]
    return origin(payload["cell"], stages, str((data or [""])[-1]), payload["warnings"]) | {
        "path": visible(_below(path, root)), "key": record["key"], "sha256": record["sha256"],
    }  # fmt: skip
