"""The page of one or several tables."""

import base64
import glob
import hashlib
import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import bidirectional

import torch
from markupsafe import Markup

import mibench
from mibench.benchmarks.row import Row
from mibench.data.images import is_control
from mibench.evaluation import METRICS, Metric
from mibench.evaluation.accuracy import topk_hits
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE, cautions
from mibench.reporting.diagnostics import diagnose
from mibench.reporting.forms import heading, mark, show_reported
from mibench.reporting.notes import footnotes
from mibench.reporting.page import pictures, plots
from mibench.reporting.results import Entry, Results, collect, show
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, graph
from mibench.spec import brief, canonical
from mibench.store import Store

IDENTITIES = 16
"""Reconstructions that a row shows at most, unless told."""
MANY = 20
"""With more classes than so many, their spread is told in place of each."""
LEFT_OUT = (
    "Where only records are there, images, values class by class and curves of training are left "
    "out: records hold scores and where they come from."
)

TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of the characters that turn what follows them around."""


def page(
    grids: Sequence[tuple[Grid, Sequence[str]]],
    *,
    with_private: bool = False,
    identities: int = IDENTITIES,
) -> str:
    """Returns the page; reads the store and computes no stage.

    Args:
        grids: What to show, each with the arguments of ``mibench run`` that made it, without
            its rows.
        with_private: Whether private images of people may be shown too.
        identities: Reconstructions of a row, at most.

    Raises:
        ValueError: If a grid has nothing in its store.
    """
    chapters = [
        _chapter(i, grid, command, with_private=with_private, identities=identities)
        for i, (grid, command) in enumerate(grids)
    ]
    title = "mibench: " + ", ".join(grid.table.name for grid, _ in grids)
    return render("page.html.j2", title=title, chapters=chapters)


def render(template: str, **values: object) -> str:
    """Returns a template with the page's style and script inside."""
    script = _text("page.js")
    shown = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made: str = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_text("page.css")),
            script=Markup(script),
            script_hash=f"sha256-{shown}",
            version=mibench.__version__,
            **values,
        )
    )
    return made


@cache
def _text(name: str) -> str:
    return files("mibench.reporting.page").joinpath(f"templates/{name}").read_text("utf-8")


@cache
def _environment() -> Any:  # noqa: ANN401 - imported where it is needed
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mibench.reporting.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def visible(text: str) -> str:
    """Returns a label without characters that HTML forbids, or that turn what follows around."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if c not in "\n\t" and (is_control(c) or bidirectional(c) in TURNING)
        else c
        for c in text
    )


def _chapter(
    number: int, grid: Grid, command: Sequence[str], *, with_private: bool, identities: int
) -> dict[str, Any]:
    table, store = grid.table, grid.store
    results = collect(grid)
    done = grid.first
    if not done:
        raise ValueError(
            f"nothing of {table.name} is in {store.root}; first: mibench run {table.name}"
        )
    held = {k: s for k, s in done.items() if store.state(s.evidence[0]) == "done"}
    private = grid.private(with_private)
    styles = _styles(done)
    return {
        "id": f"t{number}",
        "table": table,
        "columns": [
            *(_column(name, results) for name in table.columns),
            *([CONTROL_COLUMN] if results.controls else []),
        ],
        "rows": [
            _row(f"t{number}r{i}", label, grid, command, results)
            for i, label in enumerate(table.rows)
        ],
        "notes": footnotes(results, "Bold:") + [LEFT_OUT] * (len(held) < len(done)),
        "faces": grid.faces,
        "private": private,
        "seeds": results.seeds,
        "tradeoff": _tradeoff(results, styles),
        "styles": {visible(name): plots.swatch(style) for name, style in styles.items()},
        "grids": _grids(f"t{number}", held, store, identities, private=private),
        "heats": [heat for heat in (_leaks(held, store), _utility(held, store)) if heat],
        "dependences": _dependences(grid),
        "curves": _curves(grid.only(done), styles),
    }


CONTROL_COLUMN = {
    "name": CONTROL, "title": CONTROL_TITLE, "heading": CONTROL_TITLE, "unit": "%",
    "reported": False,
}  # fmt: skip


def _column(name: str, results: Results) -> dict[str, Any]:
    metric = METRICS[name]
    papers = results.table.reported
    return {
        "name": name,
        "title": metric.title,
        "heading": heading(name),
        "unit": "%" if metric.unit == "percent" else "",
        "reported": any(name in row for row in papers.values()),
    }


def _row(
    anchor: str, label: str, grid: Grid, command: Sequence[str], results: Results
) -> dict[str, Any]:
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
            "told": _told(entry, METRICS[name]),
            "reported": show_reported(paper),
            "claimed": None if paper is None else paper[0],
        }
    if cautioned and "attack_acc" in numbers:
        acc = numbers["attack_acc"]
        told = [_told(entries["attack_acc"], METRICS["attack_acc"]), cautioned]
        acc |= {"text": f"{acc['text']} ‡", "told": "; ".join(filter(None, told))}
    if results.controls:
        control = results.controls.get(label, Entry())
        numbers[CONTROL] = {
            "value": control.mean, "text": show(control, results.seeds), "sure": False,
            "told": "", "reported": "--", "claimed": None,
        }  # fmt: skip
    return {
        "id": anchor,
        "label": visible(label),
        "attack": visible(row.attack),
        "defense": visible(row.defended),
        "numbers": numbers,
        "found": results.found[label],
        "command": shlex.join(["mibench", "run", *command, "--rows", _pattern(label)]),
        "runs": [_provenance(r, grid.store) for r in grid.only([label]).done[label].values()],
    }


def _pattern(label: str) -> str:
    """Returns a pattern for --rows that matches the label and can be typed."""
    return "".join(glob.escape(c) if c.isprintable() else "?" for c in label)


def _told(entry: Entry, metric: Metric) -> str:
    """Returns a number's interval and its comparison with no defense, in words."""
    parts = []
    span = entry.interval and entry.interval.clipped(*metric.range)
    if span and span.low is not None:
        parts.append(f"95 % interval {span.low:.2f} to {span.high:.2f}, {span.method}")
    if (c := entry.contrast) is not None and c.p is not None:
        other = Row.of(c.other).defended
        parts.append(f"{c.test.diff:+.2f} against {other}, p = {c.p:.2g} after Holm's correction")
    return "; ".join(parts)


def _provenance(record: RecordStage, store: Store) -> dict[str, Any]:
    seeds = record.cell.seeds
    stages = []
    for stage in graph([record]):
        meta = store.meta(stage) if store.state(stage) in ("done", "recorded") else {}
        versions = meta.get("versions", {})
        stages.append(
            {
                "name": stage.describe(),
                "key": f"{stage.kind}/{stage.key}",
                "seconds": meta.get("seconds"),
                "device": meta.get("device", ""),
                "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
            }
        )
    return {
        "seeds": f"target {seeds.target}, prior {seeds.prior}, attack {seeds.attack}",
        "seed": seeds.target,
        "stages": stages,
        "seconds": sum(s["seconds"] or 0 for s in stages),
        "data": record.evidence[0].images.digest,
        "spec": json.dumps(canonical(record.cell), indent=1, ensure_ascii=False),
        "warnings": store.load(record)["warnings"],
    }


def _styles(done: Mapping[str, RecordStage]) -> dict[str, int]:
    """Returns defense → number of its colour, the same in all plots."""
    names = dict.fromkeys(Row.of(label).defended for label in done)
    return {name: i for i, name in enumerate(names)}


def _tradeoff(results: Results, styles: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns a plot per attack of Attack Acc against Accuracy."""
    panels: dict[str, list[plots.Point]] = {}
    for label, entries in results.entries.items():
        x, y = entries.get("accuracy", Entry()), entries.get("attack_acc", Entry())
        if x.mean is None or y.mean is None:
            continue
        row = Row.of(label)
        spread = y.std if results.seeds == 1 else y.half
        told = (
            f"{visible(label)}: Accuracy {show(x, results.seeds)} %, "
            f"Attack Acc {show(y, results.seeds)} %"
        )
        point = plots.Point(row.defended, x.mean, y.mean, x.half, spread, told)
        panels.setdefault(row.attack, []).append(point)
    return [
        {
            "attack": visible(attack),
            "svg": plots.scatter(
                f"Attack Acc against Accuracy under {visible(attack)}",
                "Accuracy of the target, %",
                "Attack Acc, % (lower is more private)",
                points,
                styles,
            ),
        }
        for attack, points in panels.items()
    ]


def _grids(
    chapter: str,
    done: Mapping[str, RecordStage],
    store: Store,
    identities: int,
    *,
    private: bool,
) -> list[dict[str, Any]]:
    """Returns the private examples, once per task, then each row's reconstructions."""
    grids: list[dict[str, Any]] = []
    shown: set[str] = set()
    for label, record in done.items():
        stage = record.evidence[0]
        if private and stage.images.key not in shown:
            shown.add(stage.images.key)
            sprite, labels = pictures.examples(stage, store, identities)
            title = f"Private training images of {stage.images.task.name}"
            grids.append({"title": title, "sprite": sprite, "labels": labels, "tiles": None})
        sprite, tiles = pictures.reconstructions(stage, store, identities, private=private)
        grids.append({"title": visible(label), "sprite": sprite, "labels": [], "tiles": tiles})
    return [{"id": f"{chapter}g{i}", **grid} for i, grid in enumerate(grids)]


def heat(
    title: str,
    aside: str,
    rows: Mapping[str, Sequence[float]],
    columns: Sequence[str],
    top: float = 100,
    form: str = "%.0f",
) -> dict[str, Any]:
    """Returns a heat map: a table whose cells are the darker the nearer to ``top``.

    Args:
        title: Its heading.
        aside: What a reader must know.
        rows: Label → values from 0 to ``top``; NaN is a gap.
        columns: What the values are of.
        top: The value that is darkest.
        form: How a value is printed.
    """
    return {
        "title": title, "aside": aside, "columns": list(columns), "rows": rows, "top": top,
        "form": form,
    }  # fmt: skip


def _leaks(done: Mapping[str, RecordStage], store: Store) -> dict[str, Any] | None:
    """Returns Attack Acc class by class, of the first seed and repeat."""
    found: dict[str, list[float]] = {}
    for label, record in done.items():
        evidence = record.evidence[0].evidence(store.load)
        hits = topk_hits(evidence.logits, evidence.labels, 1)
        found[visible(label)] = [
            hits[evidence.labels == c].mean().item() for c in sorted(set(evidence.labels.tolist()))
        ]
    return _by_class("Attack Acc, class by class", found)


def _utility(done: Mapping[str, RecordStage], store: Store) -> dict[str, Any] | None:
    """Returns the targets' test accuracy class by class, of the first seed."""
    found: dict[str, list[float]] = {}
    seen: set[str] = set()
    for label, record in done.items():
        target = record.evidence[0].inversion.target
        if target.key in seen:
            continue
        seen.add(target.key)
        evidence = record.evidence[0].evidence(store.load)
        hits = topk_hits(evidence.test_logits, evidence.test_labels, 1)
        classes = sorted(set(evidence.test_labels.tolist()))
        found[visible(Row.of(label).defended)] = [
            hits[evidence.test_labels == c].mean().item() for c in classes
        ]
    return _by_class("Accuracy of the targets, class by class", found)


def _by_class(title: str, found: Mapping[str, list[float]]) -> dict[str, Any] | None:
    most = max(map(len, found.values()), default=0)
    if not most:
        return None
    if most <= MANY:
        rows = {label: [*v, *[float("nan")] * (most - len(v))] for label, v in found.items()}
        return heat(title, "In percent; first seed.", rows, [f"class {c}" for c in range(most)])
    shares = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    names = ["lowest", "lower quarter", "median", "upper quarter", "highest"]
    rows = {k: torch.tensor(v).double().quantile(shares).tolist() for k, v in found.items()}
    return heat(title, f"In percent, over {most} classes; first seed.", rows, names)


def _dependences(grid: Grid) -> list[dict[str, Any]]:
    """Returns a heat map per measure and pair of what ``mibench diagnose`` has measured."""
    found = diagnose(grid.records, grid.store)
    maps: dict[tuple[str, str], dict[str, dict[tuple[int, str], float]]] = {}
    for defense, values in found.values.items():
        for (measure, pair, layer, split), seeds in values.items():
            row = maps.setdefault((measure, pair), {}).setdefault(visible(defense), {})
            row[layer, split] = statistics.fmean(seeds)
    told = []
    for (measure, pair), rows in maps.items():
        places = sorted({place for row in rows.values() for place in row})
        of = "d(X, Z_j)" if pair == "xz" else "d(Z_j, Y)"
        told.append(
            heat(
                f"{of} by {measure}",
                "Mean over seeds, by layer, on train and on test images.",
                {
                    defense: [row.get(place, float("nan")) for place in places]
                    for defense, row in rows.items()
                },
                [f"Z_{layer} {split}" for layer, split in places],
                top=max((v for row in rows.values() for v in row.values()), default=0) or 1,
                form="%.3g",
            )
        )
    return told


def _curves(grid: Grid, styles: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns plots of how targets and priors trained, of the first seed."""
    targets = [(Row.of(label).defended, target) for label, target in grid.targets().items()]
    terms: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    colours = {}
    for defense, target in targets:
        alike = [d for d, _ in targets].count(defense) > 1
        name = f"{defense} ({brief(target.defense)})" if alike else defense
        colours[name] = styles[defense]
        for epoch, row in enumerate(grid.store.load(target)["history"], 1):
            for term, value in row.items():
                curve = terms.setdefault(term, {}).setdefault(name, ([], []))
                curve[0].append(float(epoch))
                curve[1].append(float(value))
    order = sorted(terms, key=lambda term: (term != "accuracy", term != "task", term))
    told = {"accuracy": "Accuracy on selection images, %", "task": "Loss of the task"}
    plotted = [
        {
            "title": "Targets: " + told.get(term, f"loss term {term}"),
            "svg": plots.lines(
                f"{told.get(term, term)} by epoch", "Epoch", told.get(term, term), terms[term],
                colours,
            ),
            "legend": {
                visible(name): plots.swatch(colours[name], line=True) for name in terms[term]
            },
        }
        for term in order
    ]  # fmt: skip
    for label, prior in grid.priors().items():
        name = f"{prior.spec.name} of {label}" if prior.target else prior.spec.name
        history = grid.store.load(prior).get("history", {})
        series = {
            key: (history[f"{key} kimg"] if f"{key} kimg" in history else history["kimg"], value)
            for key, value in history.items()
            if not key.endswith("kimg") and value.ndim == 1
        }
        for key, (xs, ys) in series.items():
            plotted.append(
                {
                    "title": f"Prior {visible(name)}: {key}",
                    "svg": plots.lines(
                        f"{key} while {visible(name)} trained", "Thousand images", key,
                        {key: (xs.tolist(), ys.tolist())}, {key: 4},
                    ),
                    "legend": {},
                }
            )  # fmt: skip
    return plotted
