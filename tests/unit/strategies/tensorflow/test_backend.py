"""What is particular to the TensorFlow strategies: randomness, state and checkpoints do not depend on the replicas."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.filterwarnings("ignore")

import keras  # noqa: E402
import logical_cpus  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from dtrain.api.strategy import RankInfo  # noqa: E402
from dtrain.api.training_backend import NonFiniteWeights, StepNumber  # noqa: E402
from dtrain.common.errors import CheckpointError, UserError  # noqa: E402
from dtrain.data.sampler import step_seed  # noqa: E402
from dtrain.job.job import Train  # noqa: E402

TensorFlowBackend: Any = importlib.import_module("dtrain.strategies.tensorflow.backend").TensorFlowBackend
RehearsalBackend: Any = importlib.import_module("dtrain.strategies.tensorflow.compiled").RehearsalBackend
RehearsalFailed: Any = importlib.import_module("dtrain.strategies.tensorflow.graph").RehearsalFailed
SHARDS = 8


@pytest.fixture(scope="module", autouse=True)
def devices() -> None:
    """Four logical CPUs, of which a session takes the first ones."""
    tf.config.experimental.enable_op_determinism()
    logical_cpus.four()


class Task:
    """Everything that has state or randomness: dropout, noise, batch normalization, a regularizer, an embedding."""

    def __init__(self, **changes: Any) -> None:
        self.__dict__.update(changes)

    def model(self) -> Any:
        inputs = keras.Input((6,))
        layers = keras.layers
        hidden = layers.Dense(16, activation="relu", kernel_regularizer="l2")(inputs)
        hidden = layers.BatchNormalization()(hidden)
        hidden = layers.Dropout(0.5)(layers.GaussianNoise(0.1)(hidden))
        words = layers.Flatten()(layers.Embedding(5, 3)(keras.ops.cast(inputs > 0, "int32")))
        return keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([hidden, words])))

    def optimizer(self, model: Any) -> Any:
        return keras.optimizers.Adam(0.01)

    def data(self, split: str) -> Any:
        inputs = np.random.default_rng(3).normal(size=(256, 6)).astype(np.float32)
        return inputs, inputs.sum(1, keepdims=True)

    def loss(self, model: Any, batch: Any) -> Any:
        inputs, targets = batch
        noisy = targets + 0.1 * keras.random.normal(targets.shape)
        return tf.reduce_mean((model(inputs, training=True) - noisy) ** 2) + sum(model.losses)


def session(replicas: int, task: Any = None, **train: Any) -> Any:
    # The collectives that are the default keep to the first number of devices that a process used them with.
    ops = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)], cross_device_ops=ops)
    made = TensorFlowBackend(RankInfo(0, 1, 0, 1, 0, 1, replicas), strategy)
    made.build(task or Task(), Train(steps=10, seed=4, **train))
    return made


def shards(step: int, size: int = 4) -> tuple[list[Any], list[int]]:
    inputs, targets = Task().data("train")
    parts = [slice(first, first + size) for first in range(0, SHARDS * size, size)]
    return [(inputs[part], targets[part]) for part in parts], [step_seed(4, step, shard) for shard in range(SHARDS)]


def trained(made: Any, steps: range, rate: float = 1.0) -> list[float]:
    return [float(made.step(*shards(step), rate)) for step in steps]


def digest(made: Any, folder: Path) -> str:
    folder.mkdir()
    return str(made.snapshot().write(folder).weights)


@pytest.mark.parametrize("replicas", [2, 4])
def test_dropout_noise_and_moving_averages_do_not_depend_on_the_number_of_replicas(replicas: int) -> None:
    one, several = session(1, clip_norm=0.5), session(replicas, clip_norm=0.5)
    assert trained(several, range(6), 0.5) == pytest.approx(trained(one, range(6), 0.5), rel=1e-5)
    for single, mirrored in zip(one.arrays()["model"].values(), several.arrays()["model"].values(), strict=True):
        np.testing.assert_allclose(single, mirrored, rtol=1e-4, atol=1e-6)


def test_another_seed_gives_another_loss_and_the_same_seed_the_same_one() -> None:
    made = session(2)
    batches, seeds = shards(0)
    values = [float(made.step(batches, chosen, 0.0)) for chosen in (seeds, seeds, [seed + 1 for seed in seeds])]
    assert values[0] == values[1] != values[2]


def test_moving_averages_are_those_of_the_mean_shard() -> None:
    made = session(2)
    before = {name: array for name, array in made.arrays()["model"].items() if "moving_mean" in name}
    batches, seeds = shards(0)
    kernel, bias, *_ = made.arrays()["model"].values()
    means = [np.maximum(inputs @ kernel + bias, 0).mean(0) for inputs, _ in batches]
    made.step(batches, seeds, 1.0)
    for name, array in before.items():
        np.testing.assert_allclose(
            made.arrays()["model"][name], 0.99 * array + 0.01 * np.mean(means, axis=0), rtol=1e-4
        )


def test_clipping_bounds_the_averaged_gradient() -> None:
    class Sgd(Task):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(1.0)

    made = session(2, Sgd(), clip_norm=0.25)
    before = list(made.arrays()["model"].values())
    trained(made, range(1))
    moving = [weight.trainable for weight in made.model.weights]
    moved = [
        after - at_first
        for after, at_first, trains in zip(made.arrays()["model"].values(), before, moving, strict=True)
        if trains
    ]
    assert float(np.sqrt(sum((part**2).sum() for part in moved))) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_a_checkpoint_moves_bit_for_bit_between_numbers_of_replicas(before: int, after: int, tmp_path: Path) -> None:
    saved = session(before)
    trained(saved, range(3))
    written = digest(saved, tmp_path / "one")
    loaded = session(after)
    loaded.load(tmp_path / "one")
    for part, arrays in saved.arrays().items():
        for array, again in zip(arrays.values(), loaded.arrays()[part].values(), strict=True):
            np.testing.assert_array_equal(array, again, strict=True)
    assert digest(loaded, tmp_path / "two") == written
    assert trained(loaded, range(3, 6)) == pytest.approx(trained(saved, range(3, 6)), rel=1e-5)


def test_resuming_on_as_many_replicas_is_bit_identical(tmp_path: Path) -> None:
    whole = session(2)
    trained(whole, range(6))
    first = session(2)
    trained(first, range(3))
    digest(first, tmp_path / "at three")
    second = session(2)
    second.evaluate([(shards(0)[0][0], 4)])
    second.load(tmp_path / "at three")
    second.evaluate([(shards(0)[0][0], 4)])
    trained(second, range(3, 6))
    assert digest(second, tmp_path / "resumed") == digest(whole, tmp_path / "whole")


def test_a_snapshot_is_safe_from_later_steps(tmp_path: Path) -> None:
    made = session(2)
    copy = made.snapshot()
    expected = digest(made, tmp_path / "before")
    trained(made, range(2))
    (tmp_path / "after").mkdir()
    assert copy.write(tmp_path / "after").weights == expected


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    class Wider(Task):
        def model(self) -> Any:
            return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])

    digest(session(1), tmp_path / "one")
    with pytest.raises(Exception, match="Resume with the model and the optimizer"):
        session(1, Wider()).load(tmp_path / "one")


def test_a_metric_with_its_own_weight_is_averaged_by_it() -> None:
    def metrics(model: Any, batch: Any) -> Any:
        high = tf.cast(batch[1] > 0, tf.float32)
        return {
            "high": (tf.reduce_sum(high * batch[1]) / tf.reduce_sum(high), tf.reduce_sum(high)),
            "mean": tf.reduce_mean(batch[1]),
        }

    made = session(4, Task(metrics=metrics))
    targets = np.concatenate([np.linspace(-3, 5, 16, dtype=np.float32), -np.ones(3, np.float32)]).reshape(-1, 1)
    batches = [
        ((np.zeros((size, 6), np.float32), targets[at : at + size]), size) for at, size in ((0, 8), (8, 8), (16, 3))
    ]
    found = made.evaluate([*batches, (batches[0][0], 0)])
    assert found == pytest.approx({"high": float(targets[targets > 0].mean()), "mean": float(targets.mean())}, rel=1e-6)


def test_evaluation_weighs_samples_and_leaves_the_state_alone(tmp_path: Path) -> None:
    def metrics(model: Any, batch: Any) -> Any:
        return {"mean": tf.reduce_mean(batch[1])}

    made = session(4, Task(metrics=metrics))
    before = digest(made, tmp_path / "before")
    _, targets = Task().data("eval")
    batches = [
        ((np.zeros((size, 6), np.float32), targets[at : at + size]), size) for at, size in ((0, 8), (8, 8), (16, 3))
    ]
    filler = (batches[0][0], 0)
    assert made.evaluate([*batches, filler])["mean"] == pytest.approx(float(targets[:19].mean()), rel=1e-6)
    assert digest(made, tmp_path / "after") == before


def test_control_flow_on_tensors_in_the_users_loss_works() -> None:
    class Branching(Task):
        def loss(self, model: Any, batch: Any) -> Any:
            error = model(batch[0], training=True) - batch[1]
            if tf.reduce_max(tf.abs(error)) > 1:
                return tf.reduce_mean(tf.abs(error))
            return tf.reduce_mean(error**2)

    losses = trained(session(2, Branching()), range(3))
    assert all(np.isfinite(losses))


def test_a_debugger_sees_numbers_in_steps_that_run_eagerly() -> None:
    seen = []

    class Looked(Task):
        def loss(self, model: Any, batch: Any) -> Any:
            loss = super().loss(model, batch)
            seen.append(getattr(loss, "numpy", lambda: None)())
            return loss

    static = trained(session(1, Looked()), range(3))
    assert not any(seen)
    seen.clear()
    tf.config.run_functions_eagerly(run_eagerly=True)
    try:
        assert trained(session(1, Looked()), range(3)) == pytest.approx(static, rel=1e-4)
    finally:
        tf.config.run_functions_eagerly(run_eagerly=False)
    assert len(seen) == 3 * SHARDS
    assert all(seen)


def test_random_numbers_that_do_not_follow_from_the_step_are_refused() -> None:
    class Own(Task):
        def loss(self, model: Any, batch: Any) -> Any:
            return super().loss(model, (tf.nn.dropout(batch[0], 0.5), batch[1]))

    with pytest.raises(TypeError, match=r"RandomUniform, made at test_backend.py:\d+ in loss\) .* keras.random"):
        trained(session(2, Own()), range(1))


def test_a_model_without_an_input_shape_gets_its_weights_from_the_seed(tmp_path: Path) -> None:
    class Shapeless(Task):
        def model(self) -> Any:
            return keras.Sequential([keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(1)])

    first, second = session(1, Shapeless()), session(2, Shapeless())
    assert digest(first, tmp_path / "first") == digest(second, tmp_path / "second")
    assert trained(second, range(4)) == pytest.approx(trained(first, range(4)), rel=1e-5)


def test_what_dtrain_does_itself_is_refused_in_the_optimizer() -> None:
    class Scaled(Task):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))

    class Accumulating(Task):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    class TwoSchedules(Task):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))

        def schedule(self, step: int, total_steps: int) -> float:
            return 1.0

    refused = (
        (Scaled(), "bfloat16"),
        (Accumulating(), "train.shards"),
        (TwoSchedules(), "both the task and the optimizer"),
    )
    for task, hint in refused:
        with pytest.raises(TypeError, match=hint):
            session(1, task)


def test_what_a_compiled_step_of_one_model_cannot_do_is_refused() -> None:
    class Several(Task):
        def models(self) -> Any:
            return {}

    class OwnStep(Task):
        def train_step(self, step: Any) -> Any:
            return 0.0

    for task in (Several(), OwnStep()):
        with pytest.raises(UserError, match=r"the TensorFlow strategies train one keras\.Model with one optimizer"):
            session(1, task)


class WithMetrics(Task):
    """Metrics beside the loss: a tensor that depends on the samples, and a plain number."""

    def loss(self, model: Any, batch: Any) -> Any:
        return super().loss(model, batch), {"targets": tf.reduce_mean(batch[1]), "one": 1}


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_what_loss_gives_beside_the_loss_is_averaged_over_the_shards(replicas: int) -> None:
    made, plain = session(replicas, WithMetrics()), session(replicas)
    batches, seeds = shards(0)
    values = dict(made.step(batches, seeds, 1.0))
    assert values == {
        "loss": pytest.approx(float(plain.step(batches, seeds, 1.0)), rel=1e-6),
        "targets": pytest.approx(float(np.mean([targets.mean() for _, targets in batches])), rel=1e-5),
        "one": 1.0,
    }


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_what_loss_gives_beside_the_loss_is_known_of_steps_that_wait_for_a_call(steps_per_call: int) -> None:
    class PlainWithMetrics(Plain):
        def loss(self, model: Any, batch: Any) -> Any:
            return super().loss(model, batch), {"targets": tf.reduce_mean(batch[1])}

    made = rehearsal(PlainWithMetrics(), steps_per_call)
    given = [made.step(*shards(step), 0.5) for step in range(4)]
    for step, values in enumerate(given):
        expected = np.mean([targets.mean() for _, targets in shards(step)[0]])
        assert dict(values)["targets"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_rate_and_gradient_norm_are_those_of_the_step_before_clipping(clip_norm: float | None) -> None:
    class Descent(Plain):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(0.5)

    made = session(2, Descent(), clip_norm=clip_norm)
    before = [np.array(made._array(variable)) for variable in made.model.trainable_variables]
    batches, seeds = shards(0)
    made.step(batches, seeds, 0.5, StepNumber(9, 100))
    measured = made.measured()
    assert measured["learning_rate"] == 0.25
    after = [np.array(made._array(variable)) for variable in made.model.trainable_variables]
    moved = [one - other for one, other in zip(before, after, strict=True)]
    norm = float(np.sqrt(sum(np.sum(part.astype(np.float64) ** 2) for part in moved))) / 0.25
    if clip_norm is None:
        assert measured["gradient_norm"] == pytest.approx(norm, rel=1e-3)
    else:
        assert measured["gradient_norm"] > 10 * clip_norm
        assert norm == pytest.approx(clip_norm, rel=1e-2)
    made.step(batches, seeds, 1.0, StepNumber(10, 100))  # which is not reported
    assert made.measured() == measured


def test_the_rate_of_a_schedule_of_the_optimizers_own_is_that_of_the_step() -> None:
    class Scheduled(Plain):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0))

    made = session(1, Scheduled())
    for step in range(4):
        made.step(*shards(step), 1.0, StepNumber(step, 4))
    assert made.measured()["learning_rate"] == pytest.approx(0.7)


class Counter:
    """Something with a state of its own."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def state_dict(self) -> Any:
        return self.seen

    def load_state_dict(self, state: Any) -> None:
        self.seen = state


def test_a_registered_object_is_found_by_its_name(tmp_path: Path) -> None:
    made, counter = session(2), Counter()
    made.register("counter", counter)
    counter.seen = {3: np.arange(4)}
    digest(made, tmp_path / "saved")
    again = session(1)
    again.load(tmp_path / "saved")
    assert again.unclaimed() == ["counter"]
    found = Counter()
    again.register("counter", found)
    assert found.seen[3].tolist() == [0, 1, 2, 3]
    assert not again.unclaimed()
    with pytest.raises(CheckpointError, match="has no state of 'other', which this run registers"):
        again.register("other", Counter())


def test_weights_that_are_not_finite_are_found_when_they_are_written(tmp_path: Path) -> None:
    made = session(1)
    made.model.trainable_variables[0].assign(np.full(made.model.trainable_variables[0].shape, np.nan))
    with pytest.raises(NonFiniteWeights, match="kernel has 96 of 96 values that are nan or inf"):
        digest(made, tmp_path / "saved")


def test_the_whole_model_is_a_plain_one_with_the_trained_weights() -> None:
    made = session(2)
    trained(made, range(2))
    whole = made.whole()
    for weight, array in zip(whole.weights, made.arrays()["model"].values(), strict=True):
        np.testing.assert_array_equal(weight.numpy(), array)
    assert type(whole.weights[0].value).__name__ == "ResourceVariable"


class Plain(Task):
    """No randomness, which XLA draws in another way."""

    def model(self) -> Any:
        layers = [keras.layers.Dense(16, activation="relu", kernel_regularizer="l2"), keras.layers.BatchNormalization()]
        return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(1)])

    def loss(self, model: Any, batch: Any) -> Any:
        return tf.reduce_mean((model(batch[0], training=True) - batch[1]) ** 2) + sum(model.losses)


def rehearsal(task: Any, steps_per_call: int = 1) -> Any:
    made = RehearsalBackend(
        RankInfo(0, 1, 0, 1, 0, 1, 8), tf.distribute.OneDeviceStrategy("CPU:0"), steps_per_call=steps_per_call, jit=True
    )
    made.build(task, Train(steps=10, seed=4))
    return made


def test_the_gradient_of_a_regularizer_counts_once() -> None:
    class Only(Plain):
        def optimizer(self, model: Any) -> Any:
            return keras.optimizers.SGD(1.0)

        def loss(self, model: Any, batch: Any) -> Any:
            return sum(model.losses) + 0 * tf.reduce_sum(model(batch[0], training=True))

    made = session(2, Only())
    before = next(iter(made.arrays()["model"].values()))
    trained(made, range(1))
    np.testing.assert_allclose(next(iter(made.arrays()["model"].values())), before * (1 - 2 * 0.01), rtol=1e-5)


@pytest.mark.parametrize("steps_per_call", [1, 3])
def test_a_rehearsal_trains_as_the_others_do(steps_per_call: int) -> None:
    compiled = rehearsal(Plain(), steps_per_call)
    losses = [compiled.step(*shards(step), 0.5) for step in range(7)]
    assert [float(loss) for loss in losses] == pytest.approx(trained(session(2, Plain()), range(7), 0.5), rel=1e-4)


def test_steps_that_wait_for_a_call_are_in_the_checkpoint(tmp_path: Path) -> None:
    one, several = rehearsal(Plain()), rehearsal(Plain(), 3)
    for step in range(5):
        one.step(*shards(step), 1.0)
        several.step(*shards(step), 1.0)
    for single, called in zip(one.arrays()["model"].values(), several.arrays()["model"].values(), strict=True):
        np.testing.assert_allclose(single, called, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps_per_call", [1, 2])
def test_a_dynamic_shape_fails_the_rehearsal_with_the_operations_name(steps_per_call: int) -> None:
    class Masked(Plain):
        def loss(self, model: Any, batch: Any) -> Any:
            errors = (model(batch[0], training=True) - batch[1]) ** 2
            return tf.reduce_mean(tf.boolean_mask(errors, errors > 0.1))

    with pytest.raises(
        RehearsalFailed,
        match=r"dynamic shape: .*boolean_mask/Where \(Where, made at test_backend.py:\d+ in loss",
    ):
        made = rehearsal(Masked(), steps_per_call)
        float([made.step(*shards(step), 1.0) for step in range(steps_per_call)][-1])


def test_what_xla_cannot_compile_fails_the_rehearsal_with_the_operations_name() -> None:
    class Printing(Plain):
        def loss(self, model: Any, batch: Any) -> Any:
            tf.print("a loss")
            return super().loss(model, batch)

    with pytest.raises(RehearsalFailed, match=r"XLA cannot compile .*PrintV2.*test_backend.py:\d+ in loss"):
        float(rehearsal(Printing()).step(*shards(0), 1.0))
