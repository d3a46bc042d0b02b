"""How long the phases of a step take on this rank: forward, backward, and waiting for other ranks (`dtrain.api.phases`).

The autograd engine runs the callbacks that were queued first before those queued later; DDP queues the one that waits for the
all_reduce when the last gradient is there. So a callback that is queued at the beginning of the backward pass runs when this rank's
own gradients are done, and one that this callback queues runs when they are reduced. What waits inside a pass (for sharded
parameters) is taken out of it. Importing this module imports no framework.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from dtrain.api.phases import BACKWARD, FORWARD, REDUCE

GPU_STEPS = 8
"""On a GPU one step in so many is measured: an event takes the host a few microseconds."""
MOST_STEPS = 64
"""Measured steps that are kept until somebody asks for their mean; of more, the newest."""


class _Span(NamedTuple):
    """A part of a step between two marks."""

    phase: str
    begin: Any
    end: Any
    inside: str = ""
    """The phase that it is a part of, and that is shorter by it."""


class StepPhases:
    """A clock for the steps of one rank. On a GPU it reads the device's clock, without waiting for it."""

    def __init__(self, device: Any) -> None:
        on_gpu = device.type == "cuda"
        self._mark: Callable[[], Any] = _event if on_gpu else time.perf_counter
        self._every = GPU_STEPS if on_gpu else 1
        self._count = 0
        self._since: Any = None
        """Where the phase under way began; None outside of a step that is measured."""
        self._phase = FORWARD
        self._waits: list[tuple[Any, Any]] = []
        """Begin and end of each wait in the phase under way."""
        self._is_waiting = False
        self._spans: list[_Span] = []
        """Spans of the current step."""
        self._steps: deque[list[_Span]] = deque(maxlen=MOST_STEPS)
        """Spans of the steps that were not taken yet."""

    def begin(self) -> None:
        """A step begins, with its forward pass; if another one is under way, that has ended."""
        self.end()
        self._phase = FORWARD
        self._since = None if self._count % self._every else self._mark()
        self._count += 1

    def end(self) -> None:
        """The step has ended: what waits from here on does not count."""
        if self._spans:
            self._steps.append(self._spans)
            self._spans = []
        self._waits.clear()
        self._since = None

    def watch(self, tensor: Any) -> None:
        """The backward pass begins at this tensor."""
        if tensor.requires_grad and self._since is not None:
            tensor.register_hook(self._on_backward)

    def watch_output(self, _module: Any, _inputs: Any, output: Any) -> None:
        """A forward hook of a model whose loss is not seen: the first of its outputs that has a gradient."""
        tensor = next((one for one in _tensors(output) if one.requires_grad), None)
        if tensor is not None:
            self.watch(tensor)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for other ranks in the phase under way."""
        if self._since is None or self._is_waiting:
            yield
            return
        begin, self._is_waiting = self._mark(), True
        try:
            yield
        finally:
            self._is_waiting = False
        self._waits.append((begin, self._mark()))

    def wait_in(self, thing: Any, methods: Iterable[str]) -> None:
        """Time these methods of an object as waits for other ranks."""
        for name in methods:
            setattr(thing, name, self._waiting_in(getattr(thing, name)))

    def _waiting_in(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.waiting():
                return method(*arguments, **named)

        return timed

    def reduced(self) -> None:
        """Note that all gradients of the pass before are there, reduced."""
        if self._since is not None:
            self._end(REDUCE, FORWARD)

    def take(self) -> dict[str, float]:
        """Mean seconds of each phase in the steps since the last call whose end is known by now; {} if there is none."""
        known = [step for step in self._steps if _is_past(step[-1].end)]
        self._steps.clear()
        totals: dict[str, float] = {}
        for span in (span for step in known for span in step):
            seconds = _seconds(span.begin, span.end)
            totals[span.phase] = totals.get(span.phase, 0.0) + seconds
            if span.inside:
                totals[span.inside] = totals.get(span.inside, 0.0) - seconds
        return {phase: max(0.0, seconds) / len(known) for phase, seconds in totals.items()}

    def _end(self, phase: str, following: str) -> None:
        now = self._mark()
        self._spans += [_Span(REDUCE, *wait, inside=phase) for wait in self._waits]
        self._spans.append(_Span(phase, self._since, now))
        self._waits.clear()
        self._phase, self._since = following, now

    def _on_backward(self, _gradient: Any) -> None:
        import torch

        if self._since is None or self._phase != FORWARD:  # another output of the same pass
            return
        self._end(FORWARD, BACKWARD)
        torch.autograd.Variable._execution_engine.queue_callback(self._on_own_gradients)

    def _on_own_gradients(self) -> None:
        import torch

        self._end(BACKWARD, REDUCE)
        torch.autograd.Variable._execution_engine.queue_callback(self.reduced)


def _tensors(output: Any) -> Iterable[Any]:
    """Yield the tensors in a model's output: alone, in tuples, lists and dicts, and as attributes of the output
    classes that are dicts."""
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
