"""Tables as numbers, and numbers as text for people and for papers."""

import json
import math
import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.evaluation import METRICS, Metric
from mibench.evaluation.significance import (
    FEWEST_IDENTITIES,
    FEWEST_VALUES,
    LEVEL,
    MOST_SEEDS,
    Interval,
    identity_interval,
    interval,
    paired,
)
from mibench.reporting.cautions import CONTROL, CONTROL_TITLE, cautions
from mibench.reporting.contrasts import Contrast, between, with_none
from mibench.reporting.holes import readable, reason
from mibench.reporting.worst import worst_note
from mibench.running.grid import Grid
from mibench.store import Payload

if TYPE_CHECKING:
    import pandas as pd

Number = float | None

FORMATS = ("text", "csv", "json", "latex", "markdown")
ARROWS = {"lower": "↓", "higher": "↑"}
SPELLED = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "±": r"$\pm$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "×": r"$\times$", "−": "$-$", "≤": r"$\leq$",
    "≥": r"$\geq$", "∞": r"$\infty$", "–": "--", "—": "---", "…": r"\dots{}", "’": "'",
    "“": "``", "”": "''",
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}",
}  # fmt: skip
"""Characters that LaTeX takes for commands, or that not every LaTeX has."""
ACCENTS = {
    0x300: "`", 0x301: "'", 0x302: "^", 0x303: "~", 0x304: "=", 0x306: "u", 0x307: ".",
    0x308: '"', 0x30A: "r", 0x30B: "H", 0x30C: "v", 0x327: "c",
}  # fmt: skip
"""Combining accent → LaTeX's command."""
PREAMBLE = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs}
\pagestyle{empty}
\begin{document}
"""
OTHER_FONTS = r"""\usepackage{fontspec} % for XeLaTeX or LuaLaTeX
\IfFontExistsTF{FreeSerif}{\setmainfont{FreeSerif}}{}
"""
"""What a document needs besides for letters that pdfLaTeX does not have."""
EAST_ASIAN = r"""\usepackage[scheme=plain]{ctex}
"""
"""And for Chinese and Japanese."""


@dataclass(frozen=True)
class Entry:
    """A metric of a row.

    Attributes:
        mean: Over seeds; None if nothing is in the store.
        std: Over passes or repeats, averaged over seeds; None where there is only one.
        interval: Student's over seeds, not clipped; None if nothing is in the store.
        values: Seed → the metric's value, of those in the store.
        identities: The bootstrap's over identities; None where there are fewer than 20 or the
            metric is not measured on each.
        contrast: The comparison with no defense; None where there is none to compare with.
    """

    mean: Number = None
    std: Number = None
    interval: Interval | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    identities: Interval | None = None
    contrast: Contrast | None = None

    @property
    def half(self) -> Number:
        """Half the width of the interval over seeds; None where there is none."""
        return self.interval.half if self.interval else None


@dataclass(frozen=True)
class Results:
    """What the store knows of a table.

    Attributes:
        table: The table.
        seeds: How many seeds were asked for.
        entries: Label → metric → entry.
        found: Label → how many seeds are in the store.
        evaluators: Test accuracy of the evaluation classifier in percent → the rows that it
            judged. More than one where rows have settings of their own, or came from stores
            in which it was trained on other kinds of machines.
        sizes: Label → reconstructions, real images and dimensions that FID rests on.
        classes: How many classes the evaluator knows.
        warnings: What the records say beside their numbers, such as why one is missing.
        holes: Label → why a seed of it is missing, where a stage failed or is damaged.
        remarks: What was computed otherwise than usual.
        controls: Label → Attack Acc of samples of its prior, where controls were asked for; its
            contrast is that of the row's Attack Acc with it, over seeds or, with fewer than
            three, over classes.
    """

    table: Table
    seeds: int
    entries: Mapping[str, Mapping[str, Entry]]
    found: Mapping[str, int]
    evaluators: Mapping[float, Sequence[str]]
    sizes: Mapping[str, tuple[int, int, int]]
    classes: int | None = None
    warnings: tuple[str, ...] = ()
    holes: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    controls: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def evaluator(self) -> Number:
        """The evaluation classifier's test accuracy in percent, if it is the same for all."""
        return next(iter(self.evaluators)) if len(self.evaluators) == 1 else None

    def frame(self, *, reported: bool = False) -> "pd.DataFrame":
        """Returns one row per label, named "row": plain numbers, NaN where there is none.

        "seeds" is how many the row rests on. Per metric: its mean; ``_std`` within a run;
        ``_t95``, half of Student's 95 % interval over seeds; ``_low`` and ``_high``, that
        interval's ends within what the metric can be; ``_diff``, the paired difference from no
        defense, and ``_p``, its p value after Holm's correction; ``_id_low`` and ``_id_high``,
        the bootstrap's over identities, if any row has 20 or more; a paper's ``_reported``.

        With controls, "attack_acc_control" is what samples of the prior get, ``_diff`` the
        attack's Attack Acc less that and ``_p`` its p value, not corrected. If any row's Attack
        Acc says nothing about leakage, "caution" says why.
        """
        import pandas as pd

        rows = []
        cautioned = cautions(self)
        for label, entries in self.entries.items():
            row: dict[str, object] = {"row": label, "seeds": self.found[label]}
            for name in self.table.columns:
                row |= self._numbers(name, entries[name])
                if reported:
                    mean, std = self.table.reported.get(label, {}).get(name, (None, None))
                    row |= {f"{name}_reported": mean, f"{name}_reported_std": std}
            if self.controls:
                control = self.controls.get(label, Entry())
                test = control.contrast.test if control.contrast else None
                row |= {CONTROL: control.mean}
                row |= {f"{CONTROL}_diff": test.diff if test else None}
                row |= {f"{CONTROL}_p": test.p if test else None}
            if cautioned:
                row |= {"caution": "; ".join(cautioned.get(label, ()))}
            rows.append(row)
        numbers = [c for c in rows[0] if c not in ("row", "seeds", "caution")]
        return pd.DataFrame(rows).set_index("row").astype(dict.fromkeys(numbers, "float64"))

    def _numbers(self, name: str, entry: Entry) -> dict[str, Number]:
        """Returns the columns of one metric."""
        span = entry.interval and entry.interval.clipped(*METRICS[name].range)
        contrast = entry.contrast
        numbers = {
            name: entry.mean,
            f"{name}_std": entry.std,
            f"{name}_t95": entry.half,
            f"{name}_low": span.low if span else None,
            f"{name}_high": span.high if span else None,
            f"{name}_diff": contrast.test.diff if contrast else None,
            f"{name}_p": contrast.p if contrast else None,
        }
        if any(_has_identities(METRICS[name], r.trials.classes) for r in self.table.rows.values()):
            ids = entry.identities
            numbers |= {f"{name}_id_low": ids.low if ids else None}
            numbers |= {f"{name}_id_high": ids.high if ids else None}
        return numbers

    def contrasts(self, name: str) -> list[Contrast]:
        """Returns a metric's comparisons between defenses under one attack."""
        return between(self.table, name, {k: e[name].values for k, e in self.entries.items()})


def collect(grid: Grid) -> Results:
    """Returns what is in the store, with the grid's controls if it has any; computes nothing."""
    table, store = grid.table, grid.store
    entries: dict[str, dict[str, Entry]] = {}
    found: dict[str, int] = {}
    evaluators: dict[float, dict[str, None]] = {}
    classes = None
    sizes = {}
    warnings: dict[str, list[str]] = {}
    holes: dict[str, str] = {}
    remarks: dict[str, None] = {}
    beside: dict[str, Entry] = {}
    failed = store.failed()
    done = grid.done
    for label, stages in grid.records.items():
        payloads: dict[int, Payload] = {}
        for seed, stage in enumerate(stages):
            read = readable(stage, store) if seed in done[label] else None
            if read is not None:
                payloads[seed], meta = read
                remarks |= dict.fromkeys(meta.get("remarks", []))
            elif why := reason(stage, store, failed):
                holes.setdefault(label, why)
        found[label] = len(payloads)
        classes_attacked = table.rows[label].trials.classes
        entries[label] = {name: _entry(name, payloads, classes_attacked) for name in table.columns}
        if grid.controls and label in grid.controls.records:
            beside[label] = _control(label, payloads, grid.controls, classes_attacked)
        for warning in dict.fromkeys(w for p in payloads.values() for w in p.get("warnings", ())):
            warnings.setdefault(warning, []).append(label)
        for payload in payloads.values():
            evaluators.setdefault(payload["evaluator"]["accuracy"], {})[label] = None
        if payloads:
            payload = next(iter(payloads.values()))
            size = payload["sizes"]
            classes = size["classes"]
            sizes[label] = (size["reconstructions"], size["real"], size["dimensions"])
    for name in table.columns:
        values = {label: row[name].values for label, row in entries.items()}
        for label, contrast in with_none(table, name, values).items():
            entries[label][name] = replace(entries[label][name], contrast=contrast)
    there = [label for label, seeds_found in found.items() if seeds_found]
    warned = tuple(
        text if len(labels) == len(there) else f"{_together(labels, there)}: {text}"
        for text, labels in warnings.items()
    )
    judged = {accuracy: tuple(labels) for accuracy, labels in evaluators.items()}
    told = warned, holes, tuple(remarks)
    return Results(table, grid.seeds, entries, found, judged, sizes, classes, *told, beside)


def _together(labels: Sequence[str], every: Sequence[str]) -> str:
    """Returns labels in one text; those of an attack as its name, where they are all of it."""
    told: dict[str, None] = {}
    for label in labels:
        attack = Row.of(label).attack
        alike = [x for x in every if Row.of(x).attack == attack]
        told[attack if attack and set(alike) <= set(labels) else label] = None
    return ", ".join(told)


def _entry(name: str, payloads: Mapping[int, Payload], classes: int) -> Entry:
    scores = {seed: p["scores"][name] for seed, p in payloads.items()}
    means = {seed: s["mean"] for seed, s in scores.items() if _finite(s["mean"])}
    if not means:
        return Entry()
    stds = [s["std"] for s in scores.values() if s["std"] is not None]
    ids = None
    if _has_identities(METRICS[name], classes):
        by_identity = [_by_identity(payloads[seed]["values"][name], classes) for seed in means]
        if all(_finite(v) for seed in by_identity for v in seed):
            ids = identity_interval(by_identity)
    return Entry(
        _mean(list(means.values())),
        _mean(stds) if stds else None,
        interval(list(means.values())),
        means,
        ids,
    )


def _control(label: str, payloads: Mapping[int, Payload], controls: Grid, classes: int) -> Entry:
    """Returns the Attack Acc of a row's control, with the comparison of the row with it."""
    read = {
        seed: found[0]
        for seed, stage in controls.only([label]).done[label].items()
        if (found := readable(stage, controls.store))
    }
    control, attack = (_entry("attack_acc", p, classes) for p in (read, payloads))
    seeds = tuple(seed for seed in attack.values if seed in control.values)
    if not seeds:
        return control
    by_class = [
        [_by_identity(found[seed]["values"]["attack_acc"], classes) for seed in seeds]
        for found in (payloads, read)
    ]
    a, b = ([_mean(values) for values in zip(*each, strict=True)] for each in by_class)
    test = paired(a, b)
    return replace(control, contrast=Contrast(label, CONTROL_TITLE, seeds, test, test.p, 1, None))


def _mean(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else statistics.mean(values)  # exact, and slow


def _finite(value: Number) -> bool:
    return value is not None and math.isfinite(value)


def _has_identities(metric: Metric, classes: int) -> bool:
    """Whether a bootstrap over identities is made."""
    return metric.per in ("image", "identity") and classes >= FEWEST_IDENTITIES


def _by_identity(repeats: Sequence[Sequence[float]], classes: int) -> list[float]:
    """Returns each identity's mean; values come pass by pass, a value per identity in each."""
    each = [[statistics.fmean(v[c::classes]) for v in repeats] for c in range(classes)]
    return [statistics.fmean(means) for means in each]


# Text -------------------------------------------------------------------------------------


def heading(name: str) -> str:
    """Returns a column's heading, with the way that is better for the defender, if one is."""
    metric = METRICS[name]
    return f"{metric.title} {ARROWS[metric.better]}" if metric.better else metric.title


def footnotes(results: Results, bold: str = "*") -> list[str]:
    """Returns what a reader must know beside the numbers.

    Args:
        results: The table.
        bold: How a number is marked that is better for the defender than without a defense.
    """
    seeds = results.seeds
    if seeds > 1:
        what = "± half of Student's 95 % interval."
        if seeds < FEWEST_VALUES:
            what = f"with the value of each: an interval takes {FEWEST_VALUES} seeds."
        notes = [f"Mean over {seeds} seeds {what}"]
        notes += significance_notes(results, bold)
    else:
        notes = [spread_note(results.table)]
    if results.evaluator is not None:
        notes.append(f"Evaluation classifier: {results.evaluator:.2f} % test accuracy.")
    elif results.evaluators:
        there = [label for label, n in results.found.items() if n]
        each = "; ".join(
            f"{accuracy:.2f} % for {_together(labels, there)}"
            for accuracy, labels in results.evaluators.items()
        )
        notes.append(f"Evaluation classifiers differ; their test accuracy: {each}.")
    if results.classes is not None:
        chances = {"attack_acc": ("Attack Acc", 1), "attack_acc5": ("Acc5", 5)}
        protocols = [cell.protocol for cell in results.table.rows.values()]
        guesses = ", ".join(
            f"{min(100, 100 * tries / results.classes):.3g} % in {title}"
            for name, (title, tries) in chances.items()
            if all(p.metric(name).name == name for p in protocols)
        )
        scores = f": a blind guess scores {guesses}" if guesses else ""
        notes.append(
            f"It knows {results.classes} classes{scores}. "
            "Arrows point to what is better for the defender."
            + " A column without one is a yardstick, which is not tested."
            * any(not METRICS[name].better for name in results.table.columns)
        )
    notes += caution_notes(results)
    notes += fid_note(results)
    notes += stand_in_notes(results.table)
    if "fid_identity" in results.table.columns:
        notes.append(
            "FID per identity compares few images in many dimensions: most of it is bias. "
            "fid_identity_floor is that between two halves of an identity's real images, which "
            "are fewer still."
        )
    notes += results.warnings
    if results.table.worst:
        notes += worst_note(results)
    short = [f"{label} ({n})" for label, n in results.found.items() if 0 < n < seeds]
    if short:
        few = seeds >= FEWEST_VALUES and 2 in results.found.values()
        aside = f" With the value of each of two: an interval takes {FEWEST_VALUES} seeds." * few
        notes.append(f"Fewer seeds so far: {', '.join(short)}.{aside}")
    notes += [f"Missing in {label}: {why}." for label, why in results.holes.items()]
    return [*notes, *results.remarks, *results.table.notes]


def caution_notes(results: Results) -> list[str]:
    """Returns which rows say nothing about leakage, why, and what controls are."""
    there = [label for label, n in results.found.items() if n]
    reasons: dict[str, list[str]] = {}
    for label, each in cautions(results).items():
        for why in each:
            reasons.setdefault(why, []).append(label)
    notes = [f"‡ {_together(labels, there)}: {why}." for why, labels in reasons.items()]
    if results.controls:
        notes.append(
            f"{CONTROL_TITLE}: as many images drawn from the same prior, not optimised, for the "
            "same targets. Attack Acc is compared with it by a one-sided paired t test over the "
            f"attacked classes at {100 * LEVEL:g} %, not corrected."
        )
    if lacking := [k for k, entry in results.controls.items() if entry.mean is None]:
        notes.append(f"{CONTROL_TITLE} is not computed for {_together(lacking, there)}.")
    return notes


def significance_notes(results: Results, bold: str) -> list[str]:
    """Returns what was tested, what more seeds would tell, and where there is no interval."""
    tested = {
        name: {
            label: entries[name].contrast
            for label, entries in results.entries.items()
            if entries[name].contrast
        }
        for name in results.table.columns
    }
    notes = []
    others = dict.fromkeys(_last(c.other) for row in tested.values() for c in row.values() if c)
    against = " or ".join(others)
    if others:
        notes.append(
            f"{bold} better, † worse for the defender than {against} of the same attack, by "
            f"paired t tests at the same seeds and Holm's correction over all rows of a column, "
            f"at {100 * LEVEL:g} %. What is not marked has not been told apart."
        )
    for name, contrasts in tested.items():
        needs: dict[str, None] = {}
        for label, c in contrasts.items():
            if c and not c.significant and c.p is not None and len(c.seeds) >= FEWEST_VALUES:
                n = f"more than {MOST_SEEDS}" if c.more is None else c.more
                needs[f"{_whose(name, label)} {n}"] = None
        if needs:
            notes.append(
                f"{METRICS[name].title} needs about so many more seeds to be told apart from "
                f"{against}: {', '.join(needs)}."
            )
    for why, lacking in (
        ("Seeds agree, which leaves no interval", _agreeing(results)),
        ("Differences agree, which leaves no test", _untested(tested)),
    ):
        if lacking:
            notes.append(f"{why}: {', '.join(lacking)}.")
    return notes


def _agreeing(results: Results) -> list[str]:
    return list(
        dict.fromkeys(
            f"{METRICS[name].title} of {_whose(name, label)}"
            for name in results.table.columns
            for label, entries in results.entries.items()
            if len(entries[name].values) >= FEWEST_VALUES and entries[name].half is None
        )
    )


def _untested(tested: Mapping[str, Mapping[str, Contrast | None]]) -> list[str]:
    return list(
        dict.fromkeys(
            f"{METRICS[name].title} of {_whose(name, label)}"
            for name, row in tested.items()
            for label, c in row.items()
            if c and c.p is None and len(c.seeds) > 1
        )
    )


def _whose(name: str, label: str) -> str:
    """Returns a row's label, or its defense alone where the attack has no say."""
    return _last(label) if METRICS[name].per == "target" else label


def _last(label: str) -> str:
    return Row.of(label).defended


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
        f"± is the standard deviation over {usual} of one run{aside}. One seed carries no "
        "interval: another training may come out otherwise, so ask for several seeds."
    )


def stand_in_notes(table: Table) -> list[str]:
    """Returns what a column is where the protocol puts another metric into it."""
    notes: dict[str, None] = {}
    for cell in table.rows.values():
        for column in table.columns:
            metric = cell.protocol.metric(column)
            if metric.name != column:
                what = (metric.compute.__doc__ or "").split("\n")[0]
                notes[f"{METRICS[column].title} here is {metric.name}: {what}"] = None
    return list(notes)


def fid_note(results: Results) -> list[str]:
    """Returns how many images FID rests on: with few, most of it is bias."""
    if "fid" not in results.table.columns or not results.sizes:
        return []
    groups: dict[tuple[int, int, int], list[str]] = {}
    for label, size in results.sizes.items():
        if results.entries[label]["fid"].mean is None or "inception" in (
            results.table.rows[label].protocol.metric("fid").name
        ):
            continue  # there is none, or it is of other features
        groups.setdefault(size, []).append(Row.of(label).attack)
    parts = [
        f"{n} reconstructions and {real} private images in {d} dimensions"
        + (f" ({', '.join(dict.fromkeys(attacks))})" if len(groups) > 1 else "")
        for (n, real, d), attacks in groups.items()
    ]
    warning = "; compare it between equal numbers only" if len(groups) > 1 else ""
    return parts and [f"FID rests on {'; '.join(parts)}{warning}."]


def show(entry: Entry, seeds: int) -> str:
    """Returns "mean ± spread" with two decimals; a gap is "--".

    The spread is that over passes with one seed, half of the interval over seeds with more;
    where one seed of several is there yet, or all agree, none. Where two are there, their values
    stand in its place.
    """
    if entry.mean is None:
        return "--"
    if 1 < len(entry.values) < FEWEST_VALUES:
        return f"{entry.mean:.2f} ({', '.join(f'{v:.2f}' for v in entry.values.values())})"
    spread = entry.std if seeds == 1 else entry.half
    return f"{entry.mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")


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
            label,
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
    if form == "csv":
        return csv(results)
    if form == "json":
        return as_json(results)
    makers = {"text": plain, "latex": latex, "markdown": markdown}
    return makers[form](results, *cells(results, reported=reported))


def csv(results: Results) -> str:
    """Returns full precision, one line per row; the same bytes for the same store."""
    frame = results.frame(reported=bool(results.table.reported))
    text: str = frame.to_csv(float_format="%.10g", lineterminator="\n")
    return text


def as_json(results: Results) -> str:
    """Returns the numbers of the CSV with what the columns mean: schemas/table.schema.json."""
    table = results.table
    frame = results.frame(reported=bool(table.reported)).reset_index()
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
    told = {
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
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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


def latex(results: Results, head: list[str], body: list[list[str]]) -> str:
    """Returns a booktabs table that compiles as it is.

    A rule parts attacks, a little room the defenses that come at several weights.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(results.table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        " & ".join(map(tex, head)) + r" \\",
    ]
    rows = [Row.of(row[0]) for row in body]
    families = [(row.attack, row.defense) for row in rows]
    for i, row in enumerate(body):
        attack, family = families[i]
        if i == 0 or attack != families[i - 1][0]:
            lines.append(r"\midrule")
        elif family != families[i - 1][1] and (
            families.count(families[i]) > 1 or families.count(families[i - 1]) > 1
        ):
            lines.append(r"\addlinespace")
        text = [rf"\textbf{{{tex(c[2:])}}}" if c.startswith("* ") else tex(c) for c in row[1:]]
        lines.append(" & ".join([tex(row[0]), *text]) + r" \\")
    notes = " ".join(map(tex, footnotes(results, "Bold:")))
    lines += [r"\bottomrule", r"\end{tabular}", "", rf"\smallskip{{\footnotesize {notes}}}"]
    whole = "\n".join([*lines, r"\end{table}", ""])
    if whole.isascii():
        return whole
    some = " ".join(sorted({c for c in whole if not c.isascii()})[:20])
    return f"% For XeLaTeX or LuaLaTeX, with a font that has {some}: pdfLaTeX does not.\n{whole}"


def standalone(table: str) -> str:
    """Returns a LaTeX table as a whole document; one that pdfLaTeX compiles if it is ASCII."""
    preamble = PREAMBLE
    if not table.isascii():
        east = any("\u2e80" <= c <= "\ud7ff" or c >= "\U00020000" for c in table)
        fonts = OTHER_FONTS + EAST_ASIAN * east
        preamble = preamble.replace(r"\begin{document}", fonts + r"\begin{document}")
    return f"{preamble}{table}\\end{{document}}\n"


def tex(text: str) -> str:
    """Returns text in one line of LaTeX, whatever characters are in it.

    Accents become commands and Greek letters mathematics. Letters that pdfLaTeX does not have stay
    as they are; any other sign that it lacks is named by its number, such as [U+2318].
    """
    spelled = "".join(map(_spell, " ".join(text.split())))
    return (
        "{}" + spelled if spelled[:1] in ("[", "*") else spelled
    )  # no option of a command before


def _spell(c: str) -> str:
    if c in SPELLED:
        return SPELLED[c]
    if " " <= c <= "~":
        return c
    parts = unicodedata.normalize("NFD", c)
    if len(parts) == 2 and parts[0].isascii() and ord(parts[1]) in ACCENTS:
        return rf"\{ACCENTS[ord(parts[1])]}{{{parts[0]}}}"
    name = unicodedata.name(c, "").lower().replace("lamda", "lambda")
    if name.startswith("greek small letter ") and name[19:].isalpha() and c not in "οςϲ":
        return rf"$\{name[19:]}$"
    if c in "ΓΔΘΛΞΠΣΦΨΩ":
        return rf"$\{name[21:].capitalize()}$"
    if unicodedata.category(c)[0] in "LM":
        return c
    return f"[U+{ord(c):04X}]"


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
