"""A user's task, asked and checked: every answer that does not keep to the contract is one line that names their file."""

from __future__ import annotations

import copy
import inspect
import random
from collections import deque
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.common.errors import UserError
from dtrain.data.batches import Batches
from dtrain.data.randomness import seed_all
from dtrain.data.stream import Stream, opened
from dtrain.job import entrypoint, task_answers
from dtrain.job.job import Job
from dtrain.job.task_class import EXPECTED, METHODS

TRAIN, EVAL = "train", "eval"
COPIED = (list, dict, set, deque, random.Random, np.random.Generator)
MOST_COPIED = 1 << 24
"""Bytes of an array, or items of a container, up to which `Task.copied` copies it."""
OUTPUTS = "outputs(model, batch)"
MEASURES = ("metrics", "outputs", "loss")
"""Methods of which held-out data needs one."""
OTHER_SPLITS = ("val", "valid", "validation", "test")


class Task:
    """A task as dtrain and the strategies see it; whatever is not checked here is the user's own attribute."""

    def __init__(self, user: Any, name: str, seed: int) -> None:
        self.inner = user
        """The user's own object."""
        self._seed = seed
        self.name = name
        """Name for messages: `digits.py: Digits`."""
        self.note = ""
        """A warning about what the task gave and dtrain does not use."""
        for either in METHODS:
            if not any(callable(getattr(user, method, None)) for method in either):
                raise UserError(f"{name} has no method {' or '.join(either)}: {EXPECTED}")

        if hasattr(user, "metrics_of") and not hasattr(user, "outputs"):
            raise UserError(f"{name}.metrics_of is called with what {OUTPUTS} returns of all samples, which is missing")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.inner, attribute)

    def copied(self, memo: dict[int, Any]) -> Task:
        """Make a copy for a call of the user's code that leaves no trace: containers, arrays, generators and what has a `state_dict` among the
        attributes are copied, too. Raises `ValueError` if they are large, and what `copy.deepcopy` raises."""
        user = copy.copy(self.inner)
        for name, value in vars(user).items():
            if isinstance(value, COPIED) or any(hasattr(value, one) for one in ("dtype", "state_dict", "get_state")):
                size = value.nbytes if hasattr(value, "nbytes") else len(value) if isinstance(value, Sized) else 0
                if size > MOST_COPIED:
                    raise ValueError(f"{name} is large")
                setattr(user, name, copy.deepcopy(value, memo))
        return Task(user, self.name, self._seed)

    def batches(self, split: str) -> Batches | Stream | None:
        """The data of a split; None if there is none to evaluate on."""
        name = f"{self.name}.data({split!r})"
        seed_all(self._seed)
        try:
            data = self.inner.data(split)
        except Exception as error:
            if others := self._other_splits():
                raise UserError(
                    f"{name} failed ({type(error).__name__}: {error}), and the method knows {others}: "
                    f"dtrain asks for {TRAIN!r} and {EVAL!r}"
                ) from error
            raise
        if data is None and split == EVAL:
            if others := self._other_splits():
                raise UserError(
                    f"{name} gave None, and the method knows {others}: dtrain asks for {TRAIN!r} and {EVAL!r}"
                )
            return None
        if split == EVAL and not any(hasattr(self.inner, method) for method in MEASURES):
            self.note = f"{name} is not evaluated on: the task has neither metrics nor loss to do it with"
            return None
        return opened(
            data,
            seed=self._seed,
            name=name,
            collate=getattr(self.inner, "collate", None),
            again=lambda: self.inner.data(split),
        )

    def _other_splits(self) -> str:
        """Names of held-out splits that stand in the source of `data`, if `eval` does not."""
        code = getattr(getattr(self.inner.data, "__func__", self.inner.data), "__code__", None)
        texts = _strings(code.co_consts) if code is not None else set()
        return "" if EVAL in texts else ", ".join(repr(text) for text in OTHER_SPLITS if text in texts)

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the learning rate at a step."""
        if not hasattr(self.inner, "schedule"):
            return 1.0
        return task_answers.factor(
            self.inner.schedule(step, total_steps), f"{self.name}.schedule({step}, {total_steps})"
        )

    def doubts(self, total_steps: int) -> list[str]:
        """Why the schedule is probably not meant as it is; at most one reason."""
        for step in dict.fromkeys((0, total_steps // 2, total_steps - 1)):
            name = f"{self.name}.schedule({step}, {total_steps})"
            if text := task_answers.doubt(self.factor(step, total_steps), name):
                return [text]
        return []


def _strings(constants: Any) -> set[str]:
    """Strings among the constants of a function's code, those in tuples too (`split in ("val", "test")`)."""
    found: set[str] = set()
    for constant in constants:
        if isinstance(constant, str):
            found.add(constant)
        elif isinstance(constant, tuple | frozenset):
            found |= _strings(constant)
    return found


def of_job(job: Job) -> Task:
    """Import and make the task that a job names, with the same random numbers on every rank and after every restart."""
    name = name_of(job.target)
    seed_all(job.train.seed)
    cls = entrypoint.load(job.target, Path(job.folder))
    if not callable(cls):
        raise UserError(f"{name} is {task_answers.gave(cls)}; expected a class: {EXPECTED}")
    _check_params(cls, job.params, name)
    return Task(cls(**job.params), name, job.train.seed)


def name_of(target: str) -> str:
    """A target as messages name it: `digits.py: Digits`."""
    module, name = entrypoint.split(target)
    return f"{Path(module).name}: {name}"


def _check_params(cls: Any, params: Mapping[str, Any], name: str) -> None:
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**params)
    except TypeError as error:
        raise UserError(f"{name}{signature} does not take the recipe's params: {error}") from None
