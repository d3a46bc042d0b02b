"""Explores every order in which the steps of some processes can happen, in a model of what they share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class Broken:
    """A shortest way to a state in which something that was promised is not so."""

    promise: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Model(Generic[State]):
    """What can happen, and what must never be."""

    begin: State
    steps: Callable[[State], Iterator[tuple[str, State]]]
    """Every step that is possible in a state: its name and the state after it."""
    broken: Callable[[State], str]
    """The promise that a state breaks; '' if it breaks none."""


def explore(model: Model[State], most: int = 2_000_000) -> tuple[Broken | None, int]:
    """The shortest way to a broken promise, if there is one, and the number of states that were seen."""
    before: dict[State, tuple[State, str] | None] = {model.begin: None}
    waiting = deque([model.begin])
    while waiting:
        state = waiting.popleft()
        if promise := model.broken(state):
            return Broken(promise, _way(before, state)), len(before)
        for name, after in model.steps(state):
            if after not in before:
                before[after] = (state, name)
                waiting.append(after)
                assert len(before) <= most, "the model is too large"
    return None, len(before)


def _way(before: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    names = []
    while (came := before[state]) is not None:
        state, name = came
        names.append(name)
    return tuple(reversed(names))
