"""One training step in TensorFlow: gradients of shards, averaged over all replicas of all processes, and applied.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dtrain.job.task_answers import LossAnswer, loss_answer

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: its odd multiples set the seeds of generators far apart."""
Summed = Callable[[list[Any]], list[Any]]
"""Sums, in a replica, of these tensors over all replicas of all processes."""


@dataclass(frozen=True)
class Built:
    """A task's model and optimizer, and what a step does to them."""

    task: Any
    model: Any
    optimizer: Any
    clip_norm: float | None
    noise: Any
    """The seed generator of random functions that are given none."""

    @cached_property
    def generators(self) -> list[Any]:
        """State variables of all seed generators: of the model's layers (dropout, augmentation), and `noise`."""
        weights = {id(weight) for weight in self.model.weights}
        states = [variable for variable in self.model.variables if id(variable) not in weights]
        return [*(state for state in states if state.name == "seed_generator_state"), self.noise.state]

    def states(self, seeds: Sequence[int]) -> Any:
        """Where the seed generators stand at the beginning of each shard: int64 array [shards, generators, 2]."""
        import numpy as np

        apart = np.arange(len(self.generators), dtype=np.uint64) * np.uint64(GOLDEN)
        keys = (np.asarray(seeds, dtype=np.uint64)[:, None] + apart) >> np.uint64(1)
        return np.stack([keys.astype(np.int64), np.zeros(keys.shape, np.int64)], axis=-1)

    @contextmanager
    def pure(self, states: Any) -> Iterator[Any]:
        """Inside, no Keras variable changes and all randomness follows from `states` [generators, 2]; yields the scope
        that knows the values the variables would have taken."""
        import keras
        import tensorflow as tf

        use_for_unseeded(self.noise)
        # A regularizer looks its weight up in the scope.
        regularized = [weight for weight in self.model.trainable_variables if weight.regularizer is not None]
        values = [(weight, tf.convert_to_tensor(weight.value)) for weight in regularized]
        values += [(variable, states[number]) for number, variable in enumerate(self.generators)]
        with keras.StatelessScope(values, collect_losses=True) as scope:
            yield scope


def use_for_unseeded(noise: Any) -> None:
    """Make a seed generator the one that Keras's random functions use if they are given none. Keras has one for each
    thread, and tf.distribute traces every replica in a thread of its own."""
    from keras.src.backend.common import global_state

    global_state.set_global_attribute("global_seed_generator", noise)


def tensors(values: Any) -> Any:
    """The same structure with every array on the host as a tensor."""
    import tensorflow as tf

    with tf.device("CPU:0"):
        return tf.nest.map_structure(tf.convert_to_tensor, values)


def spread(strategy: Any, values: Sequence[Any]) -> Any:
    """Return one value for each of this process's replicas, as an argument for `strategy.run`. Inside a compiled
    function this costs nothing; as an argument of one it costs a good part of a millisecond."""
    if len(values) == 1:
        return values[0]
    order = iter(values)
    return strategy.experimental_distribute_values_from_function(lambda _: next(order))


class TrainStep:
    """The compiled step of one process; `shards` counts those of all processes."""

    def __init__(self, strategy: Any, built: Built, *, shards: int, summed: Summed, jit: bool, timed: bool) -> None:
        import tensorflow as tf

        self._strategy = strategy
        self._built = built
        self._shards = shards
        self._summed = summed
        self._timed = timed
        self._trained = list(built.model.trainable_variables)
        self._moving = list(built.model.non_trainable_weights)
        self.names: list[str] = []
        """Of what `loss` gives beside the loss; known when a step is traced."""
        _leave_summing_to_us(built.optimizer)
        self._overwrites = built.optimizer.use_ema and built.optimizer.ema_overwrite_frequency
        """After how many steps averages are written over the weights, by us: Keras does it inside a condition, where TensorFlow refuses it
        for several replicas of a process."""
        built.optimizer.ema_overwrite_frequency = None
        self.one = tf.function(self._one, autograph=False, jit_compile=jit or None)
        """(For each replica (batches, states) with a leading dimension of shards, rate, whether to measure (the gradient, times)) → means
        over this process's shards: loss, norm of the gradient (NaN if it is not measured), seconds of the own work and of the sum
        over all replicas (NaN if they are not measured), then what is in `names`."""
        self.many = tf.function(self._many, autograph=False, jit_compile=jit or None)
        """The same with a further leading dimension of steps → numbers [steps, …]."""

    def _one(self, inputs: Any, rate: Any, wanted: Any) -> Any:
        return self._local_mean(self._strategy.run(self._replica, args=(spread(self._strategy, inputs), rate, wanted)))

    def _many(self, inputs: Any, rates: Any, wanted: Any) -> Any:
        arguments = (spread(self._strategy, inputs), rates, wanted)
        return self._local_mean(self._strategy.run(self._replica_steps, args=arguments))

    def _local_mean(self, numbers: Any) -> Any:
        import tensorflow as tf

        local = self._strategy.experimental_local_results(numbers)
        return tf.add_n(local) / len(local)

    def _replica_steps(self, inputs: Any, rates: Any, wanted: Any) -> Any:
        import tensorflow as tf

        steps = rates.shape[0]
        self._find_names(tf.nest.map_structure(lambda tensor: tensor[0][0], inputs))

        def body(step: Any, numbers: Any) -> tuple[Any, Any]:
            part = tf.nest.map_structure(lambda tensor: tensor[step], inputs)
            return step + 1, numbers.write(step, self._replica(part, rates[step], wanted[step]))

        begin = (tf.constant(0), tf.TensorArray(tf.float32, steps, element_shape=(4 + len(self.names),)))
        _, numbers = tf.while_loop(
            lambda step, _: step < steps, body, begin, parallel_iterations=1, maximum_iterations=steps
        )
        return numbers.stack()

    def _replica(self, inputs: Any, rate: Any, wanted: Any) -> Any:
        """One optimizer step of one replica; returns the numbers of its shards."""
        import keras
        import tensorflow as tf

        optimizer, clip_norm = self._built.optimizer, self._built.clip_norm
        begun = self._clock(wanted[1], [])
        loss, *totals = self._accumulated(*inputs)
        computed = self._clock(wanted[1], totals)
        reduced = len(totals) - len(self.names)
        totals, metrics = totals[:reduced], totals[reduced:]
        weight, *sums = self._all_summed(totals)
        summed = self._clock(wanted[1], sums)
        times = [tf.cast(seconds, tf.float32) for seconds in (computed - begun, summed - computed)]
        gradients, moved = sums[: len(self._trained)], sums[len(self._trained) :]
        if weight is not None:
            factor = self._shards * tf.math.divide_no_nan(tf.constant(1.0, weight.dtype), weight)
            gradients = [None if one is None else one * tf.cast(factor, one.dtype) for one in gradients]
            loss *= tf.cast(factor, loss.dtype)
        if clip_norm:
            gradients, norm = tf.clip_by_global_norm(gradients, clip_norm)
        else:
            norm = tf.cond(wanted[0], lambda: _norm(gradients), lambda: tf.constant(math.nan))
        if isinstance(optimizer.learning_rate, keras.Variable):
            self._assign([(optimizer.learning_rate, rate)])
        optimizer.apply(gradients, self._trained)
        if self._overwrites:
            due = tf.equal(optimizer.iterations % self._overwrites, 0)
            averages = optimizer._model_variables_moving_average
            self._assign([(v, tf.where(due, a, v)) for v, a in zip(self._trained, averages, strict=True)])
        self._assign(
            [(v, self._averaged(total)) for v, total in zip(self._moving, moved, strict=True) if total is not None]
        )
        count = inputs[1].shape[0]
        return tf.stack([loss / count, tf.cast(norm, tf.float32), *times, *(metric / count for metric in metrics)])

    def _clock(self, wanted: Any, after: Sequence[Any]) -> Any:
        """The time in seconds when these tensors are there. It is Python's: TensorFlow refuses its own in a deterministic step, and XLA
        has none."""
        import tensorflow as tf

        nothing = tf.constant(math.nan, tf.float64)
        if not self._timed:
            return nothing
        with tf.control_dependencies([tensor for tensor in after if tensor is not None]):
            return tf.cond(wanted, lambda: tf.numpy_function(time.perf_counter, [], tf.float64), lambda: nothing)

    def _accumulated(self, batches: Any, states: Any) -> list[Any]:
        """Sums over this replica's shards, one after the other, so that memory holds one shard's activations: of the
        loss, its weight, the gradients, the moved state and the metrics; None for what no shard has."""
        import tensorflow as tf

        def shard(number: Any) -> list[Any]:
            return self._shard(tf.nest.map_structure(lambda tensor: tensor[number], batches), states[number])

        count = states.shape[0]
        if count == 1 or tf.executing_eagerly():
            return _summed(shard(number) for number in range(count))
        self._find_names((tf.nest.map_structure(lambda tensor: tensor[0], batches), states[0]))
        there: list[bool] = []

        def body(number: Any, *totals: Any) -> tuple[Any, ...]:
            parts = shard(number)
            there[:] = [part is not None for part in parts]
            added = (
                total if part is None else total + tf.cast(part, total.dtype)
                for total, part in zip(totals, parts, strict=True)
            )
            return (number + 1, *added)

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in (*self._trained, *self._moving)]
        weight = tf.constant(0.0, tf.float64)
        begin = (tf.constant(0), tf.constant(0.0), weight, *zeros, *(tf.constant(0.0) for _ in self.names))
        _, *totals = tf.while_loop(
            lambda number, *_: number < count, body, begin, parallel_iterations=1, maximum_iterations=count
        )
        return [total if part else None for total, part in zip(totals, there, strict=True)]

    def _shard(self, batch: Any, states: Any) -> list[Any]:
        """Loss, times its weight if it has one, the weight, gradients, moved state (batch normalization's averages) and metrics of one
        shard, from the state before the step."""
        import tensorflow as tf

        with tf.GradientTape() as tape, self._built.pure(states) as scope:
            loss, metrics, weight = self._loss(batch)
            loss = tf.cast(loss, tf.float32)
            loss = loss if weight is None else loss * tf.cast(weight, loss.dtype)
            # The sum over all shards is then the mean gradient.
            part = loss / self._shards
        gradients = tape.gradient(part, [variable.value for variable in self._trained])
        dense = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
        self.names[:] = sorted(metrics)
        moved = (scope.get_current_value(variable) for variable in self._moving)
        return [loss, weight, *dense, *moved, *(metrics[name] for name in self.names)]

    def _find_names(self, shard: Any) -> None:
        """The names of what `loss` gives beside the loss, which a loop in a graph must know before it is traced: asked in a graph
        that is thrown away."""
        import tensorflow as tf

        def ask(batch: Any, states: Any) -> dict[str, Any]:
            with self._built.pure(states):
                return self._loss(batch).numbers

        specs = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), shard)
        found = tf.function(ask, autograph=False).get_concrete_function(*specs)
        self.names[:] = sorted(found.structured_outputs)

    def _loss(self, batch: Any) -> LossAnswer:
        import tensorflow as tf

        task = self._built.task
        name = f"{getattr(task, 'name', type(task).__name__)}.loss"
        loss, metrics, weight = loss_answer(traced(task.loss, self._built.model, batch), name)
        numbers = {key: tf.reshape(tf.cast(value, tf.float32), ()) for key, value in metrics.items()}
        weight = None if weight is None else tf.reshape(tf.cast(weight, tf.float64), ())
        return LossAnswer(tf.reshape(loss, ()), numbers, weight)

    def _all_summed(self, totals: list[Any]) -> list[Any]:
        """Sums over all replicas; collectives take tensors of one type."""
        sums = list(totals)
        for dtype in dict.fromkeys(total.dtype for total in totals if total is not None):
            numbers = [i for i, total in enumerate(totals) if total is not None and total.dtype == dtype]
            for i, total in zip(numbers, self._summed([totals[i] for i in numbers]), strict=True):
                sums[i] = total
        return sums

    def _averaged(self, total: Any) -> Any:
        return total / self._shards if total.dtype.is_floating else total // self._shards

    def _assign(self, pairs: list[tuple[Any, Any]]) -> None:
        """Give variables values that are equal in all replicas."""
        import tensorflow as tf

        def assign(distribution: Any, values: list[Any]) -> None:
            for (variable, _), value in zip(pairs, values, strict=True):
                distribution.extended.update(variable.value, _assigned, args=(value,), group=False)

        if pairs:
            values = [value for _, value in pairs]
            tf.__internal__.distribute.interim.maybe_merge_call(assign, self._strategy, values)


def _summed(shards: Iterable[list[Any]]) -> list[Any]:
    """Position by position; None stays what it is."""
    totals, *others = shards
    for parts in others:
        totals = [None if total is None else total + part for total, part in zip(totals, parts, strict=True)]
    return totals


def _norm(gradients: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.cast(tf.linalg.global_norm(gradients), tf.float32)


def _assigned(variable: Any, value: Any) -> None:
    import tensorflow as tf

    variable.assign(tf.cast(value, variable.dtype))


def _leave_summing_to_us(optimizer: Any) -> None:
    """Keras would sum over the replicas what is summed already."""
    if not hasattr(optimizer, "_all_reduce_sum_gradients"):
        raise TypeError(
            f"{type(optimizer).__name__} is no optimizer of Keras 3 on TensorFlow: use one of keras.optimizers"
        )
    optimizer._all_reduce_sum_gradients = list


def traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's. Making Python's control flow on tensors TensorFlow's takes a good part of a
    second: that is done if the function turns out to have some."""
    import tensorflow as tf

    try:
        return function(*arguments)
    except tf.errors.OperatorNotAllowedInGraphError:
        owner = getattr(function, "__self__", None)
        converted = tf.autograph.to_graph(getattr(function, "__func__", function))
        return converted(*arguments) if owner is None else converted(owner, *arguments)
