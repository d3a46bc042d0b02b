"""Runs slow calls (storage, the cluster) in threads beside the supervisor's loop; results return through the inbox."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from dtrain.common.lazy_dataclass import dataclass

T = TypeVar("T")


@dataclass(frozen=True)
class TaskDone:
    """Inbox item: a task has ended; the loop calls `answer`, which may raise what the task raised."""

    answer: Callable[[], None]


class Lane:
    """A thread that does tasks one after another; a task that hangs holds up its own lane and nothing else."""

    def __init__(self, name: str, put: Callable[[TaskDone], None]) -> None:
        self._put = put
        self._tasks: queue.SimpleQueue[Callable[[], Callable[[], None]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"dtrain-{name}", daemon=True)
        self._started = False

    def run(self, task: Callable[[], T], done: Callable[[T | Exception], Any]) -> None:
        """Do a task in the lane; `done` is called on the supervisor's loop with its result or its exception."""

        def work() -> Callable[[], None]:
            result: T | Exception
            try:
                result = task()
            except Exception as error:  # noqa: BLE001  whatever it is, the loop decides about it
                result = error
            return lambda: done(result)

        if not self._started:
            self._started = True
            self._thread.start()
        self._tasks.put(work)

    def _work(self) -> None:
        while True:
            self._put(TaskDone(self._tasks.get()()))
