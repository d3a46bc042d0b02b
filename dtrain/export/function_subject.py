"""The trained model of a `function:`, which builds it itself: the function is called until it builds the model, and then until it calls it.

Nothing is trained: the function is left at that moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dtrain.api.exporter import Call, ExportError, Inference
from dtrain.api.weights import Framework
from dtrain.data.batches import Batches
from dtrain.data.stream import Stream, opened
from dtrain.export.shown import Shown, batches_of, resized
from dtrain.job import entrypoint
from dtrain.job.job import Job
from dtrain.worker.task import name_of

HINT = "Take its weights: dtrain weights RUN --to model.safetensors, or dtrain.load in a program of your own."


class Seen(BaseException):
    """Ends a function at the moment that was waited for."""


class FunctionModel:
    """A function of the user's, as what builds a model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.name = name_of(job.target)
        self._function = entrypoint.load(job.target, Path(job.folder))

    def build(self, framework: type[Framework], *, empty: bool) -> Any:
        """The model, or the dict of several, not trained; see `Framework.build`."""
        context = StandInContext(self.job)
        context.until = "prepare"
        try:
            self.call(context)
        except Seen:
            return framework.build(context.task, self.name, empty=empty)
        raise ExportError(f"{self.name} does not call context.prepare, so that its model is not known", HINT)

    def call(self, context: StandInContext) -> None:
        """Call the function until somebody ends it."""
        self._function(context)


class StandInContext:
    """Stands in for the context of a function."""

    splits = ("train", "eval")
    rank, world_size, epoch = 0, 1, 0

    def __init__(self, job: Job, view: Any = None, batch: Any = None) -> None:
        self.params = job.params
        self.step, self.total_steps = 0, job.train.steps or 1
        self.until = ""
        """The method at which the function is left."""
        self.task: Any = None
        """The builders, as a task has them."""
        self.data: Callable[[str, int], Batches | Stream] | None = None
        """Opens the data of the loop."""
        self._view = view
        self._batch = batch

    @property
    def backend(self) -> Any:
        """Refuse: there is no backend."""
        raise ExportError("the function uses context.backend, which there is in a training only", HINT)

    def prepare(self, model: Any = None, optimizer: Any = None, **named: Any) -> Any:
        """The trained models, with new optimizers."""
        pairs = {name: given if isinstance(given, tuple) else (given, None) for name, given in named.items()}
        built = SimpleNamespace(models=lambda: {name: pair[0]() for name, pair in pairs.items()})
        self.task = built if named else SimpleNamespace(model=model)
        if self.until == "prepare":
            raise Seen
        if not named:
            return self._view, optimizer(self._view) if optimizer else None
        return {name: (self._view[name], make(self._view[name]) if make else None) for name, (_, make) in pairs.items()}

    def batches(self, data: Any, collate: Any = None) -> Iterator[Any]:
        """Yield one batch."""
        self.data = lambda name, seed: opened(data, seed=seed, name=name, collate=collate)
        if self.until == "batches":
            raise Seen
        return iter([self._batch])

    def register(self, _name: str, thing: Any) -> Any:
        """Ignore the object."""
        return thing

    def report(self, **_values: Any) -> None:
        """Ignore the values."""

    def evaluate(self, _metrics: Any, _data: Any, _collate: Any = None) -> dict[str, float]:
        """Evaluate nothing."""
        return {}

    def stop(self, _reason: str) -> None:
        """Ignore the request: the function is left anyway."""


class FunctionSubject:
    """A trained model, and the function that uses it."""

    def __init__(self, function: FunctionModel, inference: Inference, view: Any) -> None:
        self._function = function
        self.inference = inference
        self._view = view

    def shown(self) -> tuple[str, list[Shown]]:
        """In words what data it is, and batches of two sizes, the first of which are one of each."""
        begun = self._begun()
        if isinstance(begun, Call):
            return "samples like those of its first step", list(resized(self.inference, begun))
        return "samples of the training data", [Shown(size, None, self._recorded(batch)) for batch, size in begun]

    def first_call(self) -> Call:
        """How the function calls its model on the first of those batches."""
        begun = self._begun()
        return begun if isinstance(begun, Call) else self._recorded(begun[0][0])

    def _begun(self) -> list[tuple[Any, int]] | Call:
        """The batches that the function asks for, or its first call of the model if it has data of its own."""
        job = self._function.job
        context = StandInContext(job, self._view)
        context.until = "batches"
        try:
            return self.inference.record(lambda: self._function.call(context))
        except Seen:
            assert context.data is not None, "it was seen"
        return list(batches_of(context.data(f"{self._function.name}: context.batches", job.train.seed)))

    def _recorded(self, batch: Any) -> Call:
        context = StandInContext(self._function.job, self._view, self.inference.batch(batch))
        return self.inference.record(lambda: self._function.call(context))
