"""The trained model of a run, built from the user's code with the weights of a checkpoint, and the data that it is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.api.exporter import Call, Inference
from dtrain.api.weights import Framework
from dtrain.common.errors import UsageError, UserError, nearest
from dtrain.data.stream import Stream
from dtrain.export.request import ExportRequest
from dtrain.spec.job import Job
from dtrain.worker import task as tasks
from dtrain.worker.task import EVAL, TRAIN, Task

BATCH, OTHER_BATCH = 16, 5
"""Samples of the two sizes that are tried."""
MOST_SAMPLES = 256
MOST_SECONDS = 30.0
"""Spent on what the trained model gives; two batches there are at least."""
EXAMPLE = "example_input"


@dataclass(frozen=True)
class Shown:
    """A batch that the trained model was shown."""

    size: int
    """Samples."""
    use: Callable[[], Any] | None
    """Has the task compute its metrics (or loss) of it; None if the inputs are the task's example."""
    call: Call


@dataclass
class Subject:
    """A trained model, and a task that uses it."""

    task: Task
    inference: Inference
    view: Any
    """What the task's methods are given: the model, or a dict of all of them."""
    name: str = ""
    """Of the model, if there are several: then `example_input` is given it."""

    def shown(self) -> tuple[str, list[Shown]]:
        """In words what data it is, and batches of two sizes, the first of which are one of each."""
        only = self._names()
        name, batches = self._batches()
        if not batches:
            return f"samples like {self.task.name}.{EXAMPLE}()", list(self._examples())
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
        call = self.inference.called(self.inference.batch(self._given()))
        fits = [array.ndim for _, array in call.inputs] == [array.ndim for _, array in like.inputs]
        size = len(call.inputs[0][1]) if call.inputs and call.inputs[0][1].ndim else 1
        return [Shown(size, None, call)] if fits else []

    def first_call(self) -> Call:
        """How the task calls its model on the first of those batches."""
        _, batches = self._batches()
        if not batches:
            return next(self._examples()).call
        return self.inference.record(self._use(self.inference.batch(batches[0][0])), self._names())

    def _names(self) -> tuple[str, ...]:
        """Of the inputs that the example names; empty if it names none."""
        example = self._given() if hasattr(self.task, EXAMPLE) else None
        return tuple(example) if isinstance(example, Mapping) else ()

    def _given(self) -> Any:
        """What the task gives for an example."""
        method = getattr(self.task, EXAMPLE)
        return method(self.name) if self.name else method()

    def _use(self, batch: Any) -> Callable[[], Any]:
        method = self.task.metrics if hasattr(self.task, "metrics") else getattr(self.task, "loss", None)
        if method is None:
            raise UserError(
                f"{self.task.name} has neither metrics nor loss, so that the inputs of its model are not known",
                f"Give it a method {EXAMPLE}({'model_name' if self.name else ''}) that returns a batch of them.",
            )
        return lambda: method(self.view, batch)

    def _batches(self) -> tuple[str, list[tuple[Any, int]]]:
        """Of the held-out data, or of the training's if there is none; a few samples are shown more than once."""
        used = hasattr(self.task, "metrics") or hasattr(self.task, "loss")
        if hasattr(self.task, EXAMPLE) and not used:
            return "", []
        split = EVAL
        data = self.task.batches(split)
        if data is None:
            split, data = TRAIN, self.task.batches(TRAIN)
        assert data is not None, "only held-out data may be missing"
        words = "held-out samples" if split == EVAL else "samples of the training data (there are no held-out ones)"
        return words, list(_of_stream(data) if isinstance(data, Stream) else _of_size(data))

    def _examples(self) -> Iterator[Shown]:
        example = self.inference.batch(self._given())
        for size in (BATCH, OTHER_BATCH):
            call = self.inference.called(example)
            inputs = [np.resize(array, (size, *array.shape[1:])) for _, array in call.inputs]
            outputs = self.inference.run(call, inputs)
            names = [name for name, _ in call.inputs]
            yield Shown(size, None, Call(tuple(zip(names, inputs, strict=True)), outputs, call.form))


def _of_size(data: Any) -> Iterator[tuple[Any, int]]:
    total = min(data.size, MOST_SAMPLES)
    first = min(BATCH, max(2, total))
    yield data.fetch(np.arange(first) % data.size), first
    other = min(OTHER_BATCH, first - 1)
    yield data.fetch(np.arange(first, first + other) % data.size), other
    for begin in range(first + other, total - first + 1, first):
        yield data.fetch(np.arange(begin, begin + first)), first


def _of_stream(data: Stream) -> Iterator[tuple[Any, int]]:
    for size, limit in ((BATCH, BATCH), (OTHER_BATCH, OTHER_BATCH)):
        yield from ((batch, count) for batch, count in data.one_epoch(size, 0, 1, limit) if count)


def built(job: Job, framework: type[Framework], request: ExportRequest) -> tuple[Task, Any]:
    """The run's task, and its model or models, not trained."""
    if job.kind == "function":
        raise UsageError(
            f"{job.target} is a function, which builds its model itself: there is no task to export",
            "Take its weights: dtrain weights RUN --to model.safetensors, or dtrain.load in a program of your own.",
        )
    if not Path(request.code).is_dir():
        raise UsageError(
            f"the run's code is not on this machine: there is no folder {request.code}", "Name it: --code FOLDER"
        )
    task = tasks.of_job(job)
    return task, framework.build(task, task.name)


def chosen(model: Any, name: str) -> Any:
    """One of a task's models."""
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


def subject(task: Task, framework: type[Framework], model: Any, name: str) -> Subject:
    """The model to export, as its task uses it."""
    inference = framework.inference(chosen(model, name))
    view = {**model, name: inference.model} if isinstance(model, Mapping) else inference.model
    return Subject(task, inference, view, name)


def own_weights(weights: Mapping[str, Any], model: Any, name: str) -> dict[str, Any]:
    """Those of one of a task's models, by its own names."""
    prefix = f"{name}." if isinstance(model, Mapping) else ""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
