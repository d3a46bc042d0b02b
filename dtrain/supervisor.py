"""The supervisor of one run: asks for nodes, starts attempts, watches, decides, and writes down all of it."""

from __future__ import annotations

import gc
import queue
import time
from typing import Any

from dtrain import events, history, mirror, plan, report
from dtrain.attempt import Attempt, Node
from dtrain.checkpoint import Committed
from dtrain.cluster import Allocation, Draining, Explains, Inbox, NodeLost, Requeues, Warned
from dtrain.errors import ClusterError, DtrainError, Exit, StorageError
from dtrain.messages import Grew, Joiner, Piece, Ready
from dtrain.outcome import Done, Ending, Failed, Left, Outcome
from dtrain.plan import LaunchPlan
from dtrain.recovery import Failure, decide
from dtrain.remote import of_run
from dtrain.remote_checkpoint import store_of
from dtrain.requeue import queue_again
from dtrain.rundir import Lease, RunDir
from dtrain.wish import Wish, by_signals

TICK_SECONDS = 0.25
LOOK_SECONDS = 0.5
MOST_STILLBORN = 3


class Supervisor:
    """The loop of one run on one allocation."""

    def __init__(self, run: RunDir, launch: LaunchPlan, log: events.EventLog, inbox: Inbox, lease: Lease) -> None:
        self._run = run
        self._lease = lease
        self._plan = launch
        self._log = log
        self._inbox = inbox
        self._settings = launch.job.recovery
        self._store = store_of(run, launch.job, lease.mark)
        self._failures: list[Failure] = []
        self._attempts = history.attempts(run)
        self._ready: dict[str, Node] = {}
        self._heard: dict[str, float] = {}
        self._attempt: Attempt | None = None
        self._stillborn: dict[str, str] = {}
        """Agents that ended before they were ready, since one was, and why."""
        self._gone: set[str] = set()
        self._unreplaced: set[str] = set()
        """Lost nodes that the cluster has nothing to replace with."""
        self._wish = Wish.NOTHING
        self._why = ""
        self._warned = False
        """The cluster wants the run to leave, and no person does."""
        self._draining: set[str] = set()
        """Nodes that the cluster is about to take away."""
        self._moving = False
        """The attempt under way was asked to save and leave only to go on with other nodes."""
        self._look_at = 0.0
        self._joiner = Joiner()

    def run(self) -> Exit:
        """The whole run; the exit code of the process."""
        try:
            with self._plan.cluster.allocate(self._plan, self._run, self._inbox) as allocation:
                ending = self._train(allocation)
                if not ending.again:
                    return self._end(ending.exit_code, ending.reason)
        finally:
            self._hear_last_words()
        ending = queue_again(ending, self._plan, self._run, self._log)
        return self._end(ending.exit_code, ending.reason)

    def _hear_last_words(self) -> None:
        """Of agents that have ended: what was still to be added to logs."""
        while not self._inbox.empty():
            node, item = self._inbox.get()
            whole = self._joiner.add(node, item) if isinstance(item, Piece) else item
            if isinstance(whole, Grew):
                self._take(node, whole)

    def _train(self, allocation: Allocation) -> Ending:
        """Attempts, until there is no further one."""
        while True:
            resume = self._resume_from()
            ending = self._provision(allocation)
            if ending is None and self._wish is not Wish.NOTHING:
                ending = self._leaving(f"{self._why} before the workers were started")
            ending = ending or self._answer(self._watch(allocation, resume), allocation)
            if ending:
                return ending

    def _provision(self, allocation: Allocation) -> Ending | None:
        """Wait for enough nodes, as long as more can come; raises `ClusterError` where they do not come in time."""
        deadline = time.monotonic() + self._settings.provision_seconds
        while len(self._ready) < self._plan.nodes and self._wish is Wish.NOTHING:
            late = time.monotonic() > deadline
            coming = any(name not in self._ready and name not in self._gone for name in allocation.channels)
            if not coming or late:
                if self._enough():
                    return None
                if self._failures and isinstance(self._plan.cluster, Requeues):
                    lost = tuple(sorted(self._unreplaced | self._stillborn.keys()))
                    reason = f"{len(self._ready)} of {self._plan.nodes} nodes are left"
                    return Ending(Exit.GAVE_UP, reason, again=True, without=lost)
            if late or not allocation.channels:
                raise ClusterError(
                    f"{len(self._ready)} of {self._plan.nodes} nodes were ready after {self._settings.provision_seconds:g} s",
                    allocation.missing()
                    if isinstance(allocation, Explains)
                    else f"The agents' logs are in {self._run.logs}.",
                )
            self._turn()
            if self._stillborn:
                self._start_again(allocation)
        return None

    def _enough(self) -> bool:
        """Whether an attempt can do with the nodes that are ready."""
        return any(self._plan.fits(nodes) for nodes in range(1, len(self._ready) + 1))

    def _start_again(self, allocation: Allocation) -> None:
        """Some agents ended before they were ready: try each a few times."""
        if len(self._stillborn) <= MOST_STILLBORN:
            self._replace_lost(allocation)
        elif not self._failures:
            node, reason = list(self._stillborn.items())[-1]
            raise ClusterError(
                f"the agents end as soon as they are started: {node}: {reason}", f"See {self._run.logs}/agent-*.log."
            )

    def _replace_lost(self, allocation: Allocation) -> None:
        for node in [name for name in allocation.channels if name in self._gone]:
            if not allocation.replace(node):
                self._unreplaced.add(node)

    def _watch(self, allocation: Allocation, resume: Committed | None) -> Outcome:
        """One attempt on the nodes that are ready."""
        nodes = next(
            n
            for n in range(min(len(self._ready), self._plan.nodes), 0, -1)
            if n == self._plan.nodes or self._plan.fits(n)
        )
        self._attempts += 1
        chosen = list(self._ready.values())[:nodes]
        self._attempt = Attempt(
            self._attempts, self._plan.on(nodes), chosen, allocation.channels,
            run_id=self._run.id, store=self._store, log=self._log, resume=resume, lease=self._lease,
        )  # fmt: skip
        self._log.add(
            "attempt", attempt=self._attempts, step=resume.step if resume else 0, checkpoint=resume.name if resume else None,
            nodes=[node.name for node in chosen], workers=self._plan.on(nodes).workers, processes=self._plan.on(nodes).processes,
        )  # fmt: skip
        self._attempt.begin()
        while self._attempt.outcome is None:
            self._turn()
        return self._attempt.outcome

    def _turn(self) -> None:
        """Take in everything that happened, for one tick at most."""
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                node, item = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            self._take(node, item)
            if self._attempt and self._attempt.outcome:
                return
            if self._inbox.empty():
                break
        now = time.monotonic()
        if self._inbox.empty():  # or this process was held up, and what they said is yet to be heard
            self._look_for_silence(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look_for_request()
        if self._attempt:
            self._attempt.tick(now)
            for node in self._attempt.stuck(now):
                self._lose(node, "its workers were killed and do not end")
            if self._could_grow(self._attempt):
                self._move(f"{len(self._ready)} nodes are ready again")

    def _look_for_silence(self, now: float) -> None:
        for node, heard in list(self._heard.items()):
            if now - heard > self._settings.heartbeat_seconds:
                self._lose(node, f"it said nothing for {self._settings.heartbeat_seconds:g} s")

    def _could_grow(self, attempt: Attempt) -> bool:
        """Whether an attempt that had to do with fewer nodes could have more of them now."""
        more = range(attempt.nodes + 1, min(len(self._ready.keys() - self._draining), self._plan.nodes) + 1)
        return any(nodes == self._plan.nodes or self._plan.fits(nodes) for nodes in more)

    def _move(self, why: str) -> None:
        """Have the workers save and leave at an agreed step, to go on from it with other nodes."""
        if self._attempt and not self._moving and self._wish is Wish.NOTHING:
            self._moving = True
            self._log.add("moving", why=why)
            self._attempt.leave(time.monotonic())

    def _moved(self, allocation: Allocation) -> None:
        self._moving = False
        for node in self._draining & self._ready.keys():
            self._lose(node, "it was drained")
        self._replace_lost(allocation)

    def _take(self, node: str, item: Any) -> None:
        now = time.monotonic()
        if isinstance(item, Piece):
            if whole := self._joiner.add(node, item):
                self._take(node, whole)
        elif isinstance(item, Grew):
            from dtrain import standin  # few runs need it

            standin.keep(self._run, item)
        elif isinstance(item, Wish):
            self._asked(item, "interrupted")
        elif isinstance(item, Warned):
            if self._wish is Wish.NOTHING:
                self._asked(Wish.LEAVE, item.reason)
                self._warned = True
        elif node in self._gone:
            # Given up, but not dead: it has been replaced, or will be, under another name.
            return
        elif isinstance(item, Draining):
            self._draining.add(node)
            self._move(f"{item.reason}: {node}")
        elif isinstance(item, NodeLost):
            self._lose(node, item.reason)
        elif isinstance(item, Ready):
            self._heard[node] = now
            self._welcome(node, item)
        else:
            self._heard[node] = now
            if self._attempt and item.attempt == self._attempt.number:
                self._attempt.handle(node, item, now)

    def _welcome(self, node: str, ready: Ready) -> None:
        if not ready.sees_run and not self._plan.job.storage.url:
            raise ClusterError(
                f"the agent on {ready.host} does not see the run folder {self._run.path}",
                "Put it on a file system that all nodes share (--runs FOLDER), or give storage.url.",
            )
        self._stillborn.clear()
        self._ready[node] = Node(node, ready.address, ready.host, ready.sees_run)
        self._log.add(
            "node", node=node, host=ready.host, address=ready.address, cpus=ready.cpus, gpus=ready.gpus, pid=ready.pid
        )

    def _lose(self, node: str, reason: str) -> None:
        if node in self._gone:
            return
        self._heard.pop(node, None)
        known = self._ready.pop(node, None)
        self._gone.add(node)
        self._log.add("node_lost", node=node, reason=reason)
        if self._attempt and known and not self._attempt.outcome:
            self._attempt.lost(node, reason, time.monotonic())
        elif not known:
            self._stillborn[node] = reason

    def _asked(self, wish: Wish, why: str) -> None:
        """Somebody wants the run to stop; whoever asks twice means at once."""
        self._warned = False
        self._wish = Wish.NOW if self._wish is not Wish.NOTHING or wish is Wish.NOW else Wish.LEAVE
        self._why = self._why or why
        self._log.add("stopping", why=why, now=self._wish is Wish.NOW)
        if self._attempt:
            self._attempt.leave(time.monotonic())
            if self._wish is Wish.NOW:
                self._attempt.kill()

    def _look_for_request(self) -> None:
        """`dtrain stop` leaves a file, which works on every cluster; another supervisor leaves its mark."""
        self._lease.check()
        if self._run.stop_request.exists():
            now = self._run.stop_request.read_text().strip() == "now"
            self._run.stop_request.unlink(missing_ok=True)
            self._asked(Wish.NOW if now else Wish.LEAVE, "stopped by dtrain stop")

    def _resume_from(self) -> Committed | None:
        """The newest checkpoint. Storage that does not answer is waited for as long as nodes are: that it just failed is often
        why an attempt did."""
        deadline = time.monotonic() + self._settings.provision_seconds
        while self._wish is Wish.NOTHING:
            try:
                self._store.clear_staging()
                return self._newest_checkpoint()
            except StorageError:
                if time.monotonic() > deadline:
                    raise
            self._turn()
        return None

    def _newest_checkpoint(self) -> Committed | None:
        """The newest whole checkpoint; damaged ones are set aside on the way to it."""
        if self._plan.job.kind == "script":
            return None
        for found in self._store.newest_whole():
            if isinstance(found, Committed):
                return found
            aside, problem = found
            self._log.add("checkpoint_damaged", folder=aside, problem=problem)
        return None

    def _answer(self, outcome: Outcome, allocation: Allocation) -> Ending | None:
        """What follows from an attempt: the run's end, or None for another attempt."""
        self._attempt = None
        if isinstance(outcome, Done):
            if outcome.unsaved:
                return Ending(Exit.GAVE_UP, f"trained to the end, but its state could not be saved: {outcome.unsaved}")
            return Ending(Exit.DONE, outcome.stopped or "finished")
        if isinstance(outcome, Left) and self._wish is Wish.NOTHING:
            self._moved(allocation)
            return None
        if isinstance(outcome, Left) or self._wish is not Wish.NOTHING:
            step = outcome.step if isinstance(outcome, Left) else None
            return self._leaving(f"{self._why}{f', saved at step {step}' if step is not None else ''}")
        assert isinstance(outcome, Failed)
        return self._recover(outcome.failure, allocation)

    def _leaving(self, reason: str) -> Ending:
        again = self._warned and isinstance(self._plan.cluster, Requeues)
        return Ending(Exit.RESUMABLE, reason, again=again)

    def _recover(self, failure: Failure, allocation: Allocation) -> Ending | None:
        self._failures.append(failure)
        self._moving = False
        decision = decide(self._failures, self._settings)
        self._log.add(
            "failure", attempt=self._attempts, kind=failure.kind.value, rank=failure.rank, node=failure.node, step=failure.step,
            message=failure.message, where=failure.where, traceback=failure.traceback, code=failure.code, saved_step=failure.saved_step,
        )  # fmt: skip
        self._log.add("decision", retry=decision.retry, reason=decision.reason, delay_seconds=decision.delay_seconds)
        if not decision.retry:
            return Ending(decision.exit_code, decision.reason)
        self._replace_lost(allocation)
        deadline = time.monotonic() + decision.delay_seconds
        while time.monotonic() < deadline and self._wish is Wish.NOTHING:
            self._turn()
        return None

    def _end(self, exit_code: Exit, reason: str) -> Exit:
        self._log.add("end", exit_code=int(exit_code), reason=reason, report=report.account(self._run, time.time()))
        return exit_code


def supervise(run: RunDir, patience_seconds: float = 0.0) -> Exit:
    """Be the supervisor of a run until it ends; errors become the run's end and are raised again for the terminal."""
    gc.freeze()
    gc.enable()  # which the command line does without
    began = time.time()
    with run.lock(patience_seconds) as lease:
        ended = history.ended_since(run, began) if patience_seconds else None
        if ended is not None:  # by the supervisor that held the lock
            return ended
        inbox: Inbox = queue.SimpleQueue()
        run.forget_old_stop_request()
        log = events.EventLog(run.events)
        copy = mirror.Keeper(run, run.job(), lease, log)
        try:
            launch = plan.make(run.job())
            job = launch.job
            with by_signals(inbox):
                log.add(
                    "run", run=run.id, kind=job.kind, target=job.target, strategy=job.strategy.name, cluster=job.cluster.name,
                    workers=launch.workers, nodes=launch.nodes, global_batch=job.train.global_batch, preload=launch.preload,
                    storage=of_run(job.storage, run.id).url if job.storage.url else None,
                )  # fmt: skip
                copy.start(patience_seconds)
                return Supervisor(run, launch, log, inbox, lease).run()
        except DtrainError as error:
            if lease.held():
                log.add(
                    "end", exit_code=int(error.exit_code), reason=str(error), report=report.account(run, time.time())
                )
            raise
        finally:
            log.close()
            copy.finish()
