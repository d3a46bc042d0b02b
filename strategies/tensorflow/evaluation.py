"""Evaluation of a model under a `tf.distribute.Strategy`: means over held-out samples, their outputs, and a loss that changes nothing.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from dtrain.api.strategy import RankInfo
from dtrain.api.training_backend import LossApart
from dtrain.common.errors import UserError
from dtrain.job.task_answers import gave, loss_answer, weighted

from .step import Built, spread, tensors, traced, use_for_unseeded

Metrics = Callable[[Any, Any], Any]
Held = Iterable[tuple[Any, int]]
"""Batches, each with the number of its samples that count."""
Rows = tuple[Any, ...]
"""Arrays with the samples of a batch along their first axis."""


class Evaluation:
    """The evaluation of a built model in one process, whose replicas take batches in turn."""

    def __init__(self, strategy: Any, built: Built, name: str, replicas: int) -> None:
        self._strategy = strategy
        self._built = built
        self._name = name
        self._replicas = replicas
        self._measures: dict[Metrics | None, Any] = {}

    def sums(self, batches: Held, metrics: Metrics | None) -> tuple[dict[str, float], dict[str, float]]:
        """Return the means over this process's batches by name, and their weights."""
        import numpy as np
        import tensorflow as tf

        if metrics not in self._measures:
            self._measures[metrics] = tf.function(partial(self._measured, metrics), autograph=False)
        measure = self._measures[metrics]
        sums: dict[str, float] = {}
        weights: dict[str, float] = {}
        for filled, counts in self._groups(batches):
            values, given = measure(tensors(filled))
            for name, value in values.items():
                weight = np.where(counts > 0, given[name].numpy(), 0.0) if name in given else counts
                sums[name] = sums.get(name, 0.0) + float(np.dot(np.where(weight > 0, value.numpy(), 0.0), weight))
                weights[name] = weights.get(name, 0.0) + float(weight.sum())
        return {name: total / (weights[name] or 1.0) for name, total in sums.items()}, weights

    def _groups(self, batches: Held) -> Iterator[tuple[list[Any], Any]]:
        """Yield a batch for each replica, and the numbers of samples that count: 0 of one that is there twice."""
        import numpy as np

        rest = iter(batches)
        while group := list(islice(rest, self._replicas)):
            filled = [*group, *[(group[-1][0], 0)] * (self._replicas - len(group))]
            yield [batch for batch, _ in filled], np.array([count for _, count in filled], np.float64)

    def _measured(self, metrics: Metrics | None, batches: Any) -> tuple[dict[str, Any], ...]:
        """Name → its value in each of this process's replicas, and name → its weight there."""
        import tensorflow as tf

        values = self._strategy.run(partial(self._metrics, metrics), args=(spread(self._strategy, batches),))
        return tuple(
            {name: tf.stack(self._strategy.experimental_local_results(value)) for name, value in named.items()}
            for named in values
        )

    def _metrics(self, metrics: Metrics | None, batch: Any) -> tuple[dict[str, Any], ...]:
        import tensorflow as tf

        task, model = self._built.task, self._built.model
        metrics = metrics or getattr(task, "metrics", None)
        with self._built.pure(self._built.states([0])[0]):
            if metrics is not None:
                both = weighted(traced(metrics, model, batch), f"{self._name}.metrics")
            else:
                answer = loss_answer(traced(task.loss, model, batch), f"{self._name}.loss")
                both = {"loss": answer.loss} | answer.numbers, answer.weights
        return tuple(
            {name: tf.reshape(tf.cast(value, tf.float64), ()) for name, value in named.items()} for named in both
        )

    def outputs(self, batches: Held, function: Metrics) -> list[Rows]:
        """Return what `function(model, batch)` returned of each of this process's batches."""
        import tensorflow as tf

        def replica(batch: Any) -> Any:
            with self._built.pure(self._built.states([0])[0]):
                return tuple(tf.nest.flatten(traced(function, self._built.model, batch)))

        def replicas(batches: Any) -> Any:
            found = self._strategy.run(replica, args=(spread(self._strategy, batches),))
            return [self._strategy.experimental_local_results(value) for value in found]

        measure = tf.function(replicas, autograph=False)
        own: list[Rows] = []
        for filled, counts in self._groups(batches):
            parts = zip(*measure(tensors(filled)), strict=True)
            own += [self._rows(part, int(count)) for part, count in zip(parts, counts, strict=True)]
        return own

    def _rows(self, values: Sequence[Any], count: int) -> Rows:
        import tensorflow as tf

        for value in values:
            numbers = value.dtype.is_floating or value.dtype.is_integer or value.dtype.is_bool
            if not (numbers and len(value.shape) and value.shape[0] >= count):
                raise UserError(
                    f"{self._name}.outputs gave {gave(value)}; expected numbers with the samples along the first axis"
                )
        # numpy has no bfloat16 of its own, and libraries of metrics refuse what stands in for it.
        plain = (tf.cast(value, tf.float32) if value.dtype == tf.bfloat16 else value for value in values)
        return tuple(value.numpy()[:count] for value in plain)

    def loss_apart(self, batch: Any, seed: int, values: Iterable[tuple[Any, Any]]) -> LossApart:
        """Compute the task's loss with these values of the model's variables: to read them across replicas could be a collective."""
        import keras
        import tensorflow as tf

        built = self._built
        use_for_unseeded(built.noise)
        given = [(variable, tf.convert_to_tensor(value)) for variable, value in values]
        given += zip(built.generators, built.states([seed])[0], strict=True)
        with keras.StatelessScope(given, collect_losses=True):
            answer = loss_answer(built.task.copied({}).loss(built.model, tensors(batch)), f"{self._name}.loss")
        if answer.loss.dtype not in (tf.float32, tf.float64):
            return None
        return float(answer.loss), None if answer.weight is None else float(answer.weight)


def gathered(own: Sequence[Rows], rank_info: RankInfo, totals: Callable[[Any], Any]) -> Rows | None:
    """Collective. Gather the arrays of all samples on rank 0; batches were dealt out to the ranks in turn. TensorFlow gathers nothing between
    processes: each turn is a sum of arrays that are zero but for one rank's rows."""
    import numpy as np

    ranks, rank = rank_info.world_size, rank_info.rank
    if ranks == 1:
        return tuple(np.concatenate(column) for column in zip(*own, strict=True))
    counts = np.zeros((len(own), ranks))
    counts[:, rank] = [len(turn[0]) for turn in own]
    counts = totals(counts).astype(int)
    parts: list[list[Any]] = [[] for _ in own[0]]
    for turn, sizes in zip(own, counts, strict=True):
        for column, array in zip(parts, turn, strict=True):
            whole = np.zeros((ranks, counts.max(), *array.shape[1:]))
            whole[rank, : len(array)] = array
            summed = totals(whole)
            column += [summed[one, :size].astype(array.dtype) for one, size in enumerate(sizes)]
    return None if rank else tuple(map(np.concatenate, parts))
