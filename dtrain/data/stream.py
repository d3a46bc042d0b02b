"""A stream of samples: an iterable whose samples come only one after the other, in an order of its own.

Every worker reads the whole stream and keeps the samples of its own part of each global batch, by their position in the
endless row of epochs. What is trained on is therefore the same at any number of workers. Of a stream that is split by rank already
(`data.sharded`), each worker reads its own alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Set
from itertools import islice
from typing import Any

from dtrain.common.errors import UserError, add_note
from dtrain.common.lazy_dataclass import dataclass
from dtrain.data.batches import COMPARED, Batches, Collate, as_batch, checksum, is_loader, is_stream
from dtrain.data.randomness import seed_all
from dtrain.data.sampler import UNKNOWN_SIZE, Indices, mix, sample_seed
from dtrain.job.task_answers import gave

END = object()
BATCHING = ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset", "_RaggedBatchDataset")
IN_ORDER = ("_PrefetchDataset", "_OptionsDataset", "_MapDataset", "_ParallelMapDataset", "CacheDataset", "_FilterDataset", "_RepeatDataset",
            "_TakeDataset", "_SkipDataset", "_ShuffleDataset")  # fmt: skip
"""Stages of a `tf.data` pipeline whose elements are batches if those before them are."""


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands, and the state that it gave there."""

    position: int
    """Samples before it, in the endless row of epochs."""
    epoch: int
    state: Any


@dataclass(frozen=True)
class OwnPart:
    """The samples of each global batch that a rank takes from a stream of its own."""

    rank: int
    global_batch: int
    first: int
    count: int

    def position(self, begin: int) -> int:
        """Return the position in the rank's stream of what has this position in the row of global batches."""
        step, within = divmod(begin, self.global_batch)
        return step * self.count + within - self.first


class Stream:
    """The samples of an iterable by their position. Global random generators are seeded before each sample.

    `again` makes the iterable once more, for the next epoch of one that can be iterated only once, and for data workers:
    a process that was forked may not read on in a file of its parent's. Raises `UserError` for a stream that is empty."""

    size = UNKNOWN_SIZE
    in_memory = False

    def __init__(
        self, data: Any, *, seed: int, name: str, collate: Collate | None = None, again: Callable[[], Any] | None = None
    ) -> None:
        self._seed = seed
        self._name = name
        self._again = again
        self._collate = collate or (data.collate_fn if is_loader(data) else None)
        self._data = self._checked(data)
        self._iterator: Iterator[Any] | None = None
        self._process = os.getpid()
        self._kind = "a tf.data.Dataset" if _is_tf_data(self._data) else gave(data)
        self._position = self._epoch = 0
        self._kept: StreamState | None = None
        self._own: OwnPart | None = None
        self.content = 0
        """The sum of the checksums of the samples of a batch: the same however they are spread over workers."""
        begins_anew = again is not None or not (self.has_state or isinstance(self._data, Iterator))
        self.forks = begins_anew and not _is_tf_data(self._data)
        """Whether data workers can read it."""

    @property
    def has_state(self) -> bool:
        """Whether it can be restored without reading it from its beginning: checkpoints hold one state for all ranks."""
        return self._own is None and all(
            callable(getattr(self._data, method, None)) for method in ("state_dict", "load_state_dict")
        )

    @property
    def name(self) -> str:
        """Name for messages: `digits.py: Digits.data('train')`."""
        return self._name

    def read_own(self, part: OwnPart) -> None:
        """Take from now on the next samples of this rank's own stream for its part of each batch."""
        self._own = part
        self._seed = mix(self._seed, part.rank)

    def beginning(self) -> int | None:
        """A number that follows from the first samples; None if they cannot be read without moving the stream (one of `tf.data` keeps
        count of how often it is begun)."""
        if _is_tf_data(self._data) or (self._again is None and (self.has_state or isinstance(self._data, Iterator))):
            return None
        data = self._data if self._again is None else self._checked(self._again())
        if isinstance(data, Iterator) and data is self._data:
            return None
        seed_all(sample_seed(self._seed, 0))
        try:
            return checksum(list(islice(iter(data), COMPARED)))
        except Exception:  # noqa: BLE001  it is raised again, with its place, when the training reads there
            return None

    @property
    def note(self) -> str:
        """Return a warning that says what is exact and what a restart costs."""
        restart = (
            "its own state_dict is saved with the checkpoints, and a restart is as exact as that is"
            if self.has_state
            else "a restart reads the samples that were trained on again and skips them, which takes time "
            "(methods state_dict and load_state_dict would save it)"
        )
        if self._own:
            return (
                f"{self._name} gave {self._kind}, a stream of each rank's own (data.sharded): what is trained on depends on the number of "
                f"workers, which the run keeps; {restart}"
            )
        return (
            f"{self._name} gave {self._kind}, a stream: each worker reads all of it and trains on its own part of every "
            f"batch, in the stream's order (train.shuffle does not apply), the same at any number of workers; {restart}"
        )

    def fetch(self, indices: Indices, begin: int = 0) -> Any:
        """The batch of as many samples as `indices` has, from the position `begin` on."""
        self._seek(self._own.position(begin) if self._own else begin)
        samples = [self._next() for _ in range(len(indices))]
        self.content += sum(map(checksum, samples))
        return self._batch(samples, begin)

    def one_epoch(self, size: int, part: int, parts: int, limit: int | None) -> Iterator[tuple[Any, int]]:
        """The samples of the first epoch, at most `limit`, in batches of `size`, of which each of `parts` readers gets every
        `parts`-th, with the number of samples that count; each gets as many batches, some of them fillers (0)."""
        self._restart(None)
        samples = islice(iter(self._next_of_epoch, END), limit)
        filler: list[Any] = []
        while turn := list(islice(samples, size * parts)):
            filler = filler or turn[:size]
            own = turn[part * size : (part + 1) * size]
            yield self._batch(own or filler, 0), len(own)
        if not filler:
            raise UserError(f"{self._name} has no samples: it is empty")

    def state_at(self, position: int) -> StreamState | None:
        """Return the stream's state before the sample at this position; None if it has none."""
        if not self.has_state:
            return None
        self._seek(position)
        return StreamState(position, self._epoch, copy.deepcopy(self._data.state_dict()))

    def keep(self, state: StreamState | None) -> None:
        """Restore from this state, which came from a data worker or a checkpoint, what is read from its position on."""
        self._kept = state or self._kept

    def state_dict(self) -> dict[str, Any]:
        """The state that was kept last, for a checkpoint."""
        kept = self._kept
        return {"position": kept.position, "epoch": kept.epoch, "state": kept.state} if kept else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.keep(StreamState(**state) if state else None)

    def _batch(self, samples: list[Any], begin: int) -> Any:
        if self._collate is not None:
            seed_all(sample_seed(self._seed, begin))
        return as_batch(samples, self._collate, self._name)

    def _seek(self, position: int) -> None:
        at = self._kept.position if self._kept else 0
        forked = self._process != os.getpid()
        if self._iterator is None or forked or position < self._position or self._position < at <= position:
            self._restart(self._kept if at <= position else None)
        while self._position < position:
            self._next()

    def _restart(self, state: StreamState | None) -> None:
        if self._again is not None and (self._iterator is not None or self._process != os.getpid()):
            self._data = self._checked(self._again())
        self._process = os.getpid()
        self._position = state.position if state else 0
        self._epoch = state.epoch if state else 0
        if state is not None:
            self._data.load_state_dict(state.state)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        seed_all(sample_seed(self._seed, self._position))
        if callable(getattr(self._data, "set_epoch", None)):
            self._data.set_epoch(self._epoch)
        iterator = self._data.as_numpy_iterator() if _is_tf_data(self._data) else iter(self._data)
        if iterator is self._iterator and self._again is not None:  # a generator can be iterated only once
            self._data = self._checked(self._again())
            iterator = iter(self._data)
        self._iterator = iterator

    def _next(self) -> Any:
        sample = self._next_of_epoch()
        if sample is END:
            self._epoch += 1
            self._begin_epoch()
            sample = self._next_of_epoch()
        if sample is not END:
            return sample
        if not self._position:
            raise UserError(f"{self._name} has no samples: it is empty")
        raise UserError(
            f"{self._name} gave {self._kind} that ended after {self._position} samples and gives none when it is iterated "
            "once more: give an object whose __iter__ begins anew each time, or end the training before (train.steps)"
        )

    def _next_of_epoch(self) -> Any:
        assert self._iterator is not None, "an epoch was begun"
        seed_all(sample_seed(self._seed, self._position))
        try:
            sample = next(self._iterator, END)
        except Exception as error:
            add_note(error, f"sample {self._position} of {self._name}")
            raise
        self._position += sample is not END
        return sample

    def _checked(self, data: Any) -> Any:
        """The iterable itself, without a DataLoader around it."""
        if is_loader(data):
            if data.batch_size is None:
                raise UserError(
                    f"{self._name} gave a DataLoader without a batch size: dtrain makes the batches (train.global_batch): "
                    "give a stream of single samples"
                )
            data = data.dataset
        if isinstance(data, Set):
            raise UserError(f"{self._name} gave {gave(data)}, whose order differs between processes: give sorted(data)")
        if _is_tf_data(data) and _is_batched(data):
            raise UserError(
                f"{self._name} gave a tf.data.Dataset of batches: dtrain makes the batches (train.global_batch): leave out "
                ".batch(), or add .unbatch(); collate(samples) pads what differs in length"
            )
        return data


def _is_tf_data(data: Any) -> bool:
    """Whether this is a `tf.data.Dataset`."""
    return hasattr(data, "as_numpy_iterator")


def _is_batched(data: Any) -> bool:
    """Whether a `tf.data.Dataset` gives batches, by the stages that it is made of."""
    stage = data
    while type(stage).__name__ in IN_ORDER:
        (stage,) = stage._inputs()
    return type(stage).__name__ in BATCHING


def opened(
    data: Any, *, seed: int, name: str, collate: Collate | None = None, again: Callable[[], Any] | None = None
) -> Batches | Stream:
    """The user's data, whatever its form; see `Batches` and `Stream`."""
    if is_stream(data):
        return Stream(data, seed=seed, name=name, collate=collate, again=again)
    return Batches(data, seed=seed, name=name, collate=collate)
