"""Named values as horizontal bars: as SVG for a page, as characters for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dtrain.common.lazy_dataclass import dataclass
from dtrain.show.charts import WIDTH

LETTER = 6.4
"""Width of a letter, in units of the chart."""
LONGEST_LABEL = 52
"""Letters; longer ones are cut and shown in full where the mouse rests."""
ROW, RIGHT = 24, 96
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class NamedValue:
    """A bar of a chart."""

    label: str
    value: float
    text: str
    """The value for people."""
    color: str = "--line-0"
    """A CSS variable."""
    spread: tuple[float, float] | None = None
    """Drawn as a thin line around its end."""
    part: float = 0.0
    """Of the value, drawn fainter at its end."""


def svg(title: str, bars: Sequence[NamedValue]) -> str:
    """The bars below each other, from zero; '' if there are none."""
    if not bars:
        return ""
    left = 14 + LETTER * min(LONGEST_LABEL, max(len(bar.label) for bar in bars))
    highest = max(max(bar.value, *(bar.spread or (0.0,))) for bar in bars) or 1.0
    scale = (WIDTH - RIGHT - left) / highest
    rows = "".join(_row(bar, 4 + ROW * number, left, scale) for number, bar in enumerate(bars))
    return f'<svg viewBox="0 0 {WIDTH} {8 + ROW * len(bars)}" role="img" aria-label="{escape(title)}">{rows}</svg>'


def _row(bar: NamedValue, top: int, left: float, scale: float) -> str:
    middle, color = top + ROW / 2, f"fill:var({bar.color})"
    whole, later = bar.value * scale, bar.part * scale
    label = bar.label if len(bar.label) <= LONGEST_LABEL else f"{bar.label[: LONGEST_LABEL - 1]}…"
    parts = [
        f'<text x="{left - 8:.1f}" y="{middle + 4}" class="end">{escape(label)}<title>{escape(bar.label)}</title></text>',
        f'<rect x="{left:.1f}" y="{top + 4}" width="{max(1.0, whole - later):.1f}" height="{ROW - 8}" style="{color}"/>',
    ]
    if later:
        parts.append(
            f'<rect x="{left + whole - later:.1f}" y="{top + 4}" width="{later:.1f}" height="{ROW - 8}" style="{color}" opacity=".45"/>'
        )
    end = left + whole
    if bar.spread:
        low, high = (left + value * scale for value in bar.spread)
        end = max(end, high)
        parts.append(
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" class="whisker"/>'
        )
    parts.append(f'<text x="{end + 7:.1f}" y="{middle + 4}">{escape(bar.text)}</text>')
    return "".join(parts)


def text(bars: Sequence[NamedValue], width: int) -> str:
    """The bars as characters, in lines of at most about this width."""
    names, values = max(len(bar.label) for bar in bars), max(len(bar.text) for bar in bars)
    room = max(10, width - names - values - 4)
    highest = max(bar.value for bar in bars) or 1.0
    lines = []
    for bar in bars:
        eighths = round(8 * room * bar.value / highest)
        drawn = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
        lines.append(f"{bar.label:<{names}}  {bar.text:>{values}}  {drawn}".rstrip())
    return "\n".join(lines)
