"""Charts for pages that open without a network: lines, a timeline of spans, marks. Their shapes are SVG that is as wide as the page has
room, their texts are HTML, which keeps its size. Pure; colours are CSS variables of `page`."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from html import escape

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.metric_curves import Curve, Point
from dtrain.show.render import seconds

WIDTH = 920
"""Of a chart, in its own units; the page stretches it."""
TOP, BOTTOM = 17, 24
"""Room for what stands above and below, in pixels."""
MOST_POINTS = 2400
"""Most points of one line: about two for each pixel that it is drawn with."""
MEANS = 300
"""Number of means in whose place a line with more points is drawn, in a band of its extremes."""
MOST_DOTS = 60
"""Of a dashed line, whose points are marked."""
LOG_FROM = 200.0
"""Ratio of the highest to the lowest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    label: str
    points: Sequence[Point]
    color: str = "--line-0"
    """A CSS variable."""
    dashed: bool = False
    band: Sequence[Point] = ()
    """Drawn faintly behind it."""
    breaks: Sequence[float] = ()
    """Positions, in order, over which it is not drawn: another attempt begins."""


def line_of(
    label: str, curve: Curve, color: str = "--line-0", *, dashed: bool = False,
    place: Callable[[float], float] = float, scale: float = 1.0, breaks: Sequence[float] = (),
) -> Line:  # fmt: skip
    """A curve as a line; one with very many points as its means in a band of its extremes."""

    def drawn(points: Sequence[Point]) -> list[Point]:
        return [(place(at), value * scale) for at, value in points]

    extremes = drawn(curve.thinned(MOST_POINTS))
    if len(curve) <= MOST_POINTS:
        return Line(label, extremes, color, dashed, breaks=breaks)
    return Line(label, drawn(curve.means(MEANS)), color, dashed, extremes, breaks)


@dataclass(frozen=True)
class Marker:
    """A vertical line at a position."""

    at: float
    text: str
    color: str = "--mark"


@dataclass(frozen=True)
class Axis:
    """A range of values and where it is drawn."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(value) - low) / (high - low) if high > low else 0.5
        return round(self.begin + share * (self.end - self.begin), 1)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def number(value: float) -> str:
    """A value at an axis."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if unit == "k" else limit
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A share in percent at an axis."""
    return f"{value:.4g} %"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in a range, 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: float, high: float, most: int) -> list[float]:
    """Return the ticks that are whole numbers: steps, samples and workers come in one piece."""
    return [value for value in ticks(low, high, most) if value.is_integer()]


def time_ticks(low: float, high: float, most: int) -> list[float]:
    """Round durations in a range of seconds."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
    rough = (high - low) / most
    if rough < 1:
        return ticks(low, high, most)
    step = next((one for one in steps if one >= rough), math.ceil(rough / 86400) * 86400)
    return [float(step * index) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, len(powers) // 6)
    return [10.0**power for power in powers if low <= 10.0**power <= high and power % every == 0]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis of steps (or other numbers) or of seconds."""

    title: str
    lines: Sequence[Line]
    low: float
    """Lowest value of the horizontal axis."""
    high: float
    markers: Sequence[Marker] = ()
    height: int = 190
    timed: bool = False
    """Whether the horizontal axis is in seconds."""
    whole: bool = True
    """Whether it has whole numbers alone."""
    from_zero: bool = False
    text: Callable[[float], str] = number
    """A value of the vertical axis for people."""

    def svg(self) -> str:
        """The chart; '' if none of its lines has a point."""
        values = sorted(value for line in self.lines for _, value in line.points)
        if not values:
            return ""
        extremes = [value for line in self.lines for _, value in line.band]
        across = Axis(self.low, self.high, 0, WIDTH)
        up = self._up(values, extremes)
        rows = _log_ticks(up.low, up.high) if up.logarithmic else ticks(up.low, up.high, 5)
        chosen = time_ticks if self.timed else whole_ticks if self.whole else ticks
        columns = chosen(self.low, self.high, 8)
        parts = [f'<path class="grid" d="M0 {up.place(value)}H{WIDTH}"/>' for value in rows]
        parts += [self._marker(marker, across) for marker in self.markers]
        parts += [_drawn(line, across, up) for line in self.lines if line.points]
        texts = [f'<span class="y" style="top:{up.place(value)}px">{escape(self.text(value))}</span>' for value in rows]
        scale = f"{across.low!r},{across.high!r},{int(self.timed)}"
        rise = f"{up.low!r},{up.high!r},{up.begin},{int(up.logarithmic)}"
        return _figure(
            self.title, parts, [*texts, *_below(across, columns, timed=self.timed)], self.height - TOP - BOTTOM,
            f' data-across="{scale}" data-up="{rise}"',
        )  # fmt: skip

    def _up(self, values: Sequence[float], extremes: Sequence[float]) -> Axis:
        """Return the vertical scale, from the lowest to the highest value; logarithmic if most of them lie that far
        apart."""
        low, high = min(values[0], *extremes, values[0]), max(values[-1], *extremes, values[-1])
        few = len(values) // 50
        logarithmic = not self.from_zero and low > 0 and values[-1 - few] / values[few] >= LOG_FROM
        if self.from_zero:
            low, high = min(0.0, low), high or 1.0
        if not logarithmic:
            room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
            low, high = (low if self.from_zero else low - room), high + room
        return Axis(low, high, self.height - TOP - BOTTOM, 0, logarithmic)

    def _marker(self, marker: Marker, across: Axis) -> str:
        x = across.place(marker.at)
        return (
            f'<path class="marker" style="stroke:var({marker.color})" d="M{x} 0V{self.height - TOP - BOTTOM}">'
            f"<title>{escape(marker.text)}</title></path>"
        )


def _below(across: Axis, values: Sequence[float], *, timed: bool) -> Iterator[str]:
    """The texts below a chart."""
    for value in values:
        text = seconds(value) if timed else number(value)
        yield f'<span class="x" style="left:{across.place(value) / WIDTH:.2%}">{escape(text)}</span>'


def _figure(title: str, shapes: Sequence[str], texts: Sequence[str], height: int, data: str = "") -> str:
    """A chart: shapes that are stretched to the width there is, and texts beside them that are not."""
    return (
        f'<div class="chart" style="height:{height}px"{data}><svg viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{"".join(shapes)}</svg>{"".join(texts)}</div>'
    )


def _drawn(line: Line, across: Axis, up: Axis) -> str:
    dash = ' stroke-dasharray="5 3"' if line.dashed else ""
    few = line.points if len(line.points) == 1 or (line.dashed and len(line.points) <= MOST_DOTS) else ()
    dots = "".join(f"M{across.place(at)} {up.place(value)}h0" for at, value in few)
    behind = f'<path class="band" d="{_path(line.band, line.breaks, across, up)}"/>' if line.band else ""
    marked = f'<path class="dots" d="{dots}"/>' if dots else ""
    return (
        f'<g style="--color:var({line.color})">{behind}<path class="line" data-label="{escape(line.label)}" '
        f'd="{_path(line.points, line.breaks, across, up)}"{dash}/>{marked}</g>'
    )


def _path(points: Sequence[Point], breaks: Sequence[float], across: Axis, up: Axis) -> str:
    """Draw from point to point, but not over a break."""
    found, before = [], -1
    for at, value in points:
        part = bisect_right(breaks, at)
        found.append(f"{'M' if part != before else 'L'}{across.place(at):g},{up.place(value):g}")
        before = part
    return "".join(found)


@dataclass(frozen=True)
class Bar:
    """An interval in a row of a timeline."""

    row: int
    begin: float
    end: float
    kind: str
    """Names its colour: `--kind-…`."""


@dataclass(frozen=True)
class BarChart:
    """Rows of intervals over an axis of seconds; intervals too short to be seen are drawn together."""

    rows: Sequence[str]
    bars: Sequence[Bar]
    low: float
    high: float
    markers: Sequence[Marker] = ()
    row_height: int = 20

    def svg(self) -> str:
        """Draw the timeline."""
        across = Axis(self.low, self.high, 0, WIDTH)
        texts = [
            f'<span class="y" style="top:{(row + 0.5) * self.row_height}px">{escape(text)}</span>'
            for row, text in enumerate(self.rows)
        ]
        parts: list[str] = []
        for row in range(len(self.rows)):
            own = [bar for bar in self.bars if bar.row == row]
            parts += [self._rect(bar, across) for bar in _together(own, (self.high - self.low) / (WIDTH * 1.5))]
        texts += [
            f'<span class="flag" style="left:{across.place(marker.at) / WIDTH:.2%};color:var({marker.color})" '
            f'title="{escape(marker.text)}">▼</span>'
            for marker in self.markers
        ]
        texts += _below(across, time_ticks(self.low, self.high, 8), timed=True)
        return _figure("timeline", parts, texts, self.row_height * len(self.rows))

    def _rect(self, bar: Bar, across: Axis) -> str:
        x, y = across.place(bar.begin), bar.row * self.row_height + 2
        width = max(0.6, round(across.place(bar.end) - x, 1))
        text = f"{bar.kind.replace('_', ' ')}: {seconds(bar.end - bar.begin)}"
        return (
            f'<rect x="{x}" y="{y}" width="{width}" height="{self.row_height - 4}" '
            f'style="fill:var(--kind-{bar.kind})"><title>{escape(text)}</title></rect>'
        )


def _together(bars: Sequence[Bar], least: float) -> list[Bar]:
    """Neighbours that are shorter than `least` as one, of the kind that takes most of it."""
    found: list[Bar] = []
    pending: list[Bar] = []
    for bar in bars:
        if pending and (bar.begin - pending[0].begin > least or bar.end - bar.begin >= least):
            found.append(_merged(pending))
            pending = []
        if bar.end - bar.begin >= least:
            found.append(bar)
        else:
            pending.append(bar)
    return [*found, _merged(pending)] if pending else found


def _merged(bars: Sequence[Bar]) -> Bar:
    lengths: dict[str, float] = {}
    for bar in bars:
        lengths[bar.kind] = lengths.get(bar.kind, 0.0) + bar.end - bar.begin
    return Bar(bars[0].row, bars[0].begin, bars[-1].end, max(lengths, key=lambda kind: lengths[kind]))
