"""Sessions whose steps XLA compiles: several steps in one call, and the rehearsal of a TPU on a CPU.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dtrain import errors
from dtrain.errors import DtrainError, Exit
from dtrain.strategy import Joining, Place

from ._tensorflow import TensorFlowSession, prepare
from ._tensorflow_state import TensorFlowSnapshot

NODE = re.compile(r"\{\{node ([^}]+)\}\}")
NO_SOURCES = ("TensorList", "Placeholder")
"""Begin the types of operations whose shapes are open without being dynamic: XLA knows the lengths of lists, and what a
function is given comes from outside of it."""


class RehearsalFailed(DtrainError):
    """A TPU could not run the model's step."""

    exit_code = Exit.USER_CODE


class Later:
    """The loss of a step that may still be waiting for its call."""

    def __init__(self, session: CompiledSession) -> None:
        self._session = session
        self.value: Any = None

    def __float__(self) -> float:
        if self.value is None:
            self._session.flush()
        return float(self.value)


class CompiledSession(TensorFlowSession):
    """Collects steps until a call is full, or something wants to see the state."""

    def __init__(self, place: Place, strategy: Any, *, steps_per_call: int, jit: bool = False) -> None:
        super().__init__(place, strategy, jit=jit)
        self._steps_per_call = steps_per_call
        self._waiting: list[tuple[list[Any], float, Later]] = []

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float) -> Any:
        """See `Session.step`."""
        later = Later(self)
        self._step = self._step or self.compiled(len(batches))
        self._waiting.append((self.blocks(batches, seeds), self._rate * rate, later))
        if len(self._waiting) == self._steps_per_call:
            self.flush()
        return later

    def flush(self) -> None:
        """Do the steps that wait: in one call where they fill it, one by one otherwise."""
        import numpy as np
        import tensorflow as tf

        waiting, self._waiting = self._waiting, []
        if self._step is None or not waiting:
            return
        if len(waiting) < self._steps_per_call or len(waiting) == 1:
            for blocks, rate, later in waiting:
                later.value = self.called(self._step.one, self.spread(blocks), np.float32(rate))
            return
        stacked = [
            tf.nest.map_structure(lambda *parts: np.stack(parts), *parts)
            for parts in zip(*(blocks for blocks, _, _ in waiting), strict=True)
        ]
        rates = np.array([rate for _, rate, _ in waiting], np.float32)
        losses = self.called(self._step.many, self.spread(stacked), rates).numpy()
        for (_, _, later), loss in zip(waiting, losses, strict=True):
            later.value = loss

    def called(self, function: Any, *arguments: Any) -> Any:
        """What the compiled function gives."""
        return function(*arguments)

    def evaluate(self, batches: Iterable[tuple[Any, int]]) -> dict[str, float]:
        """See `Session.evaluate`."""
        self.flush()
        return super().evaluate(batches)

    def snapshot(self) -> TensorFlowSnapshot:
        """See `Session.snapshot`."""
        self.flush()
        return super().snapshot()


class RehearsalSession(CompiledSession):
    """Looks at every function before its first call; raises `RehearsalFailed`."""

    _looked_at: frozenset[int] = frozenset()

    def called(self, function: Any, *arguments: Any) -> Any:
        """See `CompiledSession.called`."""
        import tensorflow as tf

        if id(function) in self._looked_at:
            return function(*arguments)
        self._looked_at |= {id(function)}
        graph = function.get_concrete_function(*arguments).graph
        refuse_dynamic_shapes(graph)
        try:
            return function(*arguments)
        except tf.errors.OpError as error:
            raise RehearsalFailed(*_not_compiled(graph, str(error))) from error


def rehearsal(joining: Joining, steps_per_call: int) -> RehearsalSession:
    """A session on one CPU replica, which takes the shards of all."""
    import tensorflow as tf

    # XLA's steps on a CPU are deterministic; TensorFlow's switch would only refuse some of them, as it must on GPUs.
    device, *_ = prepare(joining, replicas=1, deterministic=False)
    strategy = tf.distribute.OneDeviceStrategy(device)
    return RehearsalSession(joining.place, strategy, steps_per_call=steps_per_call, jit=True)


def operations(graph: Any) -> Iterator[Any]:
    """Those of a graph and of all functions that it calls (loops, branches)."""
    for operation in graph.get_operations():
        yield operation
        for attribute in operation.node_def.attr.values():
            for name in (attribute.func.name, *(function.name for function in attribute.list.func)):
                inner = getattr(graph._get_function(name), "graph", None) if name else None
                if inner is not None:
                    yield from operations(inner)


def refuse_dynamic_shapes(graph: Any) -> None:
    """Raise `RehearsalFailed` for the first operation whose result has a shape that its inputs' shapes do not give."""
    for operation in operations(graph):
        if operation.type.startswith(NO_SOURCES) or not all(_static(tensor) for tensor in operation.inputs):
            continue
        for tensor in operation.outputs:
            if not _static(tensor):
                raise RehearsalFailed(
                    f"the model has a dynamic shape: the operation {operation.name} ({operation.type}) gives "
                    f"{tensor.shape}, known only when it runs{_made_at(operation)}",
                    "A TPU needs static shapes: select with a mask that is multiplied or tf.where(condition, a, b), and pad.",
                )


def _static(tensor: Any) -> bool:
    return bool(tensor.shape.is_fully_defined())


def _not_compiled(graph: Any, text: str) -> tuple[str, str]:
    """Message and hint for XLA's own refusal."""
    named = NODE.search(text)
    name = named.group(1) if named else ""
    operation = next((one for one in operations(graph) if one.name == name), None)
    what = f"the operation {name} ({operation.type}){_made_at(operation)}" if operation else name or "an operation"
    return (
        f"XLA cannot compile {what}: {text.splitlines()[0][:500]}",
        "Leave it out of the loss, or do it while the data is made.",
    )


def _made_at(operation: Any) -> str:
    """The user's line that made an operation, where there is one."""
    ours = (str(Path(__file__).parent), str(Path(errors.__file__).parent), "<")
    frames = [
        frame for frame in operation.traceback or ()
        if "site-packages" not in frame.filename and not frame.filename.startswith(ours)
    ]  # fmt: skip
    return f", made at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
