"""Moves batches to the device, in the structure they have, and models into evaluation mode.

Importing this module imports no framework.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any


class Mover:
    """Moves batches to a device; to a GPU from pinned memory, on a stream of its own, beside the step under way."""

    def __init__(self, device: Any) -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Any) -> Any:
        """The batch with every array as a tensor on the device, in the structure it has. What is no number (strings, objects)
        stays; an object that knows how to move (`to`) moves itself, and the fields of other dataclasses are moved."""
        import torch

        if isinstance(batch, torch.Tensor):
            return self._moved(batch)
        if isinstance(batch, Mapping):
            parts_by_name = {name: self(part) for name, part in batch.items()}
            return parts_by_name if type(batch) is dict else _like(batch, parts_by_name)
        if isinstance(batch, tuple | list):
            if isinstance(batch, list) and all(isinstance(part, int | float) for part in batch):
                return torch.as_tensor(batch, device=self._device)
            parts = [self(part) for part in batch]
            if hasattr(batch, "_fields"):
                return type(batch)(*parts)
            return parts if isinstance(batch, list) else tuple(parts)
        if hasattr(batch, "dtype") or isinstance(batch, bool | int | float | complex):
            # Strings and objects in an array stay on the host.
            is_text = getattr(getattr(batch, "dtype", None), "kind", "f") in "OSUV"
            return batch if is_text else self._moved(torch.as_tensor(batch))
        if hasattr(batch, "to"):
            return batch.to(self._device)
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            from dtrain.data.batches import with_fields

            return with_fields(batch, lambda name: self(getattr(batch, name)))
        return batch

    def _moved(self, tensor: Any) -> Any:
        import torch

        if self._stream is None or tensor.device.type != "cpu":
            return tensor.to(self._device)
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            found = tensor.pin_memory().to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        found.record_stream(current)  # its memory is not given to the next copy before the step has read it
        return found


def _like(batch: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """Return these parts as a mapping of the batch's own kind (an `OrderedDict`, a `BatchEncoding`), if it can be
    changed."""
    if not isinstance(batch, MutableMapping):
        return parts
    copied = copy.copy(batch)
    copied.update(parts)
    return copied


@contextmanager
def evaluating(models: Iterable[Any]) -> Iterator[None]:
    """Models in evaluation mode; afterwards every module is in the mode it was in."""
    models = list(models)
    modes = [(module, module.training) for model in models for module in model.modules()]
    trained = [model for model in models if model.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        # Some models do more in `train` than to set the mode.
        for model in trained:
            model.train()
        for module, mode in modes:
            module.training = mode


def part_of(batch: Any, number: int, count: int) -> Any:
    """Return one of equal parts of a batch: slices of its tensors along the first dimension, in the structure it
    has. Raises `ValueError` for a tensor that cannot be cut so."""
    import torch

    if isinstance(batch, torch.Tensor):
        if batch.ndim == 0:
            return batch
        if batch.shape[0] % count:
            raise ValueError(f"a tensor of shape {list(batch.shape)} cannot be cut into {count} equal parts")
        each = batch.shape[0] // count
        return batch[number * each : (number + 1) * each]
    if isinstance(batch, Mapping):
        parts = {name: part_of(part, number, count) for name, part in batch.items()}
        return parts if type(batch) is dict else _like(batch, parts)
    if isinstance(batch, tuple | list):
        found = [part_of(part, number, count) for part in batch]
        if hasattr(batch, "_fields"):
            return type(batch)(*found)
        return found if isinstance(batch, list) else tuple(found)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        from dtrain.data.batches import with_fields

        return with_fields(batch, lambda name: part_of(getattr(batch, name), number, count))
    return batch
