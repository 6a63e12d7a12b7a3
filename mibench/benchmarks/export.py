"""Tables as numbers, and numbers as text for people and for papers."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mibench.benchmarks.holes import readable, reason
from mibench.benchmarks.stages import OPTIMISTIC, RecordStage, record_stage
from mibench.benchmarks.tables.base import Table
from mibench.evaluation import METRICS, t_interval
from mibench.store import Payload, Store

if TYPE_CHECKING:
    import pandas as pd

Number = float | None

FORMATS = ("text", "csv", "latex", "markdown")
ARROWS = {"lower": "↓", "higher": "↑"}
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
        "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        "↓": r"$\downarrow$", "↑": r"$\uparrow$", "±": r"$\pm$",
        "λ": r"$\lambda$", "×": r"$\times$",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A metric of a row.

    Attributes:
        mean: Over seeds; None if nothing is in the store.
        std: Over passes or repeats, averaged over seeds; None where there is only one.
        interval: Half of Student's 95 % interval over seeds; None with one seed.
    """

    mean: Number = None
    std: Number = None
    interval: Number = None


@dataclass(frozen=True)
class Results:
    """What the store knows of a table.

    Attributes:
        table: The table.
        seeds: How many seeds were asked for.
        entries: Label → metric → entry.
        found: Label → how many seeds are in the store.
        evaluator: The evaluation classifier's test accuracy in percent.
        sizes: Label → reconstructions, real images and dimensions that FID rests on.
        classes: How many classes the evaluator knows.
        holes: Label → why a seed of it is missing, where a stage failed or is damaged.
        remarks: What was computed otherwise than usual.
    """

    table: Table
    seeds: int
    entries: Mapping[str, Mapping[str, Entry]]
    found: Mapping[str, int]
    evaluator: Number
    sizes: Mapping[str, tuple[int, int, int]]
    classes: int | None = None
    holes: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def frame(self, *, reported: bool = False) -> "pd.DataFrame":
        """Returns one row per label: per metric mean, ``_std``, ``_t95``, and the reported."""
        import pandas as pd

        rows = []
        for label, entries in self.entries.items():
            row: dict[str, object] = {"row": label, "seeds": self.found[label]}
            for name in self.table.columns:
                entry = entries[name]
                row |= {name: entry.mean, f"{name}_std": entry.std, f"{name}_t95": entry.interval}
                if reported:
                    mean, std = self.table.reported.get(label, {}).get(name, (None, None))
                    row |= {f"{name}_reported": mean, f"{name}_reported_std": std}
            rows.append(row)
        return pd.DataFrame(rows).set_index("row")


def record_stages(table: Table, seeds: int, data: Path | None) -> dict[str, list[RecordStage]]:
    """Returns the last stages of every row, one per seed from 0 on.

    Reads the raw data in ``data`` for its digest; raises as :meth:`Task.digest` does. Without
    ``data`` the stages are those that would be, under keys that mean nothing.
    """
    tasks = {cell.setting.task for cell in table.rows.values()}
    digests = {task: "" if data is None else task.digest(data) for task in tasks}
    return {
        label: [
            record_stage(cell.at(seed), table.columns, digests[cell.setting.task])
            for seed in range(seeds)
        ]
        for label, cell in table.rows.items()
    }


def collect(table: Table, records: Mapping[str, Sequence[RecordStage]], store: Store) -> Results:
    """Returns what is in the store; computes nothing."""
    entries: dict[str, dict[str, Entry]] = {}
    found: dict[str, int] = {}
    evaluator = classes = None
    sizes = {}
    holes: dict[str, str] = {}
    remarks: dict[str, None] = {}
    for label, stages in records.items():
        read = [(s, readable(s, store)) for s in stages]
        payloads = [p for _, p in read if p is not None]
        for stage, payload in read:
            if payload is None and (why := reason(stage, store)):
                holes.setdefault(label, why)
            elif payload is not None:
                remarks |= dict.fromkeys(store.meta(stage).get("remarks", []))
        found[label] = len(payloads)
        entries[label] = {name: _entry(name, payloads) for name in table.columns}
        if payloads:
            evaluator = payloads[0]["evaluator"]["accuracy"]
            size = payloads[0]["sizes"]
            classes = size["classes"]
            sizes[label] = (size["reconstructions"], size["real"], size["dimensions"])
    seeds = max(len(stages) for stages in records.values())
    return Results(table, seeds, entries, found, evaluator, sizes, classes, holes, tuple(remarks))


def _entry(name: str, payloads: Sequence[Payload]) -> Entry:
    scores = [p["scores"][name] for p in payloads]
    if not scores:
        return Entry()
    means = [s["mean"] for s in scores]
    stds = [s["std"] for s in scores if s["std"] is not None]
    return Entry(
        statistics.mean(means),
        statistics.mean(stds) if stds else None,
        t_interval(means) if len(means) > 1 else None,
    )


# Text -------------------------------------------------------------------------------------


def heading(name: str) -> str:
    """Returns a column's heading, with the way that is better for the defender."""
    metric = METRICS[name]
    return f"{metric.title} {ARROWS[metric.better]}"


def footnotes(results: Results) -> list[str]:
    """Returns what a reader must know beside the numbers."""
    seeds = results.seeds
    if seeds > 1:
        notes = [f"Mean over {seeds} seeds ± half of Student's 95 % interval."]
    else:
        notes = [spread_note(results.table)]
    if results.evaluator is not None:
        notes.append(f"Evaluation classifier: {results.evaluator:.2f} % test accuracy.")
    if results.classes is not None:
        notes.append(
            f"It knows {results.classes} classes: a blind guess scores "
            f"{100 / results.classes:.3g} % in Attack Acc, {500 / results.classes:.3g} % in Acc5. "
            "Arrows point to what is better for the defender."
        )
    notes += fid_note(results)
    if "fid_identity" in results.table.columns:
        notes.append(
            "FID per identity compares few images in many dimensions: most of it is bias. "
            "fid_identity_floor is that between two halves of an identity's real images, which "
            "are fewer still."
        )
    if any(c.protocol.select == "evaluator" for c in results.table.rows.values()):
        notes.append(OPTIMISTIC)
    short = [label for label, n in results.found.items() if 0 < n < seeds]
    if short:
        notes.append(f"Fewer seeds so far: {', '.join(short)}.")
    notes += [f"Missing in {label}: {why}." for label, why in results.holes.items()]
    return [*notes, *results.remarks, *results.table.notes]


def spread_note(table: Table) -> str:
    """Returns over what the deviations of one run are taken."""
    spreads = {cell.protocol.spread for cell in table.rows.values()}
    usual = "identities" if spreads == {"identity"} else "passes"
    over = {"attack": "repeats of the attack", "identity": "identities"}
    others = [
        f"{metric.title}: over {over[metric.per]}"
        for metric in (METRICS[name] for name in table.columns)
        if over.get(metric.per, usual) != usual
    ]
    aside = f" ({'; '.join(others)})" if others else ""
    return (
        f"± is the standard deviation over {usual} of one run{aside}. Another training may come "
        "out otherwise: ask for several seeds."
    )


def fid_note(results: Results) -> list[str]:
    """Returns how many images FID rests on: with few, most of it is bias."""
    if "fid" not in results.table.columns or not results.sizes:
        return []
    groups: dict[tuple[int, int, int], list[str]] = {}
    for label, size in results.sizes.items():
        groups.setdefault(size, []).append(label.rpartition(" / ")[0])
    parts = [
        f"{n} reconstructions and {real} private images in {d} dimensions"
        + (f" ({', '.join(dict.fromkeys(attacks))})" if len(groups) > 1 else "")
        for (n, real, d), attacks in groups.items()
    ]
    warning = "; compare it between equal numbers only" if len(groups) > 1 else ""
    return [f"FID rests on {'; '.join(parts)}{warning}."]


def show(entry: Entry, seeds: int) -> str:
    """Returns "mean ± spread" with two decimals; a gap is "--".

    The spread is that over passes with one seed, the interval over seeds with more; where
    fewer than two seeds are there yet, none.
    """
    if entry.mean is None:
        return "--"
    spread = entry.std if seeds == 1 else entry.interval
    return f"{entry.mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


def show_reported(value: tuple[float, Number] | None) -> str:
    """Returns a paper's number in the same form."""
    if value is None:
        return "--"
    mean, std = value
    return f"{mean:g}" + (f" ± {std:g}" if std else "")


def cells(results: Results, *, reported: bool) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of text; a paper's numbers follow the measured ones."""
    columns = results.table.columns
    claimed = results.table.reported
    papers = [c for c in columns if any(c in r for r in claimed.values())] if reported else []
    head = ["", *map(heading, columns), *(f"{METRICS[c].title} (reported)" for c in papers)]
    body = [
        [
            label,
            *(show(entries[c], results.seeds) for c in columns),
            *(show_reported(claimed.get(label, {}).get(c)) for c in papers),
        ]
        for label, entries in results.entries.items()
    ]
    return head, body


def render(results: Results, form: str, *, reported: bool = True) -> str:
    """Returns the table as "text", "csv", "latex" or "markdown"."""
    if form == "csv":
        return csv(results)
    makers = {"text": plain, "latex": latex, "markdown": markdown}
    return makers[form](results, *cells(results, reported=reported))


def csv(results: Results) -> str:
    """Returns full precision, one line per row; the same bytes for the same store."""
    frame = results.frame(reported=bool(results.table.reported))
    text: str = frame.to_csv(float_format="%.10g", lineterminator="\n")
    return text


def plain(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(title=results.table.caption, box=SIMPLE_HEAD, title_justify="left")
    for i, name in enumerate(head):
        grid.add_column(name, justify="right" if i else "left", no_wrap=True)
    group = None
    for row in body:
        attack = row[0].rpartition(" / ")[0]
        if group not in (None, attack):
            grid.add_section()
        group = attack
        grid.add_row(*row)
    console = Console(width=1000, no_color=True, highlight=False)  # as wide as it is
    with console.capture() as capture:
        console.print(grid)
        for note in footnotes(results):
            console.print(note, soft_wrap=True)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def latex(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a booktabs table that compiles as it is."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{results.table.caption.translate(ESCAPES)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(h.translate(ESCAPES) for h in head) + r" \\",
    ]
    group = None
    for row in body:
        attack = row[0].rpartition(" / ")[0]
        if attack != group:
            lines.append(r"\midrule")
        group = attack
        lines.append(" & ".join(c.translate(ESCAPES) for c in row) + r" \\")
    notes = " ".join(n.translate(ESCAPES) for n in footnotes(results))
    lines += [r"\bottomrule", r"\end{tabular}", "", rf"\smallskip{{\footnotesize {notes}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def markdown(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a table for a README."""
    lines = [f"**{results.table.caption}**", "", "| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join([":--", *["--:"] * (len(head) - 1)]) + "|")
    lines += ["| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in body]
    return "\n".join([*lines, "", *(f"{note}  " for note in footnotes(results)), ""])
