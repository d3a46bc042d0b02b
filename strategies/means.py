"""Means of named numbers over ranks that need not have the same names. Importing this module imports no framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from blake3 import blake3

DIGEST_BITS = 20
"""Size of each of two digests of the names: squares of such numbers add up exactly in a double over thousands of ranks."""


def by_name(
    values: Mapping[str, float],
    weights: Mapping[str, float] | None,
    ranks: int,
    totals: Callable[[Sequence[float]], list[float]],
    everyones: Callable[[list[str]], list[list[str]]],
) -> dict[str, float]:
    """Collective. The mean of each name over the ranks that have it, weighted (by 1 if no weights are given).

    `totals` sums numbers over the ranks, as many on each; `everyones` gathers the names of all ranks, and is called only if they differ.
    The names of rank 0 come first, in its order."""
    names = sorted(values)
    if ranks == 1:
        return {name: value if weights is None or weights.get(name) else 0.0 for name, value in values.items()}
    hashed = int.from_bytes(blake3("\n".join(names).encode()).digest()[:8], "big")
    digests = [hashed >> DIGEST_BITS & (1 << DIGEST_BITS) - 1, hashed & (1 << DIGEST_BITS) - 1]
    sums = [int(total) for total in totals([*digests, *(digest * digest for digest in digests)])]
    # The mean of the squares is the square of the mean only if all are equal.
    if any(squares * ranks != total * total for total, squares in zip(sums[:2], sums[2:], strict=True)):
        found = everyones(list(values))
        names = list(dict.fromkeys(name for one in found for name in one))
    elif not names:
        return {}
    given = [0.0 if name not in values else 1.0 if weights is None else weights.get(name, 0.0) for name in names]
    numbers = [values[name] * weight if name in values else 0.0 for name, weight in zip(names, given, strict=True)]
    summed = totals([*numbers, *given])
    means = dict(zip(names, zip(summed[: len(names)], summed[len(names) :], strict=True), strict=True))
    order = dict.fromkeys((*values, *names))
    return {name: means[name][0] / means[name][1] if means[name][1] else 0.0 for name in order}
