"""A seeded scheduler of threads in simulated time: one thread goes on at a time, which one is drawn, and so are pauses and clocks.

Code that runs in it finds its own `threading`, `queue` and `time`; every operation on storage is a moment at which another thread may go on.
The same seed gives the same order."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

REAL_MONOTONIC, REAL_TIME, REAL_SLEEP = time.monotonic, time.time, time.sleep
MOST_SECONDS = 4 * 3600.0
"""Simulated; what has not ended by then never does."""
PATIENCE_SECONDS = 60.0
"""Real, for one thread to come to its next operation."""
MOST_PAUSE_SECONDS = 240.0
CLOCK_SECONDS = 600.0
"""How far a clock is wrong at most."""


class Over(BaseException):
    """Ends the threads that are left at the end of a simulation."""


@dataclass
class Machine:
    """A machine with a clock of its own."""

    name: str
    clock: float = 0.0
    """Seconds by which its time of day is wrong."""
    paused_until: dict[str, float] = field(default_factory=dict)
    """Role → when its threads may go on; '' is the whole machine."""


class Thread:
    """A thread of a machine."""

    def __init__(self, simulation: Simulation, machine: Machine, role: str, work: Callable[[], None]) -> None:
        self.machine = machine
        self.role = role
        self.done = False
        self.error: BaseException | None = None
        self.ready: Callable[[], bool] = lambda: True
        self.deadline = 0.0
        self.turn = threading.Semaphore(0)
        self._simulation = simulation
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.turn.acquire()
        self._simulation.of_thread.current = self
        try:
            if not self._simulation.over:
                self._work()
        except Over:
            pass
        except BaseException as error:  # noqa: BLE001  the simulation says it
            self.error = error
        self.done = True
        self._simulation.back.release()

    def resume(self) -> None:
        """Let it run to its next operation."""
        self.turn.release()
        assert self._simulation.back.acquire(timeout=PATIENCE_SECONDS), (
            f"{self.machine.name} {self.role} does not come back"
        )

    def may_run(self, now: float) -> bool:
        paused = max(self.machine.paused_until.get(role, 0.0) for role in ("", self.role))
        return not self.done and paused <= now and (self.deadline <= now or self.ready())

    def wakes(self, now: float) -> float:
        """When it may go on at the latest, if nothing else happens."""
        paused = max(self.machine.paused_until.get(role, 0.0) for role in ("", self.role))
        return max(paused, now if self.ready() else self.deadline)


class Simulation:
    """Machines, their threads, and the time."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = 1000.0
        self.over = False
        self.of_thread = threading.local()
        self.back = threading.Semaphore(0)
        self.threads: list[Thread] = []
        self.steps = 0
        self.pause_chance = self.chance.choice([0.01, 0.03, 0.1])
        self.pauses = self.chance.choice([0, 2, 5, 15])
        """That are still to come, at most."""

    @property
    def current(self) -> Thread | None:
        found: Thread | None = getattr(self.of_thread, "current", None)
        return found

    def start(self, machine: Machine, role: str, work: Callable[[], None]) -> Thread:
        """Another thread of a machine."""
        self.threads.append(Thread(self, machine, role, work))
        return self.threads[-1]

    def run(self, ended: Callable[[], bool]) -> None:
        """Let the threads go on until this is so, and end those that are left."""
        try:
            while not ended():
                self._step()
        finally:
            self.over = True
            for thread in self.threads:
                while not thread.done:
                    thread.resume()

    def _step(self) -> None:
        self.threads = [thread for thread in self.threads if not thread.done]
        runnable = [thread for thread in self.threads if thread.may_run(self.now)]
        if not runnable:
            self.now = min(thread.wakes(self.now) for thread in self.threads)
            assert self.now < MOST_SECONDS, "it never ends"
            return
        self.steps += 1
        chosen = self.chance.choice(runnable)
        chosen.resume()
        if chosen.error:
            raise chosen.error
        self.now += self.chance.random() * 0.02
        if self.pauses and self.chance.random() < self.pause_chance:
            self.pauses -= 1
            self._disturb(chosen.machine)

    def _disturb(self, machine: Machine) -> None:
        """Hold up a machine, or its supervisor alone, and perhaps set its clock."""
        role = self.chance.choice(["", "supervisor"])
        machine.paused_until[role] = self.now + self.chance.random() * MOST_PAUSE_SECONDS
        if self.chance.random() < 0.5:
            machine.clock = self.chance.uniform(-CLOCK_SECONDS, CLOCK_SECONDS)

    def wait(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """In a thread: go on when this is so, or after so many seconds; whether it is so."""
        thread = self.current
        if thread is None:
            return ready()
        thread.ready = ready
        thread.deadline = float("inf") if seconds is None else self.now + max(0.0, seconds)
        self.back.release()
        thread.turn.acquire()
        if self.over:
            raise Over
        return ready()

    def tick(self) -> None:
        """In a thread: another one may go on now."""
        self.wait(lambda: True, 0.0)

    # --- what code finds in the place of the real ones ---

    def monotonic(self) -> float:
        return self.now if self.current else REAL_MONOTONIC()

    def time(self) -> float:
        thread = self.current
        return 1.7e9 + self.now + thread.machine.clock if thread else REAL_TIME()

    def sleep(self, seconds: float) -> None:
        if self.current:
            self.wait(lambda: False, seconds)
        else:
            REAL_SLEEP(seconds)

    def modules(self) -> Any:
        """`threading` and `queue` in one."""
        simulation = self

        class Event:
            def __init__(self) -> None:
                self._set = False

            def set(self) -> None:
                self._set = True

            def is_set(self) -> bool:
                return self._set

            def wait(self, timeout: float | None = None) -> bool:
                return simulation.wait(self.is_set, timeout)

        class Lock:
            def __init__(self) -> None:
                self._held = False

            def __enter__(self) -> None:
                while self._held:
                    simulation.wait(lambda: not self._held)
                self._held = True

            def __exit__(self, *_: object) -> None:
                self._held = False

        class SimpleQueue:
            def __init__(self) -> None:
                self._items: deque[Any] = deque()

            def put(self, item: Any) -> None:
                self._items.append(item)

            def get(self, timeout: float | None = None) -> Any:
                simulation.wait(lambda: bool(self._items), timeout)
                if not self._items:
                    raise queue.Empty
                return self._items.popleft()

            def empty(self) -> bool:
                return not self._items

        class SimulatedThread:
            def __init__(self, target: Callable[..., None], args: tuple[Any, ...] = (), **_: object) -> None:
                self._work = lambda: target(*args)
                self._thread: Thread | None = None

            def start(self) -> None:
                assert simulation.current
                self._thread = simulation.start(simulation.current.machine, "supervisor", self._work)

            def join(self, timeout: float | None = None) -> None:
                thread = self._thread
                assert thread
                simulation.wait(lambda: thread.done, timeout)

        return mock.Mock(Event=Event, Lock=Lock, SimpleQueue=SimpleQueue, Thread=SimulatedThread, Empty=queue.Empty)

    @contextmanager
    def patched(self, *modules: tuple[Any, str]) -> Iterator[None]:
        """Give these modules the simulated `threading` and `queue`, and every one the simulated time."""
        patches = [mock.patch.object(time, name, getattr(self, name)) for name in ("monotonic", "time", "sleep")]
        simulated = self.modules()
        patches += [mock.patch.object(module, name, simulated) for module, name in modules]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


class Inline:
    """A pool of threads that does everything at once, in the thread that asks."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return map(work, *arguments)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done
