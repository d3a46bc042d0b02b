"""Prefetching: batches are fetched ahead of the training by data workers, and what the training waits for them is measured.

Batch number n is a function of n alone, so a data worker needs no state: after a kill, or at another number of workers, it
is asked for the numbers that are missing. Results do not depend on the number of data workers.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from dtrain.common.errors import UserError
from dtrain.common.lazy_dataclass import dataclass
from dtrain.data.data_worker import DataWorker, Fetched, same

NOTICED = 0.02
"""Share of the time that the training may wait for data before `auto` starts (more) data workers."""
LEAST_SECONDS = 0.0005
"""A batch that is fetched faster than this is not worth a process."""
TRIED = 4
"""Batches between two decisions of `auto`."""
WAITING_SHARE = 0.5
"""A data worker that uses less CPU time than this share of its time waits for something else."""
MOST_WAITING = 8
"""Data workers that `auto` starts if they use no CPU."""
COMPARED = 4
"""Batches of data workers that `auto` started, which are compared with what the process that trains fetches."""
MOST_DEATHS = 2
"""Deaths of data workers at the same batch that are tolerated."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class PrefetchSettings:
    """How one rank's batches are fetched."""

    workers: int | None
    """Data workers; None: as many as it takes, up to `cpus` (or MOST_WAITING if they use no CPU)."""
    ahead: int
    """Batches that each data worker is ahead of the training."""
    memory: int
    """Most bytes of batches that wait for the training."""
    cpus: int
    """CPUs of this rank."""
    silent_seconds: float
    """A data worker that takes longer for a batch writes its stack to the log."""
    close: tuple[int, ...] = ()
    """File descriptors that are not for data workers."""
    first: int = 0
    """Data workers to begin with if `workers` is None."""
    warn: Callable[[str], None] = print
    """Tells the user something."""


@dataclass()
class DataWait:
    """How long the training waited for data."""

    seconds: float = 0.0
    """Seconds in sum."""
    workers: int = 0
    """Data workers now."""


class Prefetcher:
    """Gives the batches of a row of numbers in order. Close it."""

    def __init__(
        self,
        fetch: Callable[[int], Any],
        numbers: range,
        settings: PrefetchSettings,
        wait: DataWait,
        received: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        """`received` makes, in this process, what `get` gives of what `fetch` gave."""
        self._received = received
        self._fetch = fetch
        self._numbers = numbers
        self._settings = settings
        self._wait = wait
        self._workers: list[DataWorker] = []
        self._ready: dict[int, Fetched] = {}
        self._next_asked = numbers.start
        self._deaths: dict[int, int] = {}
        self._load = _Load(time.perf_counter())
        self._automatic = settings.workers is None
        self._unproven = COMPARED if self._automatic and not settings.first else 0
        """Batches of data workers that are still to be compared with what this process fetches."""
        self._start(settings.first if settings.workers is None else settings.workers)

    def get(self, number: int) -> Any:
        """The batch of the next number; raises what fetching it raised, or `UserError` if its data workers keep dying."""
        began = time.perf_counter()
        if self._workers:
            fetched = self._awaited(number)
            value, seconds, busy = fetched.value, fetched.seconds, fetched.cpu_seconds
            if fetched.failed:
                value = self._again(number, fetched)
            elif self._unproven:
                value = self._proven(number, value)
        else:
            cpu_began = time.process_time()
            value = self._fetch(number)
            seconds, busy = time.perf_counter() - began, time.process_time() - cpu_began
        now = time.perf_counter()
        self._wait.seconds += now - began
        self._load.add(waited=now - began, fetched=seconds, busy=busy, now=now)
        if self._automatic:
            self._adapt(number + 1)
        return self._received(value)

    def close(self) -> None:
        """End the data workers."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._ready.clear()
        self._wait.workers = 0

    def _start(self, count: int) -> None:
        for _ in range(count):
            others = [worker.socket.fileno() for worker in self._workers]
            self._workers.append(DataWorker(self._fetch, [*self._settings.close, *others]))
        self._wait.workers = len(self._workers)

    def _adapt(self, next_number: int) -> None:
        """`auto`: more data workers while the training waits, as far as there are CPUs."""
        wanted = self._load.wanted(len(self._workers), self._settings.cpus)
        if wanted > len(self._workers):
            if not self._workers:
                self._next_asked = next_number
            self._start(wanted - len(self._workers))

    def _awaited(self, number: int) -> Fetched:
        self._ask()
        deadline = time.monotonic() + self._settings.silent_seconds
        while number not in self._ready:
            by_socket = {worker.socket.fileno(): worker for worker in self._workers if worker.asked}
            poll = select.poll()
            for descriptor in by_socket:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll(POLL_SECONDS * 1000):
                self._receive(by_socket[descriptor])
            if time.monotonic() > deadline:
                deadline = math.inf
                self._complain(number)
        found = self._ready.pop(number)
        self._deaths.pop(number, None)
        self._ask()
        return found

    def _ask(self) -> None:
        """Keep every data worker busy, within the bound of memory."""
        size = self._load.size = max((fetched.size for fetched in self._ready.values()), default=self._load.size)
        ahead = self._settings.ahead if size else 1
        most = max(1, min(ahead * len(self._workers), self._settings.memory // max(1, size)))
        outstanding = sum(len(worker.asked) for worker in self._workers) + len(self._ready)
        while outstanding < most and self._next_asked < self._numbers.stop:
            worker = min(self._workers, key=lambda worker: len(worker.asked))
            self._ask_one(worker, self._next_asked)
            self._next_asked += 1
            outstanding += 1

    def _ask_one(self, worker: DataWorker, number: int) -> None:
        try:
            worker.ask(number)
        except OSError:
            worker.asked.append(number)
            self._replace(worker)

    def _receive(self, worker: DataWorker) -> None:
        fetched = worker.receive()
        if fetched is None:
            self._replace(worker)
        else:
            self._ready[fetched.number] = fetched

    def _replace(self, worker: DataWorker) -> None:
        """A data worker died: another one takes its place and its numbers; what it died at is tried only once more."""
        status = worker.end()
        how = f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else "gone"
        number = worker.asked[0]
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] >= MOST_DEATHS:
            raise UserError(
                f"two data workers were {how} one after the other while they fetched the batch of step {number}: out of "
                "memory, or a fault in a library that the data set uses (data.workers: 0 fetches in the training process)"
            )
        print(f"dtrain: a data worker was {how} at the batch of step {number}; another one goes on", file=sys.stderr)
        others = [other.socket.fileno() for other in self._workers if other is not worker]
        fresh = DataWorker(self._fetch, [*self._settings.close, *others])
        self._workers[self._workers.index(worker)] = fresh
        for asked in worker.asked:
            self._ask_one(fresh, asked)

    def _complain(self, number: int) -> None:
        for worker in self._workers:
            if number in worker.asked:
                print(
                    f"dtrain: data worker {worker.pid} has been fetching the batch of step {number} for "
                    f"{self._settings.silent_seconds:.0f} s; its stack:",
                    file=sys.stderr,
                    flush=True,
                )
                worker.show_stacks()

    def _again(self, number: int, failed: Fetched) -> Any:
        """Repeat here what failed in a data worker, so that an error of the user's code has its own traceback."""
        value = self._fetch(number)
        print(
            f"dtrain: this failed in a data worker, and not in the process that trains:\n{failed.value}",
            file=sys.stderr,
        )
        self._give_up(
            "fetching a batch failed in a data worker and not in the process that trains, which fetches the data from now on "
            "(the traceback is in the rank's log)"
        )
        return value

    def _proven(self, number: int, value: Any) -> Any:
        """`auto` asks nobody: the first batches of data workers must be what this process fetches itself, to the last bit."""
        self._unproven -= 1
        own = self._fetch(number)
        if not same(own, value):
            self._give_up(
                "data workers are not used, since a batch that one fetched differs from the same one fetched by the process that "
                "trains: the samples depend on something else than their number (a random generator of the data set's own, a file "
                "that is read on); data.workers: 0 says so, a number uses them all the same"
            )
        return own

    def _give_up(self, why: str) -> None:
        self._settings.warn(why)
        self._automatic = False
        self.close()


class _Load:
    """Costs of fetching and waits of the training, over the last few batches."""

    def __init__(self, now: float) -> None:
        self.size = 0
        """Bytes of a batch; 0: not known yet."""
        self._since = now
        self._count = 0
        self._waited = self._fetched = self._busy = 0.0

    def add(self, *, waited: float, fetched: float, busy: float, now: float) -> None:
        """Add a batch; all times in seconds."""
        self._count += 1
        self._now = now
        self._waited += waited
        self._fetched += fetched
        self._busy += busy

    def wanted(self, workers: int, cpus: int) -> int:
        """Data workers that would hide the waiting."""
        if self._count < TRIED:
            return workers
        elapsed = self._now - self._since
        share, fetching = self._waited / max(elapsed, 1e-9), self._fetched / self._count
        computing = max(1e-6, (elapsed - self._waited) / self._count)
        most = cpus if self._busy > WAITING_SHARE * self._fetched else max(cpus, MOST_WAITING)
        self._since, self._count = self._now, 0
        self._waited = self._fetched = self._busy = 0.0
        if share <= NOTICED or fetching < LEAST_SECONDS:
            return workers
        if not workers:
            return min(most, math.ceil(fetching / computing) + 1)
        return max(workers, min(most, workers + 1))
