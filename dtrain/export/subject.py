"""The trained model of a run, built from the user's code with the weights of a checkpoint, and the data that it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dtrain.api.exporter import Call, Inference
from dtrain.api.weights import Framework
from dtrain.common.errors import UsageError, UserError, nearest
from dtrain.common.lazy_dataclass import dataclass
from dtrain.export.function_subject import FunctionModel, FunctionSubject
from dtrain.export.request import ExportRequest
from dtrain.export.shown import Shown, batches_of, resized
from dtrain.job.job import Job
from dtrain.worker import task as tasks
from dtrain.worker.task import EVAL, TRAIN, Task

MOST_SECONDS = 30.0
"""Spent on what the trained model gives; two batches there are at least."""
EXAMPLE = "example_input"
MEASURES = ("metrics", "outputs", "loss")
"""Methods of a task that call the model on a batch: the first that it has is asked for the model's inputs."""


@dataclass
class Subject:
    """A trained model, and a task that uses it."""

    task: Task
    inference: Inference
    view: Any
    """The object that the task's methods get: the model, or a dict of all models."""
    name: str = ""
    """Of the model, if there are several: then `example_input` is given it."""

    def shown(self) -> tuple[str, list[Shown]]:
        """In words what data it is, and batches of two sizes, the first of which are one of each."""
        only = self._names()
        name, batches = self._batches()
        if not batches:
            return f"samples like {self.task.name}.{EXAMPLE}()", list(resized(self.inference, self._of_example()))
        found, began = [], time.monotonic()
        for number, (batch, size) in enumerate(batches):
            if number >= 2 and time.monotonic() - began > MOST_SECONDS:
                break
            use = self._use(self.inference.batch(batch))
            found.append(Shown(size, use, self.inference.record(use, only)))
        return name, found + self._example(found[0].call)

    def _example(self, like: Call) -> list[Shown]:
        """The task's example, if it has one of these inputs: sizes that it has otherwise than the data are free."""
        if not hasattr(self.task, EXAMPLE):
            return []
        call = self._of_example()
        fits = [array.ndim for _, array in call.inputs] == [array.ndim for _, array in like.inputs]
        size = len(call.inputs[0][1]) if call.inputs and call.inputs[0][1].ndim else 1
        return [Shown(size, None, call)] if fits else []

    def first_call(self) -> Call:
        """How the task calls its model on the first of those batches."""
        _, batches = self._batches()
        if not batches:
            return self._of_example()
        return self.inference.record(self._use(self.inference.batch(batches[0][0])), self._names())

    def _names(self) -> tuple[str, ...]:
        """Return the names of the inputs in the example; empty if it names none."""
        example = self._given() if hasattr(self.task, EXAMPLE) else None
        return tuple(example) if isinstance(example, Mapping) else ()

    def _of_example(self) -> Call:
        return self.inference.called(self.inference.batch(self._given()))

    def _given(self) -> Any:
        """Return the task's result for an example."""
        method = getattr(self.task, EXAMPLE)
        return method(self.name) if self.name else method()

    def _use(self, batch: Any) -> Callable[[], Any]:
        method = next((getattr(self.task, name) for name in MEASURES if hasattr(self.task, name)), None)
        if method is None:
            raise UserError(
                f"{self.task.name} has neither metrics nor loss, so that the inputs of its model are not known",
                f"Give it a method {EXAMPLE}({'model_name' if self.name else ''}) that returns a batch of them.",
            )
        return lambda: method(self.view, batch)

    def _batches(self) -> tuple[str, list[tuple[Any, int]]]:
        """Of the held-out data, or of the training's if there is none; a few samples are shown more than once."""
        used = any(hasattr(self.task, name) for name in MEASURES)
        if hasattr(self.task, EXAMPLE) and not used:
            return "", []
        split = EVAL
        data = self.task.batches(split)
        if data is None:
            split, data = TRAIN, self.task.batches(TRAIN)
        assert data is not None, "only held-out data may be missing"
        words = "held-out samples" if split == EVAL else "samples of the training data (there are no held-out ones)"
        return words, list(batches_of(data))


def built(
    job: Job, framework: type[Framework], request: ExportRequest, *, empty: bool = False
) -> tuple[Task | FunctionModel, Any]:
    """The run's task or function, and its model or models, not trained, and `empty` for what does not need their weights."""
    if not Path(request.code).is_dir():
        raise UsageError(
            f"the run's code is not on this machine: there is no folder {request.code}", "Name it: --code FOLDER"
        )
    if job.kind == "function":
        function = FunctionModel(job)
        return function, function.build(framework, empty=empty)
    task = tasks.of_job(job)
    return task, framework.build(task, task.name, empty=empty)


def chosen(model: Any, name: str) -> Any:
    """Return one of a task's models."""
    if not isinstance(model, Mapping):
        if name:
            raise UsageError(f"--model {name}: the task has one model, which has no name", "Leave it out.")
        return model
    if name not in model:
        known = list(model)
        raise UsageError(
            f"the task has several models: {', '.join(known)}",
            f"Name one: --model {known[0]}" if not name else nearest(name, known),
        )
    return model[name]


def subject(task: Task | FunctionModel, framework: type[Framework], model: Any, name: str) -> Subject | FunctionSubject:
    """The model to export, as its task or function uses it."""
    inference = framework.inference(chosen(model, name))
    view = {**model, name: inference.model} if isinstance(model, Mapping) else inference.model
    if isinstance(task, FunctionModel):
        return FunctionSubject(task, inference, view)
    return Subject(task, inference, view, name)


def own_weights(weights: Mapping[str, Any], model: Any, name: str) -> Mapping[str, Any]:
    """Return the weights of one of a task's models, by its own names."""
    if not isinstance(model, Mapping):
        return weights
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
