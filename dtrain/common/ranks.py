"""Formats ranks for sentences."""

from __future__ import annotations

from collections.abc import Sequence


def ranks(numbers: Sequence[int]) -> str:
    """Ranks in rising order: `rank 3`, `ranks 0 to 6, 9`."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    texts = [str(g[0]) if len(g) == 1 else f"{g[0]}, {g[1]}" if len(g) == 2 else f"{g[0]} to {g[-1]}" for g in groups]
    return f"{'rank' if len(numbers) == 1 else 'ranks'} {', '.join(texts)}"
