"""The batches that a trained and an exported model are shown, of two sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dtrain.api.exporter import Call, Inference
from dtrain.common.lazy_dataclass import dataclass
from dtrain.data.batches import Batches
from dtrain.data.stream import Stream

BATCH, OTHER_BATCH = 16, 5
"""Samples of the two sizes that are tried."""
MOST_SAMPLES = 256


@dataclass(frozen=True)
class Shown:
    """A batch that the trained model was shown."""

    size: int
    """Samples."""
    use: Callable[[], Any] | None
    """Has the task compute its metrics (or loss) of it; None if the inputs are the task's example."""
    call: Call


def batches_of(data: Batches | Stream) -> Iterator[tuple[Any, int]]:
    """Batches of both sizes, each with the number of its samples; a few samples come more than once."""
    return _of_stream(data) if isinstance(data, Stream) else _of_size(data)


def resized(inference: Inference, call: Call) -> Iterator[Shown]:
    """A call whose samples are repeated, or left out, to be of both sizes."""
    for size in (BATCH, OTHER_BATCH):
        inputs = [np.resize(array, (size, *array.shape[1:])) if array.ndim else array for _, array in call.inputs]
        names = [name for name, _ in call.inputs]
        yield Shown(size, None, Call(tuple(zip(names, inputs, strict=True)), inference.run(call, inputs), call.form))


def _of_size(data: Any) -> Iterator[tuple[Any, int]]:
    total = min(data.size, MOST_SAMPLES)
    first = min(BATCH, max(2, total))
    yield data.fetch(np.arange(first) % data.size), first
    other = min(OTHER_BATCH, first - 1)
    yield data.fetch(np.arange(first, first + other) % data.size), other
    for begin in range(first + other, total - first + 1, first):
        yield data.fetch(np.arange(begin, begin + first)), first


def _of_stream(data: Stream) -> Iterator[tuple[Any, int]]:
    for size, limit in ((BATCH, BATCH), (OTHER_BATCH, OTHER_BATCH)):
        yield from ((batch, count) for batch, count in data.one_epoch(size, 0, 1, limit) if count)
