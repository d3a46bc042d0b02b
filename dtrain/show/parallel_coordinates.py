"""Parallel coordinates as SVG: an upright axis for each name, and a line for each row through its values. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dtrain.common.lazy_dataclass import dataclass
from dtrain.show.charts import TOP, WIDTH, Axis, number

HEIGHT, BOTTOM, LEFT = 260, 34, 40
FAINTEST = 0.12
"""Opacity of the worst row."""


@dataclass(frozen=True)
class Column:
    """One axis: of numbers or, with `choices`, of those in their order."""

    label: str
    values: Sequence[float | str]
    """One for each row."""
    choices: Sequence[str] = ()
    logarithmic: bool = False

    def axis(self) -> Axis:
        """Where its values are drawn."""
        begin, end = HEIGHT - BOTTOM, TOP + 6
        if self.choices:
            return Axis(0, max(1, len(self.choices) - 1), begin, end)
        numbers = [float(value) for value in self.values]
        return Axis(min(numbers), max(numbers), begin, end, self.logarithmic and min(numbers) > 0)

    def place(self, value: float | str, axis: Axis) -> float:
        """Where a value is drawn."""
        return axis.place(self.choices.index(str(value)) if self.choices else float(value))

    def marks(self, axis: Axis) -> list[tuple[float, str]]:
        """Places and texts beside the axis: its choices, or its ends."""
        if self.choices:
            return [(self.place(choice, axis), choice) for choice in self.choices]
        return [(axis.place(end), number(end)) for end in dict.fromkeys((axis.low, axis.high))]


def svg(title: str, columns: Sequence[Column], names: Sequence[str]) -> str:
    """The rows, the best first, which are drawn the fainter the worse they are; '' with less than two columns or without a row. `names`: of
    the rows, shown where the mouse rests."""
    if len(columns) < 2 or not names:
        return ""
    right = WIDTH - LEFT - 40
    across = [LEFT + right * index / (len(columns) - 1) for index in range(len(columns))]
    axes = [column.axis() for column in columns]
    lines = []
    for row in reversed(range(len(names))):
        points = [
            f"{x:.1f},{column.place(column.values[row], axis):g}"
            for x, column, axis in zip(across, columns, axes, strict=True)
        ]
        opacity = 1 - (1 - FAINTEST) * row / max(1, len(names) - 1)
        lines.append(
            f'<path class="line" style="--color:var(--line-0)" opacity="{opacity:.2f}" d="M{"L".join(points)}">'
            f"<title>{escape(names[row])}</title></path>"
        )
    drawn = [_axis(x, column, axis) for x, column, axis in zip(across, columns, axes, strict=True)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join((*lines, *drawn))}</svg>'
    )


def _axis(x: float, column: Column, axis: Axis) -> str:
    marks = "".join(
        f'<text x="{x + 5:.1f}" y="{place + 4:.1f}">{escape(text)}</text>' for place, text in column.marks(axis)
    )
    label = f'<text x="{x:.1f}" y="{HEIGHT - 8}" class="mid">{escape(column.label)}</text>'
    return f'<path class="grid" d="M{x:.1f} {axis.end}V{axis.begin}"/>{marks}{label}'
