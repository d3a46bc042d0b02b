"""Means of named numbers over ranks that need not have the same names."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.strategies import means

Rank = tuple[Mapping[str, float], Mapping[str, float] | None]


def everywhere(ranks: Sequence[Rank]) -> list[dict[str, float]]:
    """What every rank gets, each in a thread; a collective that not all of them enter alike fails."""
    barrier = threading.Barrier(len(ranks), timeout=10)
    given: list[Any] = [None] * len(ranks)

    def gather(rank: int, value: Any) -> list[Any]:
        barrier.wait()
        given[rank] = value
        barrier.wait()
        found = list(given)
        barrier.wait()
        return found

    def totals(rank: int, numbers: Sequence[float]) -> list[float]:
        rows = gather(rank, list(numbers))
        assert len({len(row) for row in rows}) == 1
        return [float(sum(column)) for column in zip(*rows, strict=True)]

    def one(rank: int) -> dict[str, float]:
        values, weights = ranks[rank]
        found: dict[str, float] = means.by_name(
            values, weights, len(ranks), lambda numbers: totals(rank, numbers), lambda names: gather(rank, names)
        )
        return found

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, range(len(ranks))))


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([({"easy": 100.0}, None), ({"hard": 7.0}, None)], {"easy": 100.0, "hard": 7.0}),
        ([({"a": 1.0, "b": 2.0}, None), ({"b": 4.0, "a": 3.0}, None)], {"a": 2.0, "b": 3.0}),
        ([({"loss": 1.0, "auc": 0.9}, None), ({"loss": 3.0}, None)], {"loss": 2.0, "auc": 0.9}),
        ([({"loss": 1.0}, None), ({}, None)], {"loss": 1.0}),
        ([({}, None), ({}, None)], {}),
        ([({"top": 1.0}, {"top": 3}), ({"top": 0.0}, {"top": 1})], {"top": 0.75}),
    ],
)
def test_a_mean_is_of_the_ranks_that_have_the_name(ranks: list[Rank], expected: dict[str, float]) -> None:
    for found in everywhere(ranks):
        assert found == expected


NUMBERS = st.dictionaries(st.sampled_from(["a", "b", "c", "é\u2028"]), st.floats(-1e6, 1e6), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=4))
def test_every_rank_gets_the_same_and_nothing_is_mixed_up(values: list[dict[str, float]]) -> None:
    first, *others = everywhere([(one, None) for one in values])
    assert all(other == first for other in others)
    for name in {name for one in values for name in one}:
        there = [one[name] for one in values if name in one]
        assert first[name] == pytest.approx(sum(there) / len(there))
    assert set(first) == {name for one in values for name in one}
