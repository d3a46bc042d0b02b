"""The numbers of a step: its loss, the metrics beside it, learning rate and gradient norm, read on request.

Importing this module imports no framework; every function that needs TensorFlow imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class StepNumbers(Mapping[str, float]):
    """Loss and metrics of one step, by name. Reading them waits for the device, and for the call that the step may be waiting for."""

    def __init__(self, names: Sequence[str], flush: Callable[[], None] | None = None) -> None:
        self.vector: Any = None
        """The result of `TrainStep.one`."""
        self._names = names
        """Names of the metrics; a list that is filled while the step is traced."""
        self._flush = flush

    def _numbers(self) -> list[float]:
        if self.vector is None and self._flush:
            self._flush()
        return [float(number) for number in self.vector]

    def gradient_norm(self) -> float:
        """Before it was clipped; not a number if the step was not asked for it."""
        return self._numbers()[1]

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of this process's own work and of the sum over all; not a number if they were not
        measured."""
        _, _, own, summing, *_ = self._numbers()
        return own, summing

    def __float__(self) -> float:
        return self._numbers()[0]

    def __getitem__(self, name: str) -> float:
        return dict(self._items())[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items())

    def __len__(self) -> int:
        return len(self._items())

    def _items(self) -> list[tuple[str, float]]:
        loss, _, _, _, *metrics = self._numbers()
        return [("loss", loss), *zip(self._names, metrics, strict=True)]


class Measures:
    """The steps that are reported, and the measurements of the newest of them."""

    def __init__(self, log_every: int) -> None:
        self._log_every = log_every
        self._newest: tuple[StepNumbers, float] | None = None

    def due(self, done: int, total_steps: int) -> bool:
        """Whether a report follows when so many steps are done."""
        return done % self._log_every == 0 or done == total_steps

    def keep(self, numbers: StepNumbers, rate: float) -> None:
        """A step that is reported, and its learning rate."""
        self._newest = (numbers, rate)

    def values(self) -> dict[str, float]:
        """Return the numbers of the newest step; {} for a loop of the user's own."""
        if self._newest is None:
            return {}
        numbers, rate = self._newest
        return {"learning_rate": rate, "gradient_norm": numbers.gradient_norm()}


def peak_device_memory() -> int:
    """Return the peak over this process's GPUs."""
    import tensorflow as tf

    gpus = range(len(tf.config.list_logical_devices("GPU")))
    return sum(int(tf.config.experimental.get_memory_info(f"GPU:{number}")["peak"]) for number in gpus)
