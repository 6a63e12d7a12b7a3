"""A table's results as LaTeX that compiles as it is, whatever is in its labels."""

import unicodedata
from itertools import accumulate, pairwise

from mibench.reporting.sheet import Sheet

SPELLED = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "→": r"$\rightarrow$", "±": r"$\pm$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}",
    "×": r"$\times$", "−": "$-$", "≤": r"$\leq$",
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


def latex(sheet: Sheet) -> str:
    """Returns a booktabs table that compiles as it is.

    A rule parts attacks, a little room the defenses that come at several weights. Each of several
    tables has its name above its columns.
    """
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(sheet.caption)}}}"]
    if sheet.label:
        lines.append(rf"\label{{{sheet.label}}}")
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(sheet.head) - 1)}}}", r"\toprule"]
    if sheet.parts:
        names = [rf"\multicolumn{{{n}}}{{c}}{{{tex(name)}}}" for name, n in sheet.parts]
        ends = list(accumulate((n for _, n in sheet.parts), initial=1))
        rules = [rf"\cmidrule(lr){{{a + 1}-{b}}}" for a, b in pairwise(ends)]
        lines += [" & ".join(["", *names]) + r" \\", " ".join(rules)]
    lines.append(" & ".join(map(tex, sheet.head)) + r" \\")
    for i, row in enumerate(sheet.body):
        if i == 0 or i in sheet.breaks:
            lines.append(r"\midrule")
        elif i in sheet.gaps:
            lines.append(r"\addlinespace")
        text = [rf"\textbf{{{tex(c[2:])}}}" if c.startswith("* ") else tex(c) for c in row[1:]]
        lines.append(" & ".join([tex(row[0]), *text]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if sheet.notes:
        lines += ["", rf"\smallskip{{\footnotesize {' '.join(map(tex, sheet.notes))}}}"]
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
