"""The shared part of the TensorFlow strategies: devices, building, one training step, evaluation, and means over
processes.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dtrain.api.phases import REDUCE, WORK
from dtrain.api.strategy import RankInfo
from dtrain.api.training_backend import (
    FIRST_STEP,
    Fetch,
    LossApart,
    Snapshot,
    StepNumber,
    TrainingBackend,
    nothing_to_fetch,
)
from dtrain.api.weights import ReadWeights, Unmatched
from dtrain.common.errors import UserError
from dtrain.job.job import Train
from dtrain.job.task_answers import gave

from .. import means
from .evaluation import Evaluation, Metrics, gathered
from .graph import refuse_own_randomness
from .models import made
from .numbers import Measures, StepNumbers
from .profiler import TensorFlowProfiler
from .state import STATE, NoSnapshot, Registered, Snapshots, keyed, load
from .step import Built, Summed, TrainStep, spread, tensors, use_for_unseeded
from .weights import KerasWeights

PRELOAD = ("tensorflow", "keras", "dtrain.worker.loop")
SEEDS = 1 << 32
TIMED_EVERY = 8
"""One in this number of steps is timed: that takes a tenth of a millisecond."""
MOST_TIMED = 32
"""Steps whose times are kept until somebody asks for their mean."""


def all_reduced(tensors: list[Any]) -> list[Any]:
    """Return, in a replica, sums over all replicas of the strategy."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))


class TensorFlowBackend(TrainingBackend):
    """Training under a `tf.distribute.Strategy`; `summed` if something else sums over the processes."""

    fetches = stays_in_memory = True

    def __init__(
        self,
        rank_info: RankInfo,
        strategy: Any,
        *,
        summed: Summed = all_reduced,
        jit: bool = False,
        timed: bool = False,
    ) -> None:
        """`timed`: steps tell how long they work before they wait for other processes, if there are some."""
        self.strategy = strategy
        """The tf.distribute strategy, whose `run` functions with a loop of their own call."""
        self._rank_info = rank_info
        self._summed = summed
        self._jit = jit
        self._timed = timed and rank_info.world_size > 1
        self._recent: deque[StepNumbers] = deque(maxlen=MOST_TIMED)
        """Steps whose times were not taken yet."""
        self._replicas = max(1, strategy.num_replicas_in_sync // rank_info.world_size)
        self._step: TrainStep | None = None
        self._inspected: list[Any] = []
        self._registered = Registered()
        self._snapshots = Snapshots()
        self._total: Any = None

    def build(self, task: Any, train: Train) -> tuple[Any, Any]:
        import keras

        name = self._name = getattr(task, "name", type(task).__name__)
        _refuse_several(task, name)
        keras.utils.set_random_seed(train.seed % SEEDS)
        with self.strategy.scope():
            noise = keras.random.SeedGenerator(train.seed % SEEDS)
            use_for_unseeded(noise)
            model = made(task, name)
            optimizer = task.optimizer(model)
            if not isinstance(optimizer, keras.optimizers.Optimizer):
                raise UserError(f"{name}.optimizer gave {gave(optimizer)}; expected an optimizer of keras.optimizers")
            _refuse_second_owner(task, optimizer)
            optimizer.build(model.trainable_variables)
        self.model = model
        self._built = Built(task, model, optimizer, train.clip_norm, noise)
        self._evaluation = Evaluation(self.strategy, self._built, name, self._replicas)
        rate = optimizer.learning_rate
        self._rate = float(self._array(rate)) if isinstance(rate, keras.Variable) else 1.0
        self._reported = Measures(train.log_every)
        self.seed(train.seed)
        return model, optimizer

    def feed(self, batch: Any, seed: int) -> Any:
        """Where the process has several replicas, an argument for `strategy.run`: each has its part."""
        import numpy as np
        import tensorflow as tf

        self.seed(seed)
        parts = [np.split(np.asarray(array), self._replicas) for array in tf.nest.flatten(batch)]
        return spread(
            self.strategy, tensors([tf.nest.pack_sequence_as(batch, part) for part in zip(*parts, strict=True)])
        )

    def seed(self, seed: int) -> None:
        """Seed TensorFlow's and Keras's generators, those of the model's layers too."""
        import tensorflow as tf

        random.seed(seed)
        tf.random.set_seed(seed)
        use_for_unseeded(self._built.noise)
        for variable, state in zip(self._built.generators, self._built.states([seed])[0], strict=True):
            variable.assign(state)

    def step(self, batches: Sequence[Any], seeds: Sequence[int], rate: float, number: StepNumber = FIRST_STEP) -> Any:
        """Each replica takes a contiguous block of the shards."""
        import numpy as np

        self._step = self._step or self.compiled(len(batches))
        numbers, due = self.begun(self._step, rate, number)
        timed = self._timed and number.step % TIMED_EVERY == 0
        arguments = (self.blocks(batches, seeds), np.float32(self._rate * rate), np.array([due, timed]))
        numbers.vector = self.called(self._step.one, *tensors(arguments))
        if timed:
            self._recent.append(numbers)
        return numbers

    def phases(self) -> Mapping[str, float]:
        """The newest step may not be done yet."""
        times = [self._recent.popleft().seconds() for _ in range(len(self._recent) - 1)]
        return dict(zip((WORK, REDUCE), map(fmean, zip(*times, strict=True)), strict=False)) if times else {}

    def begun(
        self, step: TrainStep, rate: float, number: StepNumber, flush: Callable[[], None] | None = None
    ) -> tuple[StepNumbers, bool]:
        """Where the numbers of a step will be, and whether they are reported."""
        import keras

        numbers = StepNumbers(step.names, flush)
        due = self._reported.due(number.step + 1, number.total_steps)
        if due:
            schedule = self._built.optimizer._learning_rate
            plain = isinstance(schedule, keras.Variable)
            self._reported.keep(numbers, self._rate * rate if plain else float(schedule(number.step)))
        return numbers, due

    def measured(self) -> dict[str, float]:
        return self._reported.values()

    def called(self, function: Any, *arguments: Any) -> Any:
        """Call a step function; its graph, if it has one, is looked at before its first call."""
        import tensorflow as tf

        if function not in self._inspected and not tf.config.functions_run_eagerly():
            self.inspect(function.get_concrete_function(*arguments).graph)
            self._inspected.append(function)
        return function(*arguments)

    def inspect(self, graph: Any) -> None:
        """Raise an error if this graph of a step must not run."""
        refuse_own_randomness(graph)

    def compiled(self, shards: int) -> TrainStep:
        """The step function for this number of shards a process; traced at its first call."""
        shards *= self._rank_info.world_size
        return TrainStep(
            self.strategy, self._built, shards=shards, summed=self._summed, jit=self._jit, timed=self._timed
        )

    def blocks(self, batches: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
        """Return, for each replica, its shards, stacked, and the states of their seed generators."""
        import tensorflow as tf

        states = self._built.states(seeds)
        each = len(batches) // self._replicas
        ranges = [slice(first, first + each) for first in range(0, len(batches), each)]
        return [(tf.nest.map_structure(_stacked, *batches[block]), states[block]) for block in ranges]

    def evaluate(self, batches: Iterable[tuple[Any, int]], metrics: Metrics | None = None) -> dict[str, float]:
        return self.mean(*self._evaluation.sums(batches, metrics))

    def outputs(self, batches: Iterable[tuple[Any, int]], function: Metrics) -> tuple[Any, ...] | None:
        return gathered(self._evaluation.outputs(batches, function), self._rank_info, self._totals)

    def loss_apart(self, batch: Any, seed: int) -> LossApart:
        variables = self._built.model.variables
        return self._evaluation.loss_apart(batch, seed, [(one, self._array(one)) for one in variables])

    def mean(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> dict[str, float]:
        import numpy as np

        def totals(numbers: Sequence[float]) -> list[float]:
            found: list[float] = self._totals(np.array(numbers, np.float64)).tolist()
            return found

        def everyones(names: list[str]) -> list[list[str]]:
            """Gather the names as bytes in a row for each rank, of the length of the longest."""
            text = np.frombuffer("\n".join(names).encode(), np.uint8)
            ranks, rank = self._rank_info.world_size, self._rank_info.rank
            sizes = totals([len(text) if one == rank else 0 for one in range(ranks)])
            rows = np.zeros((ranks, int(max(sizes))))
            rows[rank, : len(text)] = text
            summed = self._totals(rows.reshape(-1)).reshape(rows.shape).astype(np.uint8)
            texts = (summed[one, : int(size)].tobytes().decode() for one, size in enumerate(sizes))
            return [text.split("\n") if text else [] for text in texts]

        return means.by_name(values, weights, self._rank_info.world_size, totals, everyones)

    def _totals(self, numbers: Any) -> Any:
        """Collective. Sums over the processes, of which one replica each counts."""
        import numpy as np
        import tensorflow as tf

        def total(parts: Any) -> Any:
            # The identity gives the tensor a device, which collectives look at.
            summed = self.strategy.run(
                lambda part: self._summed([tf.identity(part)])[0], args=(spread(self.strategy, parts),)
            )
            return self.strategy.experimental_local_results(summed)[0]

        self._total = self._total or tf.function(total, autograph=False)
        zeros = [np.zeros_like(numbers)] * (self._replicas - 1)
        return self._total(tensors([numbers, *zeros])).numpy()

    def snapshot(self) -> Snapshot:
        """Rank 0 has all of it."""
        if self._rank_info.rank:
            return NoSnapshot()
        trained = {variable.name for variable in self._built.model.trainable_variables}
        return self._snapshots.take(self._arrays(), self._registered.states(), trained)

    def arrays(self) -> dict[str, dict[str, Any]]:
        """Copies of model and optimizer state: part → name → numpy array."""
        return {part: {name: array.copy() for name, array in arrays.items()} for part, arrays in self._arrays().items()}

    def _arrays(self) -> dict[str, dict[str, Any]]:
        """As `arrays`, but later steps may change them."""
        return {
            part: {name: self._array(variable) for name, variable in keyed(variables).items()}
            for part, variables in self._parts().items()
        }

    def _array(self, variable: Any) -> Any:
        import numpy as np

        # The first replica's own copy: reading across the replicas could be a collective, and only one rank is here.
        return np.asarray(self.strategy.experimental_local_results(variable.value)[0])

    def start_profile(self, file: Path) -> TensorFlowProfiler:
        return TensorFlowProfiler(file)

    def load(self, folder: Path, fetch: Fetch = nothing_to_fetch) -> None:
        fetch(folder, [STATE])
        load(folder, self._parts())
        self._registered.load(folder)

    def start_from(self, read: ReadWeights, source: str, *, strict: bool) -> Unmatched:
        """Every process reads them."""
        weights = read(KerasWeights, lambda: made(self._built.task, self._name))
        with self.strategy.scope():
            return KerasWeights.load_into(self.model, weights, strict=strict, source=f"init_from: {source}")

    def register(self, name: str, thing: Any) -> None:
        self._registered.add(name, thing)

    def unclaimed(self) -> list[str]:
        return self._registered.unclaimed()

    def whole(self) -> Any:
        """Build the model once more, outside of the strategy."""
        if self._rank_info.rank:
            return None
        model = made(self._built.task, self._name)
        for variable, array in zip(model.weights, self.arrays()["model"].values(), strict=True):
            variable.assign(array)
        return model

    def _parts(self) -> dict[str, Sequence[Any]]:
        """Return the content of a checkpoint. The states of seed generators are left out: a step follows from its
        seeds."""
        return {"model": self._built.model.weights, "optimizer": self._built.optimizer.variables}


def _stacked(*parts: Any) -> Any:
    import numpy as np

    return np.stack(parts) if len(parts) > 1 else np.asarray(parts[0])[np.newaxis]


def _refuse_several(task: Any, name: str) -> None:
    """Raise `UserError` for what a compiled step of one model cannot do."""
    for method in ("models", "optimizers", "train_step"):
        if hasattr(task, method):
            raise UserError(
                f"{name} has {method}: the TensorFlow strategies train one keras.Model with one optimizer by its loss; put "
                "the models into one keras.Model and weigh their losses, or train in a script: of your own"
            )


def _refuse_second_owner(task: Any, optimizer: Any) -> None:
    """Options of Keras's optimizers for what dtrain does itself, and that would be done twice."""
    import keras

    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or getattr(optimizer, "loss_scale_factor", None):
        raise TypeError(
            "loss scaling is not supported: train with keras.config.set_dtype_policy('mixed_bfloat16'), which needs none"
        )
    if getattr(optimizer, "gradient_accumulation_steps", None):
        raise TypeError(
            "gradient_accumulation_steps is not needed: raise train.shards, whose gradients dtrain accumulates"
        )
    if hasattr(task, "schedule") and not isinstance(optimizer.learning_rate, keras.Variable):
        raise TypeError(
            "both the task and the optimizer have a schedule: leave out task.schedule, or give a plain learning rate"
        )
