"""Curves drawn with characters: in colours with braille dots in a terminal, with a letter for each curve in a pipe. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.metric_curves import Point
from dtrain.show.charts import LOG_FROM, number

COLORS = (34, 33, 32, 35, 36, 31, 94, 93)
"""SGR codes, one after another."""
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character, by row and column."""


@dataclass(frozen=True)
class Plot:
    """Several curves over the same axes."""

    curves: Sequence[tuple[str, Sequence[Point]]]
    """(label, points)."""
    width: int = 72
    height: int = 14
    colored: bool = False

    def text(self) -> str:
        """The picture with its axes and its legend; '' if there is nothing to draw."""
        points = [point for _, curve in self.curves for point in curve]
        if not points:
            return ""
        left, right = min(at for at, _ in points), max(at for at, _ in points)
        low, high = min(value for _, value in points), max(value for _, value in points)
        logarithmic = low > 0 and high / low >= LOG_FROM
        cells = self._cells((left, right), (low, high), logarithmic=logarithmic)
        lines = [
            f"{number(high) if row == 0 else number(low) if row == self.height - 1 else '':>9} ┤{self._line(cells[row])}"
            for row in range(self.height)
        ]
        end = number(right)
        ruler = f"{'':9} └{'─' * self.width}\n{'':11}{number(left)}{end:>{max(1, self.width - len(number(left)))}}"
        scale = "  (logarithmic)" if logarithmic else ""
        return "\n".join([*lines, ruler + scale, *self._legend()])

    def _cells(self, across: Point, up: Point, *, logarithmic: bool) -> list[list[tuple[int, int]]]:
        """For each cell its dots, and the last curve that is in it."""
        cells = [[(0, -1)] * self.width for _ in range(self.height)]
        for index, (_, curve) in enumerate(self.curves):
            before: tuple[int, int] | None = None
            for at, value in curve:
                x = _place(at, *across, self.width * 2 - 1)
                y = self.height * 4 - 1 - _place(value, *up, self.height * 4 - 1, logarithmic=logarithmic)
                for column, row in _between(before or (x, y), (x, y)):
                    dots = cells[row // 4][column // 2][0] | DOTS[row % 4][column % 2]
                    cells[row // 4][column // 2] = (dots, index)
                before = (x, y)
        return cells

    def _line(self, cells: Sequence[tuple[int, int]]) -> str:
        if self.colored:
            return "".join(_painted(chr(0x2800 + dots), index) if index >= 0 else " " for dots, index in cells)
        return "".join(chr(ord("a") + index % 26) if index >= 0 else " " for _, index in cells).rstrip()

    def _legend(self) -> list[str]:
        signs = [_painted("━", i) if self.colored else chr(ord("a") + i % 26) for i in range(len(self.curves))]
        return [f"{'':11}{sign} {label}" for sign, (label, _) in zip(signs, self.curves, strict=True)]


def _painted(text: str, index: int) -> str:
    return f"\x1b[{COLORS[index % len(COLORS)]}m{text}\x1b[0m"


def _place(value: float, low: float, high: float, most: int, *, logarithmic: bool = False) -> int:
    if high <= low:
        return most // 2
    share = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
    return round(share * most)


def _between(one: tuple[int, int], other: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a line."""
    steps = max(abs(other[0] - one[0]), abs(other[1] - one[1]), 1)
    return [
        (round(one[0] + (other[0] - one[0]) * part / steps), round(one[1] + (other[1] - one[1]) * part / steps))
        for part in range(steps + 1)
    ]
