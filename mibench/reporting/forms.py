"""A table's results as text, CSV, JSON, LaTeX and Markdown."""

import json
import math
from typing import Any

from mibench.benchmarks.row import Row
from mibench.evaluation import METRICS, Metric
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE, cautions
from mibench.reporting.latex import latex
from mibench.reporting.notes import footnotes
from mibench.reporting.results import Entry, Number, Results, show

FORMATS = ("text", "csv", "json", "latex", "markdown")
ARROWS = {"lower": "↓", "higher": "↑"}


def heading(name: str) -> str:
    """Returns a column's heading, with the way that is better for the defender, if one is."""
    metric = METRICS[name]
    return f"{metric.title} {ARROWS[metric.better]}" if metric.better else metric.title


def mark(entry: Entry, metric: Metric) -> str:
    """Returns "* " or "† " if a number is better or worse for the defender than without."""
    if entry.contrast is None or not entry.contrast.significant:
        return ""
    higher = entry.contrast.test.diff > 0
    return "* " if higher == (metric.better == "higher") else "† "


def show_reported(value: tuple[float, Number] | None) -> str:
    """Returns a paper's number as it is printed there: with two decimals, or more."""
    if value is None:
        return "--"
    return " ± ".join(f"{v:.2f}" if v == round(v, 2) else f"{v:g}" for v in value if v is not None)


def cells(results: Results, *, reported: bool) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of text; a paper's numbers follow the measured ones."""
    columns = results.table.columns
    claimed = results.table.reported
    papers = [c for c in columns if any(c in r for r in claimed.values())] if reported else []
    control = [CONTROL_TITLE] * bool(results.controls)
    head = ["", *map(heading, columns), *control]
    head += [f"{METRICS[c].title} (reported)" for c in papers]
    cautioned = cautions(results)
    body = [
        [
            label + " §" * (label in results.mixed),
            *(
                mark(entries[c], METRICS[c])
                + show(entries[c], results.seeds)
                + " ‡" * (c == "attack_acc" and label in cautioned)
                for c in columns
            ),
            *(show(results.controls.get(label, Entry()), results.seeds) for _ in control),
            *(show_reported(claimed.get(label, {}).get(c)) for c in papers),
        ]
        for label, entries in results.entries.items()
    ]
    return head, body


def render(results: Results, form: str, *, reported: bool = True) -> str:
    """Returns the table as "text", "csv", "json", "latex" or "markdown"."""
    if form in ("csv", "json"):
        return {"csv": csv, "json": as_json}[form](results)
    makers = {"text": plain, "latex": latex, "markdown": markdown}
    return makers[form](results, *cells(results, reported=reported))


def csv(results: Results) -> str:
    """Returns full precision, one line per row; the same bytes for the same store."""
    frame = results.summary(reported=bool(results.table.reported))
    text: str = frame.to_csv(float_format="%.10g", lineterminator="\n")
    return text


def as_json(results: Results) -> str:
    """Returns the numbers of the CSV with what the columns mean: schemas/table.schema.json."""
    table = results.table
    frame = results.summary(reported=bool(table.reported)).reset_index()
    rows = [
        {k: _rounded(v) for k, v in zip(frame.columns, row, strict=True)}
        for row in frame.itertuples(index=False, name=None)
    ]
    columns = [
        {"name": m.name, "title": m.title, "unit": m.unit, "better": m.better, "per": m.per}
        for m in (METRICS[name] for name in table.columns)
    ]
    if results.controls:
        acc = METRICS["attack_acc"]
        control = {"name": CONTROL, "title": CONTROL_TITLE, "better": ""}
        columns.append(control | {"unit": acc.unit, "per": acc.per})
    content = {
        "format": "mibench-table/1",
        "table": table.name,
        "caption": table.caption,
        "source": table.source,
        "seeds": results.seeds,
        "evaluator": results.evaluator,
        "columns": columns,
        "rows": rows,
        "notes": footnotes(results),
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _rounded(value: Any) -> Any:  # noqa: ANN401 - a cell of a data frame
    """Returns a number as the CSV has it; null for a gap."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.10g}") if math.isfinite(value) else None


def plain(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a table for a terminal."""
    from rich.cells import cell_len
    from rich.console import Console

    # Not rich's table, which takes a millisecond for a row.
    rows = [[" ".join(text.split()) for text in row] for row in (head, *body)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    group = ""
    for i, (label, *numbers) in enumerate(rows):
        attack = Row.of(label).attack
        if i == 1:
            lines.append(" " + "─" * (sum(widths) + 3 * len(widths) - 1))
        elif i > 1 and attack != group:
            lines.append("")
        group = attack
        padded = [" " * (w - cell_len(n)) + n for w, n in zip(widths[1:], numbers, strict=True)]
        lines.append("   ".join(["  " + label + " " * (widths[0] - cell_len(label)), *padded]))
    # A label in brackets is no markup.
    console = Console(width=1000, no_color=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(results.table.caption, width=sum(widths) + 3 * len(widths) + 1)
        console.print("\n" + "\n".join(lines), soft_wrap=True)
        console.print()
        for note in footnotes(results):
            console.print(note, soft_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def markdown(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a table for a README."""
    lines = [f"**{results.table.caption}**", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join([":--", *["--:"] * (len(head) - 1)]) + "|")
    for row in body:
        text = [f"**{c[2:]}**" if c.startswith("* ") else c for c in row]
        lines.append("| " + " | ".join(map(_one_cell, text)) + " |")
    return "\n".join([*lines, "", *(f"{note}  " for note in footnotes(results, "Bold:")), ""])


def _one_cell(text: str) -> str:
    """Returns text that stays one cell of Markdown, and is no HTML in it."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
