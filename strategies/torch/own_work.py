"""How long this rank computes in a step before it waits for the others' gradients.

The autograd engine runs the callbacks that were queued first before those queued later; DDP queues the one that waits for the
all_reduce when the last gradient is there. So a callback that is queued at the beginning of the backward pass runs when this rank's
own gradients are done. Importing this module imports no framework.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class OwnWork:
    """A clock for the steps of one rank. On a GPU it reads the device's clock, without waiting for it."""

    def __init__(self, device: Any) -> None:
        self._mark: Callable[[], Any] = _event if device.type == "cuda" else time.perf_counter
        self._begun: Any = None
        self._done: Any = None
        self._spans: list[tuple[Any, Any]] = []
        """Begin and end of the own work of each step that was not taken yet."""

    def begin(self) -> None:
        """A step begins."""
        self._keep()
        self._begun = self._mark()

    def watch(self, tensor: Any) -> None:
        """The backward pass begins at this tensor."""
        if tensor.requires_grad and self._begun is not None:
            tensor.register_hook(self._on_backward)

    def watch_output(self, _module: Any, _inputs: Any, output: Any) -> None:
        """A forward hook of a model whose loss is not seen: the first of its outputs that has a gradient."""
        tensor = next((one for one in _tensors(output) if one.requires_grad), None)
        if tensor is not None:
            self.watch(tensor)

    def take(self) -> float | None:
        """Seconds of the steps since the last call whose end is known by now, in sum; None if nothing was measured."""
        self._keep()
        known, self._spans = [span for span in self._spans if _is_past(span[1])], []
        return sum(_seconds(*span) for span in known) if known else None

    def _on_backward(self, _gradient: Any) -> None:
        import torch

        torch.autograd.Variable._execution_engine.queue_callback(self._on_own_gradients)

    def _on_own_gradients(self) -> None:
        self._done = self._mark()

    def _keep(self) -> None:
        if self._begun is not None and self._done is not None:
            self._spans.append((self._begun, self._done))
        self._begun = self._done = None


def _tensors(output: Any) -> Iterable[Any]:
    """Those in a model's output: alone, in tuples, lists and dicts, and as attributes of the output classes that are dicts."""
    if hasattr(output, "requires_grad"):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)


def _event() -> Any:
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _is_past(mark: Any) -> bool:
    return isinstance(mark, float) or bool(mark.query())


def _seconds(begin: Any, end: Any) -> float:
    return float(end - begin) if isinstance(end, float) else float(begin.elapsed_time(end)) / 1000.0
