"""What a page plots: trade-offs, values class by class, dependences and training."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mibench.benchmarks.row import Row
from mibench.evaluation.accuracy import topk_hits
from mibench.reporting.canvas import ACCURACY, ATTACK_ACC
from mibench.reporting.diagnostics import diagnose
from mibench.reporting.matrix import matrix
from mibench.reporting.matrix_forms import conclusions, remarks
from mibench.reporting.page import plots
from mibench.reporting.page.render import visible
from mibench.reporting.results import Results, show
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage
from mibench.spec import brief
from mibench.store import Store

MANY = 20
"""Largest number of classes of which each is shown; of more, their quantiles are."""


def tradeoff(results: Results, styles: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns a plot per attack of Attack Acc against Accuracy."""
    panels: dict[str, list[plots.Point]] = {}
    for label, mark in results.tradeoff().items():
        row = Row.of(label)
        x, y = (show(results.entries[label][k], results.seeds) for k in ("accuracy", "attack_acc"))
        words = f"{visible(label)}: Accuracy {x} %, Attack Acc {y} %"
        panels.setdefault(row.attack, []).append(plots.Point(row.defended, mark, words))
    return [
        {
            "attack": visible(attack),
            "svg": plots.scatter(
                f"Attack Acc against Accuracy under {visible(attack)}",
                ACCURACY,
                ATTACK_ACC,
                points,
                styles,
            ),
        }
        for attack, points in panels.items()
    ]


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


def crossed(grid: Grid) -> dict[str, Any] | None:
    """Returns Attack Acc of all attacks against all defenses, and what follows from it.

    None of a table that has no worst cases.
    """
    if not grid.table.worst:
        return None
    try:
        m = matrix(grid)
    except ValueError as error:
        return {"problem": visible(str(error)), "heat": None, "parts": (), "remarks": ()}
    seeds, classes = m.values.shape[2:]
    worst = np.nanmax(m.means, 0).tolist()
    return {
        "problem": "",
        "heat": heat(
            "Attack Acc of all attacks against all defenses",
            f"In percent; mean over {seeds} seeds and {classes} classes.",
            {visible(a): own.tolist() for a, own in zip(m.attacks, m.means, strict=True)}
            | {"Worst of these": worst},
            [visible(name) for name in m.defenses],
        ),
        "parts": [
            {
                "title": part.title,
                "attacks": visible(part.attacks),
                "tables": [
                    (heads, [[visible(cell) for cell in cells] for cells in rows])
                    for heads, rows in part.tables
                ],
                "sentences": [visible(s) for s in (part.not_compared, part.fewest) if s],
            }
            for part in conclusions(m)
        ],
        "remarks": list(map(visible, remarks(m))),
    }


def leaks(done: Mapping[str, RecordStage], store: Store) -> dict[str, Any] | None:
    """Returns Attack Acc class by class, of the first seed and repeat."""
    shares: dict[str, list[float]] = {}
    for label, record in done.items():
        evidence = record.evidence[0].evidence(store.load)
        hits = topk_hits(evidence.logits, evidence.labels, 1)
        shares[visible(label)] = [
            hits[evidence.labels == c].mean().item() for c in sorted(set(evidence.labels.tolist()))
        ]
    return _by_class("Attack Acc, class by class", shares)


def utility(done: Mapping[str, RecordStage], store: Store) -> dict[str, Any] | None:
    """Returns the targets' test accuracy class by class, of the first seed."""
    shares: dict[str, list[float]] = {}
    shown: set[str] = set()
    for label, record in done.items():
        target = record.evidence[0].inversion.target.trained
        if target.key in shown:
            continue
        shown.add(target.key)
        evidence = record.evidence[0].evidence(store.load)
        hits = topk_hits(evidence.test_logits, evidence.test_labels, 1)
        classes = sorted(set(evidence.test_labels.tolist()))
        shares[visible(Row.of(label).defended)] = [
            hits[evidence.test_labels == c].mean().item() for c in classes
        ]
    return _by_class("Accuracy of the targets, class by class", shares)


def _by_class(title: str, values: Mapping[str, list[float]]) -> dict[str, Any] | None:
    most = max(map(len, values.values()), default=0)
    if not most:
        return None
    if most <= MANY:
        rows = {label: [*v, *[float("nan")] * (most - len(v))] for label, v in values.items()}
        return heat(title, "In percent; first seed.", rows, [f"class {c}" for c in range(most)])
    shares = torch.tensor([0, 0.25, 0.5, 0.75, 1], dtype=torch.float64)
    names = ["lowest", "lower quarter", "median", "upper quarter", "highest"]
    rows = {k: torch.tensor(v).double().quantile(shares).tolist() for k, v in values.items()}
    return heat(title, f"In percent, over {most} classes; first seed.", rows, names)


def dependences(grid: Grid) -> list[dict[str, Any]]:
    """Returns a heat map per measure and pair of what ``run --until dependence`` has measured."""
    diagnosis = diagnose(grid.records, grid.store)
    maps: dict[tuple[str, str], dict[str, dict[tuple[int, str], float]]] = {}
    for defense, values in diagnosis.values.items():
        for (measure, pair, layer, split), seeds in values.items():
            row = maps.setdefault((measure, pair), {}).setdefault(visible(defense), {})
            row[layer, split] = statistics.fmean(seeds)
    heats = []
    for (measure, pair), rows in maps.items():
        places = sorted({place for row in rows.values() for place in row})
        of = "d(X, Z_j)" if pair == "xz" else "d(Z_j, Y)"
        heats.append(
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
    return heats


def curves(grid: Grid, styles: Mapping[str, int]) -> list[dict[str, Any]]:
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
    titles = {"accuracy": "Accuracy on selection images, %", "task": "Loss of the task"}
    plotted = [
        {
            "title": "Targets: " + titles.get(term, f"loss term {term}"),
            "svg": plots.lines(
                f"{titles.get(term, term)} by epoch", "Epoch", titles.get(term, term), terms[term],
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
