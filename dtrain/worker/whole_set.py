"""Metrics of all held-out samples at once (areas under curves, correlations), which no mean over batches is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dtrain.api.training_backend import TrainingBackend
from dtrain.job.task_answers import named_numbers


def metrics(
    backend: TrainingBackend,
    batches: Iterable[tuple[Any, int]],
    outputs: Callable[[Any, Any], Any],
    metrics_of: Callable[..., Any],
    name: str,
    failed: Callable[[Exception], None] | None = None,
) -> dict[str, float]:
    """Collective. Call `metrics_of` on rank 0 with what `outputs(model, batch)` returned of all samples, in the order of the data;
    the numbers on every rank. What it raises goes to `failed` if there is one, and there are no numbers then."""
    found = backend.outputs(batches, outputs)
    values: dict[str, float] = {}
    if found is not None:
        try:
            with _alone():
                numbers = named_numbers(metrics_of(*found), name)
            values = {key: float(value) for key, value in numbers.items()}
        except Exception as error:
            if failed is None:
                raise
            failed(error)
    return backend.mean(values)


@contextmanager
def _alone() -> Iterator[None]:
    """Around code of this thread that has all samples: objects of metrics that ask whether there are other ranks (torchmetrics) would
    wait for them."""
    thread = threading.get_ident()
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is None:
        yield
        return
    initialized = distributed.is_initialized
    distributed.is_initialized = lambda: threading.get_ident() != thread and initialized()
    try:
        yield
    finally:
        distributed.is_initialized = initialized
