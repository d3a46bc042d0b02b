"""The bounds of the numbers in a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Limit:
    """The bounds of a number, in the form that pydantic reads (`annotated_types.GroupedMetadata`), which costs only who checks them."""

    __is_annotated_types_grouped_metadata__ = True

    def __init__(self, *, above: int | None = None, least: int | None = None, most: int | None = None) -> None:
        self.above = above
        self.least = least
        self.most = most

    def __iter__(self) -> Iterator[Any]:
        import annotated_types

        if self.above is not None:
            yield annotated_types.Gt(self.above)
        if self.least is not None:
            yield annotated_types.Ge(self.least)
        if self.most is not None:
            yield annotated_types.Le(self.most)


COUNT = Limit(above=0, most=1_000_000)
"""Of workers, nodes, shards and other things that are started or kept."""
STEPS = Limit(above=0, most=10**12)
SAMPLES = Limit(above=0, most=10**9)
SEED = Limit(least=0, most=2**63 - 1)
POSITIVE = Limit(above=0, most=10**12)
NOT_NEGATIVE = Limit(least=0, most=10**6)
SECONDS = Limit(above=0, most=10**9)
MEGABYTES = Limit(above=0, most=10**6)
MEGABYTES_OR_NONE = Limit(least=0, most=10**6)
THREADS = Limit(above=0, most=4096)
DATA_WORKERS = Limit(least=0, most=256)
EXIT_CODE = Limit(least=1, most=255)
FACTOR = Limit(above=1, most=10**12)
