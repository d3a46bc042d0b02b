"""What PyTorch's backend does with batches: to the device, in the structure they have; and models in evaluation mode.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def moved(batch: Any, device: Any) -> Any:
    """The batch with every array as a tensor on the device, in the structure it has. What is no number (strings, objects)
    stays; an object that knows how to move (`to`) moves itself."""
    import torch

    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
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
    return batch.to(device) if hasattr(batch, "to") else batch


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
