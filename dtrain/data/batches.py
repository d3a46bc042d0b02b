"""The user's data set as batches, whatever its form: arrays, a map-style data set, or a PyTorch DataLoader around one."""

from __future__ import annotations

import copy
import dataclasses
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dtrain.common.errors import UserError, add_note
from dtrain.data.randomness import seed_all
from dtrain.data.sampler import Indices, sample_seed
from dtrain.job.task_answers import gave

Collate = Callable[[list[Any]], Any]
COMPARED = 3
"""Samples that are compared between ranks, and with those that the run began with."""
COMPARED_ROWS = 64
"""The same, where they are rows of arrays."""
EXPECTED = "a tuple or dict of arrays of one length, an object with __len__ and __getitem__, or an iterable"
NO_LENGTH = "give it a __len__, or an object with __iter__ and no __getitem__, whose samples are taken in its own order"
OWN_ORDER = {"RandomSampler", "SequentialSampler"}
"""Samplers of a DataLoader that say no more than `train.shuffle` does."""


class Batches:
    """A data set of the user's. Fetching a sample is a pure function of the seed and the sample's position: every global
    random generator is seeded before it.

    `name` says where the data comes from in error messages: `digits.py: Digits.data('train')`. Raises `UserError` for data
    that cannot be used."""

    def __init__(self, data: Any, *, seed: int, name: str, collate: Collate | None = None) -> None:
        self._seed = seed
        self._name = name
        self.note = ""
        """A warning about the part of the user's data that is not used as it is."""
        if is_loader(data):
            self._check_loader(data)
            collate = collate or data.collate_fn
            data = data.dataset
        self._indices: Any = None
        if collate is None and _is_torch(data, "Subset") and _as_arrays(data.dataset) is not None:
            self._indices = np.asarray(data.indices, dtype=np.int64)
            data = data.dataset
        self._data = data if (arrays := _as_arrays(data)) is None else arrays
        self._is_arrays = arrays is not None
        self._collate = collate
        self.size: int = len(self._indices) if self._indices is not None else self._measured(self._data)
        """Samples."""
        if not self.size:
            raise UserError(f"{name} has no samples: it is empty")

    @property
    def name(self) -> str:
        """Name for messages: `digits.py: Digits.data('train')`."""
        return self._name

    @property
    def in_memory(self) -> bool:
        """Whether a batch is no more than rows of arrays: it is fetched faster than it could be handed over."""
        return self._is_arrays and self._collate is None

    def beginning(self) -> int | None:
        """Return a number that follows from samples at the beginning, in the middle and at the end; None if they cannot be read."""
        numbers = np.linspace(0, self.size - 1, min(self.size, COMPARED_ROWS if self.in_memory else COMPARED)).astype(
            np.int64
        )
        try:
            return checksum(self.fetch(numbers))
        except Exception:  # noqa: BLE001  it is raised again, with its place, when the training reads there
            return None

    def fetch(self, indices: Indices, begin: int = 0) -> Any:
        """The batch of these samples, of which the first is at position `begin` of the endless row of epochs."""
        if self._indices is not None:
            indices = self._indices[indices]
        if self._collate is not None:
            seed_all(sample_seed(self._seed, begin))
        elif self._is_arrays:
            return _rows(self._data, indices)
        return as_batch(list(self._samples(indices, begin)), self._collate, self._name)

    def _samples(self, indices: Indices, begin: int) -> Iterable[Any]:
        if self._is_arrays:
            return [_rows(self._data, index) for index in indices.tolist()]
        if hasattr(self._data, "__getitems__"):
            seed_all(sample_seed(self._seed, begin))
            samples: Iterable[Any] = self._data.__getitems__(indices.tolist())
            return samples
        return self._one_by_one(indices.tolist(), begin)

    def _one_by_one(self, indices: list[int], begin: int) -> Iterator[Any]:
        for position, index in enumerate(indices, start=begin):
            seed_all(sample_seed(self._seed, position))
            try:
                sample = _rows(self._data, index)
            except Exception as error:
                add_note(error, f"sample {index} of {self._name}")
                raise
            yield sample

    def _measured(self, data: Any) -> int:
        """Samples of arrays or of a map-style data set."""
        if isinstance(data, Mapping | tuple):
            parts = dict(data) if isinstance(data, Mapping) else dict(enumerate(data))
            sizes = {key: self._measured(part) for key, part in parts.items()}
            if len(set(sizes.values())) > 1:
                told = ", ".join(f"{key}: {size}" for key, size in sizes.items())
                raise UserError(f"{self._name} has parts of different lengths ({told}); expected {EXPECTED}")
            return next(iter(sizes.values()), 0)
        if hasattr(data, "iloc"):
            raise UserError(f"{self._name} gave {gave(data)}; give its arrays: data[columns].to_numpy()")
        if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
            raise UserError(f"{self._name} gave {gave(data)}; expected {EXPECTED}")
        try:
            return len(data)
        except TypeError as error:
            raise UserError(f"{self._name} gave {gave(data)} without a length ({error}): {NO_LENGTH}") from None

    def _check_loader(self, loader: Any) -> None:
        """Raise `UserError` for what a DataLoader does that dtrain would not do."""
        sampler = type(loader.sampler).__name__
        if loader.batch_size is None or sampler not in OWN_ORDER:
            raise UserError(
                f"{self._name} gave a DataLoader with a {sampler} of its own, which dtrain would ignore: the order of samples "
                "is a function of train.seed; give the data set itself, with the samples in it that are to be drawn"
            )
        self.note = (
            f"{self._name} gave a DataLoader: its data set and collate_fn are used; the batch size is train.global_batch, "
            "the order follows from train.seed and train.shuffle"
        )


def is_loader(data: Any) -> bool:
    """Whether this is PyTorch's DataLoader, or a class derived from it."""
    return any(
        cls.__name__ == "DataLoader" and cls.__module__.startswith("torch.utils.data") for cls in type(data).__mro__
    )


def is_stream(data: Any) -> bool:
    """Whether samples come only one after the other; PyTorch's streams inherit a `__getitem__` that does nothing."""
    if is_loader(data):
        return is_stream(data.dataset)
    named = any(cls.__name__ == "IterableDataset" for cls in type(data).__mro__)
    return named or (isinstance(data, Iterable) and not hasattr(data, "__getitem__"))


def _is_torch(data: Any, name: str) -> bool:
    """Whether this is PyTorch's own data set of that name, and not a class derived from it, which may do more."""
    return type(data).__name__ == name and type(data).__module__ == "torch.utils.data.dataset"


def _is_array(data: Any) -> bool:
    return hasattr(data, "shape") and hasattr(data, "dtype")


def _as_arrays(data: Any) -> Any:
    """The nested arrays that a data set is made of, or None if its samples must be asked for one by one."""
    if _is_torch(data, "TensorDataset"):
        return tuple(data.tensors)
    if isinstance(data, Mapping):
        parts = {name: _as_arrays(part) for name, part in data.items()}
        return None if any(part is None for part in parts.values()) else parts
    if isinstance(data, tuple):
        parts_ = tuple(_as_arrays(part) for part in data)
        return None if any(part is None for part in parts_) else parts_
    return data if _is_array(data) else None


def _rows(data: Any, indices: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _rows(part, indices) for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_rows(part, indices) for part in data)
    return data[indices]


def as_batch(samples: list[Any], collate: Collate | None, name: str) -> Any:
    """Stack samples to one batch; raises `UserError` for samples that cannot be stacked."""
    if collate is not None:
        return collate(samples)
    try:
        return stacked(samples)
    except _NotStackable as error:
        raise UserError(
            f"{name}: {error}: give the task a method collate(samples) that makes a batch of them"
        ) from None


def with_fields(value: Any, field_of: Callable[[str], Any]) -> Any:
    """A copy of a dataclass, a frozen one, too, each of whose fields has the value that `field_of` gives for its name."""
    copied = copy.copy(value)
    for field in dataclasses.fields(value):
        object.__setattr__(copied, field.name, field_of(field.name))
    return copied


class _NotStackable(ValueError):
    """Samples that no array can hold."""


def stacked(samples: Sequence[Any]) -> Any:
    """Samples of one structure (dict, tuple, dataclass, array or number) as one batch of that structure; what is no number (strings,
    objects) becomes a list. Raises `ValueError` if their structures or shapes differ."""
    first = samples[0]
    if isinstance(first, Mapping):
        if any(not isinstance(sample, Mapping) or sample.keys() != first.keys() for sample in samples):
            raise _NotStackable(f"samples have different keys, not always {', '.join(map(str, first))}")
        return {name: stacked([sample[name] for sample in samples]) for name in first}
    if isinstance(first, tuple | list):
        if any(not isinstance(sample, tuple | list) or len(sample) != len(first) for sample in samples):
            raise _NotStackable("samples have different lengths")
        parts = [stacked(part) for part in zip(*samples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(first) and all(type(sample) is type(first) for sample in samples):
        return with_fields(first, lambda name: stacked([getattr(sample, name) for sample in samples]))
    if not _is_numeric(first):
        return list(samples)
    try:
        if hasattr(type(first), "__torch_function__"):
            return sys.modules["torch"].stack(list(samples))
        return np.stack([np.asarray(sample) for sample in samples])
    except (ValueError, RuntimeError, TypeError) as error:
        shapes = sorted({str(tuple(np.shape(sample))) for sample in samples})
        told = f"samples have different shapes ({', '.join(shapes[:3])})" if len(shapes) > 1 else str(error)
        raise _NotStackable(told) from None


def _is_numeric(value: Any) -> bool:
    """Whether samples like this become an array."""
    return isinstance(value, int | float | complex | np.generic) or hasattr(value, "__array__")


def checksum(samples: Any, value: int = 0) -> int:
    """The CRC-32, going on from another one, of what is in samples of any structure; of an object whose content is not known, of its type."""
    if isinstance(samples, Mapping):
        for key, part in samples.items():
            value = checksum(part, zlib.crc32(repr(key).encode(), value))
        return value
    if isinstance(samples, tuple | list):
        for part in samples:
            value = checksum(part, value)
        return zlib.crc32(str(len(samples)).encode(), value)
    if hasattr(samples, "__array__") and (array := _host_array(samples)) is not None:
        return zlib.crc32(array.tobytes(), zlib.crc32(str(array.shape).encode(), value))
    known = isinstance(samples, str | bytes | int | float | complex | None)
    return zlib.crc32((repr(samples) if known else type(samples).__name__).encode(), value)


def _host_array(value: Any) -> Any:
    """None for what no array can hold the bits of (torch's bfloat16), or that holds objects."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if array.dtype.hasobject else array
