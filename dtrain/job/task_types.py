"""Types for editors and type checkers: the shape of a task, and of the step that `train_step` gets. Nothing needs to inherit from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Task(Protocol):
    """A class that dtrain trains. Beside these, a task may have `models` and `optimizers` (dicts),
    `train_step(step)` in place of `loss`, `metrics(model, batch)`, `outputs(model, batch)` with `metrics_of(*arrays)`,
    `schedule(step, total_steps)`, `collate(samples)` and `finish(model)`."""

    def model(self) -> Any:
        """A `torch.nn.Module` or a `keras.Model`, on the CPU."""

    def optimizer(self, model: Any) -> Any:
        """An optimizer of the model's parameters, or (optimizer, scheduler) under PyTorch."""

    def data(self, split: str) -> Any:
        """The samples of "train" or "eval": arrays with the samples along the first axis, a data set, or an iterable."""

    def loss(self, model: Any, batch: Any) -> Any:
        """The mean loss of a batch, a scalar tensor; or (loss, {"name": number}), where "weight" is the number of what it is the mean
        of, or a dict with "loss"."""


class TrainStep(Protocol):
    """The argument of `train_step`: one step whose forward and backward passes are the task's."""

    number: int
    """Number of the step, counted from 0."""
    total_steps: int
    """Of the whole run."""
    batch: Any
    """This worker's part of the global batch, on its device."""
    models: Mapping[str, Any]
    optimizers: Mapping[str, Any]

    @property
    def model(self) -> Any:
        """The only model of a task with `model`."""

    @property
    def optimizer(self) -> Any:
        """The only optimizer of a task with `optimizer`."""

    def minimize(self, loss: Any, name: str = "", *, weight: Any = None) -> None:
        """Collective. Average the gradients of `loss` over the ranks, clip them, and step the optimizer of this name."""
