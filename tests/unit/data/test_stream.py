"""A stream by position: the same samples from wherever it is begun, in any process, and every held-out sample once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from dtrain.common.errors import UserError, notes_of
from dtrain.data.stream import Stream

SIZE = 7


class Shuffled:
    """Another order each time."""

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return ((number, random.random()) for number in random.sample(range(SIZE), SIZE))


class Counter:
    """With a state, which is told how often it is asked for."""

    def __init__(self) -> None:
        self.next = 0
        self.epoch = 0
        self.read: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        while self.next < SIZE:
            self.next += 1
            self.read.append(self.next - 1)
            yield self.next - 1 + 100 * self.epoch
        self.next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def generator() -> Iterator[int]:
    yield from range(SIZE)


def made(make: Callable[[], Any], *, again: bool = True) -> Stream:
    return Stream(make(), seed=3, name="t.py: T.data('train')", again=make if again else None)


def read(stream: Stream, begin: int, count: int) -> list[Any]:
    batch = stream.fetch(np.arange(begin, begin + count), begin)
    parts = batch if isinstance(batch, tuple) else (batch,)
    samples: list[Any] = np.stack(parts, axis=1).tolist()
    return samples


@pytest.mark.parametrize("make", [Shuffled, Counter, generator])
def test_samples_follow_from_their_position_over_epochs(make: Callable[[], Any]) -> None:
    expected = read(made(make), 0, 5 * SIZE)
    for begin in (0, SIZE - 1, SIZE, 3 * SIZE + 2):
        assert read(made(make), begin, 5) == expected[begin : begin + 5]
    stream = made(make)
    assert read(stream, 9, 2) == expected[9:11]
    assert read(stream, 1, 2) == expected[1:3], "it can be read once more"


@pytest.mark.parametrize("position", [3, SIZE, 2 * SIZE + 1])
def test_a_state_is_where_reading_goes_on(position: int) -> None:
    expected = read(made(Counter), 0, 4 * SIZE)
    stream = made(Counter)
    read(stream, 0, 2)
    stream.keep(stream.state_at(position))
    saved = stream.state_dict()
    read(stream, position, 4)
    data = Counter()
    restored = Stream(data, seed=3, name="data")
    restored.load_state_dict(saved)
    assert read(restored, position + 1, 4) == expected[position + 1 : position + 5]
    assert len(data.read) <= 6, "only the sample in between was skipped"


@pytest.mark.parametrize(
    ("size", "parts", "limit"), [(2, 2, None), (3, 2, None), (4, 3, None), (2, 2, 5), (7, 1, None)]
)
def test_every_held_out_sample_counts_once_in_as_many_batches_for_each(
    size: int, parts: int, limit: int | None
) -> None:
    found = [list(made(generator).one_epoch(size, part, parts, limit)) for part in range(parts)]
    assert len({len(batches) for batches in found}) == 1
    counted = [number for batches in found for batch, count in batches for number in batch[:count].tolist()]
    assert sorted(counted) == list(range(limit or SIZE))


def test_an_evaluation_can_be_repeated() -> None:
    stream = made(generator)
    once, again = ([batch.tolist() for batch, _ in stream.one_epoch(3, 0, 1, None)] for _ in range(2))
    assert once == again


def test_an_error_names_the_sample() -> None:
    def broken() -> Iterator[float]:
        yield 1.0
        raise ValueError("cut off")

    with pytest.raises(ValueError, match="cut off") as raised:
        read(made(broken), 0, 2)
    assert notes_of(raised.value) == ["sample 1 of t.py: T.data('train')"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (iter(()), "has no samples: it is empty"),
        (iter([1, 2]), "ended after 2 samples and gives none when it is iterated once more"),
        ({1, 2}, "gave a set, whose order differs between processes: give sorted"),
    ],
)
def test_what_cannot_be_trained_on_is_one_line(data: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(Stream(data, seed=0, name="data"), 0, 4)
