"""The rows of a page: their numbers, and where these come from."""

import glob
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mibench.benchmarks.row import Row
from mibench.evaluation import METRICS, Metric
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE, cautions
from mibench.reporting.page.render import visible
from mibench.reporting.results import Entry, Results, show
from mibench.reporting.sheet import heading, mark, show_reported
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, graph
from mibench.store import Store

CONTROL_COLUMN = {
    "name": CONTROL, "title": CONTROL_TITLE, "heading": CONTROL_TITLE, "unit": "%",
    "reported": False,
}  # fmt: skip


def column(name: str, results: Results) -> dict[str, Any]:
    """Returns what the template shows of a metric."""
    metric = METRICS[name]
    papers = results.table.reported
    return {
        "name": name,
        "title": metric.title,
        "heading": heading(name),
        "unit": "%" if metric.unit == "percent" else "",
        "reported": any(name in row for row in papers.values()),
    }


def row(
    anchor: str, label: str, grid: Grid, command: Sequence[str] | None, results: Results
) -> dict[str, Any]:
    """Returns what the template shows of a row, its numbers by metric."""
    row = Row.of(label)
    entries = results.entries[label]
    papers = results.table.reported.get(label, {})
    numbers = {}
    cautioned = "; ".join(cautions(results).get(label, ()))
    for name in results.table.columns:
        entry, paper = entries[name], papers.get(name)
        numbers[name] = {
            "value": entry.mean,
            "text": mark(entry, METRICS[name]).replace("* ", "") + show(entry, results.seeds),
            "sure": mark(entry, METRICS[name]).startswith("*"),
            "words": _in_words(entry, METRICS[name]),
            "reported": show_reported(paper),
            "claimed": None if paper is None else paper[0],
        }
    if cautioned and "attack_acc" in numbers:
        acc = numbers["attack_acc"]
        words = [_in_words(entries["attack_acc"], METRICS["attack_acc"]), cautioned]
        acc |= {"text": f"{acc['text']} ‡", "words": "; ".join(filter(None, words))}
    if results.controls:
        control = results.controls.get(label, Entry())
        numbers[CONTROL] = {
            "value": control.mean, "text": show(control, results.seeds), "sure": False,
            "words": "", "reported": "--", "claimed": None,
        }  # fmt: skip
    return {
        "id": anchor,
        "label": visible(label),
        "attack": visible(row.attack),
        "defense": visible(row.defended),
        "numbers": numbers,
        "found": results.found[label],
        "command": ""
        if command is None
        else shlex.join(["mibench", "run", *command, "--rows", _pattern(label)]),
        "runs": [_provenance(r, grid.store) for r in grid.only([label]).done[label].values()],
    }


def _pattern(label: str) -> str:
    """Returns a pattern for --rows that matches the label and can be typed."""
    return "".join(glob.escape(c) if c.isprintable() else "?" for c in label)


def _in_words(entry: Entry, metric: Metric) -> str:
    """Returns a number's interval and its comparisons with no defense and its twin, in words."""
    parts = []
    span = entry.interval and entry.interval.clipped(*metric.range)
    if span and span.low is not None:
        parts.append(f"95 % interval {span.low:.2f} to {span.high:.2f}, {span.method}")
    for c in (entry.contrast, entry.twin):
        if c is not None and c.p is not None:
            other = Row.of(c.other).defended
            test = f"{c.test.diff:+.2f} against {other}, p = {c.p:.2g} after Holm's correction"
            parts.append(test)
    return "; ".join(parts)


def _provenance(record: RecordStage, store: Store) -> dict[str, Any]:
    stages = graph([record])
    metas = [store.meta(s) if store.state(s) in ("done", "recorded") else {} for s in stages]
    return origin(
        store.load(record)["cell"],
        [(s.describe(), f"{s.kind}/{s.key}", m) for s, m in zip(stages, metas, strict=True)],
        record.evidence[0].images.digest,
        store.load(record)["warnings"],
    )


def origin(
    cell: Mapping[str, Any],
    stages: Iterable[tuple[str, str, Mapping[str, Any]]],
    data: str,
    warnings: Iterable[str],
) -> dict[str, Any]:
    """Returns what a template shows of where a record came from.

    Args:
        cell: The cell as plain data.
        stages: Name, "kind/key" and meta of each stage; the meta is empty where it is not known.
        data: Digest of the raw data.
        warnings: What the record says beside its numbers.
    """
    seeds = cell["seeds"]
    shown = [
        {
            "name": name,
            "key": key,
            "seconds": meta.get("seconds"),
            "device": visible(meta.get("device", "")),
            "versions": visible(
                ", ".join(f"{k} {v}" for k, v in meta.get("versions", {}).items())
            ),
        }
        for name, key, meta in stages
    ]
    return {
        "seeds": f"target {seeds['target']}, prior {seeds['prior']}, attack {seeds['attack']}",
        "seed": seeds["target"],
        "stages": shown,
        "seconds": sum(stage["seconds"] or 0 for stage in shown),
        "data": visible(data),
        "spec": visible(json.dumps(cell, indent=1, ensure_ascii=False)),
        "warnings": [visible(warning) for warning in warnings],
    }
