"""A table's results as text, CSV, JSON, LaTeX and Markdown."""

import io
import json
import math
from collections.abc import Iterable, Sequence
from csv import writer
from dataclasses import astuple, fields
from typing import Any

from mibench.evaluation import METRICS
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE
from mibench.reporting.latex import latex
from mibench.reporting.notes import footnotes
from mibench.reporting.results import Results
from mibench.reporting.sheet import Look, Sheet, sheet

FORMATS = ("text", "csv", "json", "latex", "markdown")
PLAIN = Look()


def points_csv(kind: type, points: Iterable[Any]) -> str:
    """Returns the points of a figure as CSV, a column for each field; always the same bytes.

    Args:
        kind: The dataclass that the points are of.
        points: A line each.
    """
    text = io.StringIO()
    rows = writer(text, lineterminator="\n")
    rows.writerow(f.name for f in fields(kind))
    for point in points:
        rows.writerow(f"{v:.10g}" if isinstance(v, float) else v for v in astuple(point))
    return text.getvalue()


def render(results: Results, form: str, look: Look = PLAIN) -> str:
    """Returns the table as "text", "csv", "json", "latex" or "markdown"."""
    return side_by_side([results], form, look)


def side_by_side(tables: Sequence[Results], form: str, look: Look = PLAIN) -> str:
    """Returns tables of different names beside each other; in CSV one below the other.

    Raises:
        ValueError: If several are to be JSON.
    """
    if form == "json":
        if len(tables) > 1:
            raise ValueError("json holds one table: name one, or take csv")
        return as_json(tables[0])
    if form == "csv":
        return csv(tables)
    makers = {"text": plain, "latex": latex, "markdown": markdown}
    return makers[form](sheet(tables, look, "*" if form == "text" else "Bold:"))


def csv(tables: Sequence[Results]) -> str:
    """Returns full precision, one line per row; the same bytes for the same store.

    Of several tables the first column is the table's name.
    """
    import pandas as pd

    frames = {r.table.name: r.summary(reported=bool(r.table.reported)) for r in tables}
    several = pd.concat(frames, names=["table"]) if len(frames) > 1 else frames.popitem()[1]
    text: str = several.to_csv(float_format="%.10g", lineterminator="\n")
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


def plain(made: Sheet) -> str:
    """Returns a table for a terminal."""
    from rich.cells import cell_len
    from rich.console import Console

    # Not rich's table, which takes a millisecond for a row.
    rows = [[" ".join(text.split()) for text in row] for row in (made.named.head, *made.body)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for i, (label, *numbers) in enumerate(rows):
        if i == 1:
            lines.append(" " + "─" * (sum(widths) + 3 * len(widths) - 1))
        elif i - 1 in made.breaks:
            lines.append("")
        padded = [" " * (w - cell_len(n)) + n for w, n in zip(widths[1:], numbers, strict=True)]
        lines.append("   ".join(["  " + label + " " * (widths[0] - cell_len(label)), *padded]))
    # A label in brackets is no markup.
    console = Console(width=1000, no_color=True, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(made.caption, width=sum(widths) + 3 * len(widths) + 1)
        console.print("\n" + "\n".join(lines), soft_wrap=True)
        if made.notes:
            console.print()
        for note in made.notes:
            console.print(note, soft_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def markdown(made: Sheet) -> str:
    """Returns a table for a README."""
    head = [_one_cell(text) for text in made.named.head]
    lines = [f"**{made.caption}**", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join([":--", *["--:"] * (len(head) - 1)]) + "|")
    for row in made.body:
        text = [f"**{c[2:]}**" if c.startswith("* ") else c for c in row]
        lines.append("| " + " | ".join(map(_one_cell, text)) + " |")
    return "\n".join([*lines, *([""] if made.notes else []), *(f"{n}  " for n in made.notes), ""])


def _one_cell(text: str) -> str:
    """Returns text that stays one cell of Markdown, and is no HTML in it."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
