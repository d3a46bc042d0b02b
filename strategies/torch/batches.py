"""What PyTorch's backend does with batches: to the device, in the structure they have; and models in evaluation mode.

Importing this module imports no framework.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any


def moved(batch: Any, device: Any) -> Any:
    """The batch with every array as a tensor on the device, in the structure it has. What is no number (strings, objects)
    stays; an object that knows how to move (`to`) moves itself, and the fields of other dataclasses are moved."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        parts_by_name = {name: moved(part, device) for name, part in batch.items()}
        return parts_by_name if type(batch) is dict else _like(batch, parts_by_name)
    if isinstance(batch, tuple | list):
        if isinstance(batch, list) and all(isinstance(part, int | float) for part in batch):
            return torch.as_tensor(batch, device=device)
        parts = [moved(part, device) for part in batch]
        if hasattr(batch, "_fields"):
            return type(batch)(*parts)
        return parts if isinstance(batch, list) else tuple(parts)
    if hasattr(batch, "dtype") or isinstance(batch, bool | int | float | complex):
        # Strings and objects in an array stay on the host.
        return (
            batch
            if getattr(getattr(batch, "dtype", None), "kind", "f") in "OSUV"
            else torch.as_tensor(batch, device=device)
        )
    if hasattr(batch, "to"):
        return batch.to(device)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        from dtrain.data.batches import with_fields

        return with_fields(batch, lambda name: moved(getattr(batch, name), device))
    return batch


def _like(batch: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    """These parts as a mapping of the batch's own kind (an `OrderedDict`, a `BatchEncoding`), if it can be changed."""
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
