"""A trained Keras model outside of a training: how a task calls it, and the same call as a function of tensors alone.

Importing this module imports no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dtrain.api.exporter import Arrays, Call, ExportError, TensorSpec
from dtrain.job.task_answers import loss_answer, weighted

from .step import tensors


@dataclass(frozen=True)
class Form:
    """The structures of a model's inputs and outputs, each with what is no tensor in it."""

    inputs: Any
    outputs: Any
    output_names: tuple[str, ...]


class _Called(BaseException):
    """Ends what uses a model at its first call; not an `Exception`, so that the user's own handlers let it pass."""


class KerasInference:
    """Inference of one model. A task gets a stand-in, made for each use, that has the model's attributes and notes
    how it is called."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._answer: Callable[[Any], Any] | None = None
        self._compiled: Any = None

    @property
    def model(self) -> Any:
        """Return the stand-in that the task gets as its model."""
        return StandIn(self._model, lambda inputs, named: self._asked(inputs, named))

    def batch(self, batch: Any) -> Any:
        return tensors(batch)

    def _asked(self, inputs: Any, named: dict[str, Any]) -> Any:
        return self._answer(inputs) if self._answer else self._model(inputs, **named)

    def record(self, use: Callable[[], Any], only: Sequence[str] = ()) -> Call:
        calls: list[Any] = []

        def recording(inputs: Any) -> Any:
            calls.append(inputs)
            raise _Called

        self._answer = recording
        try:
            with suppress(_Called):
                use()
        finally:
            self._answer = None
        if not calls:
            raise ExportError(
                "the task's metrics (or loss) do not call the model itself, so that its inputs are not known",
                "Give the task a method example_input() that returns a batch of them.",
            )
        inputs = calls[0]
        if only:
            if not isinstance(inputs, Mapping) or not set(only) <= set(inputs):
                known = ", ".join(inputs) if isinstance(inputs, Mapping) else "one input without a name"
                raise ExportError(
                    f"example_input() names {', '.join(only)}, and the task calls its model with {known}",
                    "Return what the model is called with.",
                )
            inputs = {name: inputs[name] for name in only}
        return self.called(inputs)

    def called(self, example: Any) -> Call:
        import tensorflow as tf

        inputs = tf.nest.map_structure(tf.convert_to_tensor, example)
        given = self._model(inputs, training=False)
        leaves = [array.numpy() for array in tf.nest.flatten(inputs)]
        outputs = [tensor.numpy() for tensor in tf.nest.flatten(given)]
        form = Form(_hollow(inputs), _hollow(given), _names("output", given))
        return Call(tuple(zip(_names("input", inputs), leaves, strict=True)), outputs, form)

    def outputs_of(self, call: Call) -> tuple[str, ...]:
        names: tuple[str, ...] = call.form.output_names
        return names

    def function(self, call: Call, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
        """A `tf.function` from tensors to a dict of them, by the names of the outputs."""
        import tensorflow as tf

        names = tuple(spec.name for spec in outputs)

        def serve(*tensors: Any) -> dict[str, Any]:
            given = self._model(tf.nest.pack_sequence_as(call.form.inputs, tensors), training=False)
            return dict(zip(names, tf.nest.flatten(given), strict=True))

        signature = [tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs]
        return tf.function(serve, input_signature=signature, autograph=False)

    def run(self, call: Call, inputs: Arrays) -> Arrays:
        import tensorflow as tf

        def given(*arrays: Any) -> Any:
            return tf.nest.flatten(self._model(tf.nest.pack_sequence_as(call.form.inputs, arrays), training=False))

        self._compiled = self._compiled or tf.function(given, autograph=False, reduce_retracing=False)
        return [tensor.numpy() for tensor in self._compiled(*(tf.constant(one) for one in inputs))]

    def metrics(self, use: Callable[[], Any], call: Call, outputs: Arrays) -> dict[str, float] | None:
        import tensorflow as tf

        calls = 0

        def replayed(_inputs: Any) -> Any:
            nonlocal calls
            calls += 1
            return tf.nest.pack_sequence_as(call.form.outputs, [tf.constant(one) for one in outputs])

        self._answer = replayed
        try:
            given = use()
            numbers = given if isinstance(given, Mapping) else _of_loss(given)
            values = {name: float(value) for name, value in weighted(numbers, "metrics")[0].items()}
        except Exception:  # noqa: BLE001  the user's code does more than the stand-in can
            return None
        finally:
            self._answer = None
        return values if calls == 1 else None


class StandIn:
    """A model that is called through somebody else."""

    def __init__(self, model: Any, answer: Callable[[Any, dict[str, Any]], Any]) -> None:
        self._model = model
        self._answer_call = answer

    def __call__(self, inputs: Any, **named: Any) -> Any:
        """Call the model."""
        return self._answer_call(inputs, named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _of_loss(given: Any) -> dict[str, Any]:
    answer = loss_answer(given, "loss")
    return {"loss": answer.loss} | answer.numbers


def _hollow(structure: Any) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(lambda _: 0, structure)


def _names(word: str, structure: Any) -> tuple[str, ...]:
    """Return names of the tensors in a structure, in the order of `tf.nest.flatten`; they sort as they stand."""
    import tensorflow as tf

    if isinstance(structure, Mapping) and len(tf.nest.flatten(structure)) == len(structure):
        return tuple(sorted(structure))
    count = len(tf.nest.flatten(structure))
    return (word,) if count == 1 else tuple(f"{word}_{number:0{len(str(count - 1))}d}" for number in range(count))
