"""Plots as SVG that stands inside the page: colours and fonts are the page's.

Every point and curve carries its numbers in words, shown where a pointer or the keyboard's
focus is, and read out by screen readers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mibench.reporting.canvas import Mark

WIDTH, HEIGHT = 360, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 42
SHAPES = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z", "M-4,-4h8v8h-8z", "M0,-6l6,6l-6,6l-6,-6z",
    "M-5.5,4.5h11l-5.5,-10z", "M-5.5,-4.5h11l-5.5,10z", "M-6,-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
    "M-5,-5l3,-1l2,3l2,-3l3,1l-3,5l3,5l-3,1l-2,-3l-2,3l-3,-1l3,-5z",
    "M0,-6l5.5,4l-2,6.5h-7l-2,-6.5z",
)  # fmt: skip
"""Outlines of markers around the origin, so that rows differ in more than colour."""


@dataclass(frozen=True)
class Point:
    """A marker.

    Attributes:
        name: Which entry of the legend it belongs to.
        mark: Where it is, and its error bars.
        words: The point in words.
    """

    name: str
    mark: Mark
    words: str


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns round numbers from ``low`` to ``high``, about ``count`` of them."""
    raw = (high - low) / max(1, count)
    if raw <= 0 or not math.isfinite(raw):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Returns a range that holds the finite values with room around them."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = (high - low) * share or max(abs(high) * share, 0.5)
    return low - room, high + room


@dataclass(frozen=True)
class Frame:
    """Where data coordinates lie in a plot."""

    xs: tuple[float, float]
    ys: tuple[float, float]

    def x(self, value: float) -> float:
        """Returns the horizontal position of a value, inside the plot."""
        share = (value - self.xs[0]) / (self.xs[1] - self.xs[0])
        return round(LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Returns the vertical position of a value, inside the plot."""
        share = (value - self.ys[0]) / (self.ys[1] - self.ys[0])
        return round(HEIGHT - BOTTOM - min(1.0, max(0.0, share)) * (HEIGHT - TOP - BOTTOM), 1)

    def axes(self, xlabel: str, ylabel: str) -> list[str]:
        """Returns grid lines, numbers and what the axes show."""
        out = []
        for v in ticks(*self.ys):
            y = self.y(v)
            out.append(f'<path class="grid" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
            out.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{v:g}</text>')
        for v in ticks(*self.xs):
            x = self.x(v)
            out.append(f'<path class="grid" d="M{x},{TOP}V{HEIGHT - BOTTOM}"/>')
            out.append(
                f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{v:g}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        out.append(
            f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(xlabel)}</text>'
        )
        across = (TOP + HEIGHT - BOTTOM) / 2
        out.append(
            f'<text transform="translate(12,{across}) rotate(-90)" text-anchor="middle">'
            f"{escape(ylabel)}</text>"
        )
        return out


def scatter(
    title: str, xlabel: str, ylabel: str, points: Sequence[Point], styles: Mapping[str, int]
) -> Markup:
    """Returns markers with error bars; both axes are in percent.

    Args:
        title: The plot in words, for those who do not see it.
        xlabel: What is horizontal.
        ylabel: What is vertical.
        points: The markers.
        styles: Name → number of its colour and shape.
    """
    ends = [p.mark.accuracy + s * (p.mark.dx or 0) for p in points for s in (-1, 1)]
    frame = Frame(padded([min(100.0, max(0.0, x)) for x in ends]), (0, 100))
    out = frame.axes(xlabel, ylabel)
    for p in points:
        x, y = frame.x(p.mark.accuracy), frame.y(p.mark.attack_acc)
        style = styles[p.name] % len(SHAPES)
        bars = ""
        if (dy := p.mark.dy) is not None:
            low, high = (frame.y(p.mark.attack_acc + s * dy) for s in (-1, 1))
            bars += f'<path class="bar" d="M{x},{low}V{high}"/>'
        if (dx := p.mark.dx) is not None:
            left, right = max(0.0, p.mark.accuracy - dx), min(100.0, p.mark.accuracy + dx)
            bars += f'<path class="bar" d="M{frame.x(left)},{y}H{frame.x(right)}"/>'
        out.append(
            f'<g class="pt c{style}" tabindex="0" role="img" aria-label="{escape(p.words)}">'
            f"<title>{escape(p.words)}</title>{bars}"
            f'<path transform="translate({x},{y})" d="{SHAPES[style]}"/></g>'
        )
    return _svg(title, out)


def lines(
    title: str,
    xlabel: str,
    ylabel: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    styles: Mapping[str, int],
) -> Markup:
    """Returns curves, each by at most 200 points; gaps where a value is not finite."""
    curves = {name: _thinned(*xy) for name, xy in series.items()}
    frame = Frame(
        padded([x for xs, _ in curves.values() for x in xs], 0.02),
        padded([y for _, ys in curves.values() for y in ys]),
    )
    out = frame.axes(xlabel, ylabel)
    for name, (xs, ys) in curves.items():
        steps, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if not math.isfinite(y):
                pen = "M"
                continue
            steps.append(f"{pen}{frame.x(x)},{frame.y(y)}")
            pen = "L"
        last = next((y for y in reversed(ys) if math.isfinite(y)), math.nan)
        words = escape(f"{name}: {last:.4g} at the end")
        dash = styles[name] % len(SHAPES)
        out.append(
            f'<g class="ln c{dash}" role="img" aria-label="{words}"><title>{words}</title>'
            f'<path d="{"".join(steps)}"/></g>'
        )
    return _svg(title, out)


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns pairs at equal steps, 200 or a few less, and the last."""
    stride = math.ceil(len(xs) / 200) or 1
    index = sorted({*range(0, len(xs), stride), len(xs) - 1} - {-1})
    return [xs[i] for i in index], [ys[i] for i in index]


def swatch(style: int, *, line: bool = False) -> Markup:
    """Returns a legend's marker or, of a curve, a piece of its line."""
    style %= len(SHAPES)
    kind, outline, width = ("ln", "M-14,0H14", 30) if line else ("pt", SHAPES[style], 16)
    return Markup(
        f'<svg class="swatch" width="{width}" height="16" viewBox="{-width / 2:g} -8 {width} 16" '
        f'aria-hidden="true"><g class="{kind} c{style}"><path d="{outline}"/></g></svg>'
    )


def _svg(title: str, parts: Sequence[str]) -> Markup:
    head = (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="group" aria-label="{escape(title)}">'
    )
    return Markup(head + "".join(parts) + "</svg>")
