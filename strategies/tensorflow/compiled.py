"""Sessions whose steps XLA compiles: several steps in one call, and the rehearsal of a TPU on a CPU.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from dtrain.api.strategy import RankInfo, WorkerContext
from dtrain.api.training_backend import FIRST_STEP, StepNumber

from .backend import TensorFlowBackend
from .devices import prepare
from .evaluation import Metrics
from .graph import not_compiled, refuse_dynamic_shapes
from .numbers import StepNumbers
from .step import tensors


class CompiledBackend(TensorFlowBackend):
    """Collects steps until a call is full, or something wants to see the state."""

    def __init__(self, rank_info: RankInfo, strategy: Any, *, steps_per_call: int, jit: bool = False) -> None:
        super().__init__(rank_info, strategy, jit=jit)
        self._steps_per_call = steps_per_call
        self._waiting: list[tuple[list[Any], float, bool, StepNumbers]] = []

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        self._step = self._step or self.compiled(len(batches))
        later, due = self.begun(self._step, rate, number, self.flush)
        self._waiting.append((self.blocks(batches, seeds), self._rate * rate, due, later))
        if len(self._waiting) == self._steps_per_call:
            self.flush()
        return later

    def flush(self) -> None:
        """Do the steps that wait: in one call if they fill it, one by one otherwise."""
        import numpy as np
        import tensorflow as tf

        waiting, self._waiting = self._waiting, []
        if self._step is None or not waiting:
            return
        if len(waiting) < self._steps_per_call or len(waiting) == 1:
            for blocks, rate, due, later in waiting:
                later.vector = self.called(self._step.one, *tensors((blocks, np.float32(rate), np.array([due, False]))))
            return
        stacked = [
            tf.nest.map_structure(lambda *parts: np.stack(parts), *parts)
            for parts in zip(*(blocks for blocks, _, _, _ in waiting), strict=True)
        ]
        rates = np.array([rate for _, rate, _, _ in waiting], np.float32)
        wanted = np.array([(due, False) for _, _, due, _ in waiting])
        numbers = self.called(self._step.many, *tensors((stacked, rates, wanted))).numpy()
        for (*_, later), vector in zip(waiting, numbers, strict=True):
            later.vector = vector

    def evaluate(self, batches: Iterable[tuple[Any, int]], metrics: Metrics | None = None) -> dict[str, float]:
        self.flush()
        return super().evaluate(batches, metrics)

    def arrays(self) -> dict[str, dict[str, Any]]:
        self.flush()
        return super().arrays()


class RehearsalBackend(CompiledBackend):
    """Looks for what a TPU cannot run; raises `RehearsalFailed`."""

    def inspect(self, graph: Any) -> None:
        super().inspect(graph)
        refuse_dynamic_shapes(graph)

    def called(self, function: Any, *arguments: Any) -> Any:
        import tensorflow as tf

        try:
            return super().called(function, *arguments)
        except tf.errors.OpError as error:
            graph = function.get_concrete_function(*arguments).graph
            raise not_compiled(graph, str(error)) from error


def rehearsal(context: WorkerContext, steps_per_call: int) -> RehearsalBackend:
    """A backend on one CPU replica, which takes the shards of all."""
    import tensorflow as tf

    # XLA's steps on a CPU are deterministic; TensorFlow's switch would only refuse some of them, as it must on GPUs.
    device, *_ = prepare(context, replicas=1, deterministic=False)
    strategy = tf.distribute.OneDeviceStrategy(device)
    return RehearsalBackend(context.rank_info, strategy, steps_per_call=steps_per_call, jit=True)
