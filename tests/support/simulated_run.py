"""A run on remote storage in a simulation: real supervisors, stores and claims on several machines, workers that are played, and what must
hold at the end whatever was held up."""

from __future__ import annotations

import concurrent.futures
import json
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from scripted import task_job
from simulation import Inline, Machine, Simulation
from two_supervisors import WatchedStore

from dtrain.api import reports
from dtrain.api.cluster import Allocation
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import (
    TAG,
    AgentReady,
    Command,
    Heartbeat,
    LeaveAt,
    PortsReserved,
    ProposeStop,
    Quit,
    ReservePorts,
    StartWorkers,
    StopWorkers,
    WorkerExited,
    WorkerReport,
)
from dtrain.checkpoint.remote import RemoteCheckpointStore
from dtrain.common.errors import DtrainError, StorageError, UsageError
from dtrain.common.files import digest, hashed
from dtrain.common.message import tagged
from dtrain.data.sampler import Sampler
from dtrain.job.job import Job
from dtrain.launch import planner, registry
from dtrain.record.event_log import read
from dtrain.record.events import AttemptStarted, RunEnded, TrainingStarted, WorkersStarted
from dtrain.record.folder import RunDir
from dtrain.record.lock import Lease, LeaseTaken
from dtrain.record.sample_ledger import Ledger
from dtrain.report.audit import audit
from dtrain.storage import object_store, run_copy, run_lease, run_sync
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import RunCopy
from dtrain.supervisor import main
from dtrain.supervisor.beside import background
from dtrain.supervisor.leaving.stop_request import StopMode, StopRequest

STEPS = 6
EVERY = 2
SAMPLES = 16
MACHINES = 3
TAKE = run_lease.take
AGAIN_SECONDS = 45.0
"""After which somebody tries to resume the run on the next machine."""


def state_after(step: int) -> bytes:
    """What the weights are after so many steps, if none was lost or done twice."""
    state = b"begin"
    for number in range(step):
        state = digest(state + bytes([number])).digest()
    return state


class SharedStore(WatchedStore):
    """Remote storage as one machine sees it; its clock is the simulation's."""

    def __init__(self, url: str, world: World) -> None:
        super().__init__(url, {}, world.simulation.tick)
        self._world = world

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        self._world.written[name] = self._world.simulation.now

    def create(self, name: str, data: bytes) -> bool:
        made = super().create(name, data)
        if made:
            self._world.written[name] = self._world.simulation.now
            if name.startswith(run_lease.CLAIMS):
                self._world.made.append((int(name.rpartition("/")[2]), json.loads(data)["mark"]))
        return made

    def modified(self, name: str) -> float:
        self._world.simulation.tick()
        if name not in self._world.written or self.read(name) is None:
            raise StorageError(f"there is no {name}")
        return self._world.written[name]


@dataclass
class Played:
    """The agent of one node and its worker, as a thread of the machine."""

    world: World
    life: Life
    put: Callable[[Any], None]
    commands: Any
    training: StartWorkers | None = None
    step: int = 0
    state: bytes = b""
    ledger: Ledger | None = None
    leave: int | None = None

    def send(self, command: Command) -> None:
        """See `Channel.send`."""
        self.commands.put(command)

    def work(self) -> None:
        """Until it is told to quit."""
        self.put(AgentReady("node", "127.0.0.1", 2, 0, 1, sees_run=True))
        chance = self.world.simulation.chance
        while True:
            try:
                command = self.commands.get(timeout=chance.uniform(0.2, 1.0))
            except queue.Empty:
                command = None
            if isinstance(command, Quit):
                return
            try:
                self._obey(command)
            except (DtrainError, OSError):  # storage: a worker would say so, and end
                self._exit(1)

    def _obey(self, command: Command | None) -> None:
        if isinstance(command, ReservePorts):
            self.put(PortsReserved(command.attempt, (2000, 2001)))
        elif isinstance(command, StartWorkers):
            self._begin(command)
        elif isinstance(command, StopWorkers):
            self._exit(-9)
        elif self.training and isinstance(command, ProposeStop):
            self._report(reports.StopProposal(self.step + 1))
        elif isinstance(command, LeaveAt):
            self.leave = command.step
        elif self.training and command is None:
            self.put(Heartbeat(self.training.attempt))
            if self.world.simulation.chance.random() < self.world.kill_chance:
                self._exit(-9)
            else:
                self._step()

    def _begin(self, start: StartWorkers) -> None:
        self.training, self.step, self.state, self.leave = start, start.step, state_after(0), None
        self.put(WorkersStarted(attempt=start.attempt, node="node", pids={"0": 100}))
        if start.checkpoint:
            self.state = (self._store().local_folder(start.checkpoint, start.attempt) / "state").read_bytes()
        self.ledger = Ledger(self.life.run.ledger(start.attempt, 0))
        self._report(TrainingStarted(step=start.step, total_steps=STEPS, samples=SAMPLES))

    def _step(self) -> None:
        assert self.training
        assert self.ledger
        if self.step < STEPS and self.step != self.leave:
            sampler = Sampler(SAMPLES, self.life.job.train)
            begin = sampler.begin(self.step, 0)
            self.ledger.add(self.step, begin, sampler.indices(begin, self.life.job.train.global_batch))
            self.state = digest(self.state + bytes([self.step])).digest()
            self.step += 1
        over = self.step in (STEPS, self.leave)
        if self.step % EVERY == 0 or over:
            self._save()
        if over:
            self._report(reports.LeftAtStep(self.step) if self.step == self.leave else reports.StepsDone())
            self._exit(0)

    def _save(self) -> None:
        assert self.training
        store, attempt = self._store(), self.training.attempt
        folder = store.staging(attempt, self.step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").write_bytes(self.state)
        files = {"state": hashed(folder / "state")}
        store.publish(attempt, self.step, files)
        self._report(reports.ShardWritten(self.step, files, "1"))

    def _store(self) -> RemoteCheckpointStore:
        return RemoteCheckpointStore(self.life.run.checkpoints, self.life.store)

    def _report(self, report: Any) -> None:
        assert self.training
        self.put(WorkerReport(self.training.attempt, 0, tagged(report, TAG)))

    def _exit(self, code: int) -> None:
        if self.training:
            start, self.training = self.training, None
            self.put(WorkerExited(start.attempt, 0, code, self.step, out_of_memory=False))


@dataclass
class Life(Allocation):
    """One supervisor of the run, on a machine of its own, and its cluster."""

    requeues = False

    world: World
    host: Machine
    run: RunDir
    job: Job
    store: ObjectStore
    inbox: Any = None
    codes: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @contextmanager
    def allocate(self, plan: LaunchPlan, run: RunDir, inbox: Any) -> Iterator[Life]:
        """See `Cluster.allocate`."""
        self.inbox = inbox
        simulation = self.world.simulation
        agent = Played(
            self.world, self, lambda item: inbox.put(("node", item)), self.world.simulation.modules().SimpleQueue()
        )
        self.channels = {"node": agent}
        simulation.start(self.host, "agent", agent.work)
        try:
            yield self
        finally:
            agent.send(Quit())

    def replace(self, node: str) -> bool:
        """See `Allocation.replace`."""
        return False

    def live(self) -> None:
        """Supervise until an end; a person tries again while somebody else has the run."""
        while not self.world.finished:
            try:
                code = int(main.supervise(self.run, launch=planner.make(self.job)))
                self.codes.append(code)
                self.world.finished |= code == 0
            except (LeaseTaken, UsageError, StorageError) as error:
                self.errors.append(error)
            self.world.simulation.sleep(AGAIN_SECONDS)
        self.world.ended.add(self.host.name)


class World:
    """The storage and the machines of one seed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.folder = folder
        self.simulation = Simulation(seed)
        self.kill_chance = self.simulation.chance.choice([0.0, 0.05])
        self.written: dict[str, float] = {}
        self.made: list[tuple[int, str]] = []
        """Claims in the order in which they were made: number, and who made it."""
        self.taken: set[tuple[int, str]] = set()
        self.finished = False
        self.ended: set[str] = set()
        (folder / "nothing.py").write_text("class Nothing: ...\n")
        url = f"file://{folder}/there"
        job = task_job(folder, workers=1, url=url, heartbeat_seconds=600.0, restarts=50)
        self.job = replace(job, train=replace(job.train, steps=STEPS, global_batch=4, shards=1))
        self.lives = []
        for number in range(MACHINES):
            run = RunDir(folder / f"machine-{number}" / "a-run")
            run.create_folders()
            run.write_job(self.job)
            clock = self.simulation.chance.uniform(-600, 600)
            machine = Machine(f"machine {number}", clock)
            self.lives.append(Life(self, machine, run, self.job, SharedStore(f"{url}/a-run", self)))

    def _life(self) -> Life:
        current = self.simulation.current
        assert current
        return next(life for life in self.lives if life.host is current.machine)

    def run(self) -> str:
        """Run it to its end; what is wrong then, or ''."""
        watcher = mock.Mock()
        with ExitStack() as stack:
            stack.enter_context(
                self.simulation.patched(
                    (main, "queue"), (run_sync, "threading"), (run_copy, "threading"), (background, "threading"), (background, "queue")
                )
            )  # fmt: skip
            for target, name, value in (
                (main, "signal_handlers", lambda put: ExitStack()),
                (main, "RunFolderWatcher", lambda *_: watcher),
                (main, "Tracking", lambda run: mock.Mock()),
                (registry, "cluster_of", lambda job: self._life()),
                (run_lease, "take", self._take),
                (object_store, "of_run", lambda storage, run_id: self._life().store),
                (run_sync, "of_run", lambda storage, run_id: self._life().store),
                (os, "fsync", lambda descriptor: None),
                (concurrent.futures, "ThreadPoolExecutor", Inline),
                (run_copy, "ThreadPoolExecutor", Inline),
            ):
                stack.enter_context(mock.patch.object(target, name, value))
            stack.enter_context(
                mock.patch("dtrain.checkpoint.factory.of_run", lambda storage, run_id: self._life().store)
            )
            for number, life in enumerate(self.lives):
                self.simulation.start(life.host, "supervisor", self._later(life, 0.0 if not number else None))
            if self.simulation.chance.random() < 0.2:
                self.simulation.start(self.lives[0].host, "person", self._stop_once)
            self.simulation.run(lambda: len(self.ended) == MACHINES)
        return self.problem()

    def _take(self, remote: ObjectStore, lease: Lease) -> run_lease.RunClaim | None:
        claim = TAKE(remote, lease)
        if claim:
            self.taken.add((claim.number, lease.mark))
        return claim

    def _later(self, life: Life, seconds: float | None) -> Callable[[], None]:
        def work() -> None:
            chosen = self.simulation.chance.uniform(0, 200) if seconds is None else seconds
            self.simulation.sleep(chosen)
            life.live()

        return work

    def _stop_once(self) -> None:
        self.simulation.sleep(self.simulation.chance.uniform(0, 20))
        if self.lives[0].inbox:
            self.lives[0].inbox.put(("", StopRequest(StopMode.GRACEFUL, "a person")))

    @property
    def claims(self) -> list[int]:
        """The numbers under which supervisors had the run, in the order in which they were made."""
        return [claim[0] for claim in self.made if claim in self.taken]

    def problem(self) -> str:
        """What a third machine finds to be wrong."""
        run, store = RunDir(self.folder / "reader" / "a-run"), ObjectStore(f"file://{self.folder}/there/a-run", {})
        run.create_folders()
        run.write_job(replace(self.job, storage=replace(self.job.storage, url=None)))
        RunCopy(run, store).pull()
        history = read(run.events)
        attempts = [event.attempt for event in history if isinstance(event, AttemptStarted)]
        if self.claims != sorted(set(self.claims)):
            return f"claims {self.claims}"
        if attempts != sorted(set(attempts)):
            return f"attempts {attempts}"
        if not any(isinstance(event, RunEnded) and event.exit_code == 0 for event in history):
            return "a run that ended well has no end in its log"
        known = {event.attempt for event in history if isinstance(event, AttemptStarted)}
        folder, _ = RemoteCheckpointStore(run.checkpoints, store).verified(STEPS)
        if (folder / "state").read_bytes() != state_after(STEPS):
            return "the weights at the end are not those of an undisturbed run"
        if int(folder.name.rpartition("-")[2]) not in known:
            return f"{folder.name} is there without the history that explains it"
        found = audit(run)
        if found is None or not found.clean:
            return f"audit: {found and found.problems}"
        for life in self.lives:
            for path in (life.run.logs / main.CRASH_LOG,):
                if path.exists():
                    return path.read_text()
        return ""
