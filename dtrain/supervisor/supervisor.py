"""The supervisor of one run: asks for nodes, starts attempts, watches, decides, and logs all of it.

A loop over named states; each state returns the next one (see `dtrain.supervisor.states`). Nothing here waits for storage or for the
cluster: such calls run in lanes beside the loop and answer through the inbox, like everything else that happens.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable

from dtrain.api.cluster import (
    Allocation,
    Cluster,
    NodeDraining,
    NodeLost,
    PreemptionNotice,
)
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentEvent, AgentReady, FileAppended, Fragment, NodeAnswered, PeersChecked
from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import CheckpointInfo
from dtrain.common.errors import Exit
from dtrain.job.failure_kinds import Failure
from dtrain.launch import registry
from dtrain.record import events, history
from dtrain.record.event_log import EventLog
from dtrain.record.folder import RunDir
from dtrain.record.goodput import account
from dtrain.record.lock import Lease, taken_over
from dtrain.supervisor.attempt import Attempt, AttemptContext
from dtrain.supervisor.beside.background import Lane, TaskDone
from dtrain.supervisor.beside.inspections import InspectionItem, Inspections
from dtrain.supervisor.beside.log_trouble import LogTrouble
from dtrain.supervisor.beside.received_files import ReceivedFiles
from dtrain.supervisor.failures import record as failure_record
from dtrain.supervisor.failures.policy import decide
from dtrain.supervisor.inbox import Item, SupervisorInbox
from dtrain.supervisor.leaving.requeue import requeue_run
from dtrain.supervisor.leaving.stop_request import FolderTrouble, LeaseLost, StopMode, StopRequest
from dtrain.supervisor.leaving.stopping import Stopping
from dtrain.supervisor.nodes.nodes import Nodes
from dtrain.supervisor.nodes.slow_nodes import SlowNodes
from dtrain.supervisor.outcome import Drained, Failed, Outcome, RolledBack, RunResult, Succeeded
from dtrain.supervisor.saving.memory_checkpoints import MemoryCheckpoints
from dtrain.supervisor.saving.restore import Restore
from dtrain.supervisor.saving.start_point import StartPoint
from dtrain.supervisor.states import TRANSITIONS, State

TICK_SECONDS = 0.25
HELD_UP_SECONDS = 2.0
"""A loop that did not turn for so long was held up itself (a stopped process, a file server)."""


def run_attempts(
    run: RunDir, launch: LaunchPlan, cluster: Cluster, log: EventLog, inbox: SupervisorInbox, lease: Lease
) -> Exit:
    """Run attempts on an allocation of the cluster until the run ends; the exit code of the process."""
    received = ReceivedFiles(run, launch.job.logs.keep_bytes)
    try:
        with cluster.allocate(launch, run, inbox) as allocation:
            result = Supervisor(run, launch, cluster, allocation, log, inbox, lease, received).work()
            lease.check(unknown_is_held=True)
            if not result.requeue:
                return log_end(run, log, result.exit_code, result.reason)
    finally:  # what agents without the run folder still sent of their logs and ledgers before they ended
        while not inbox.empty():
            node, item = inbox.get()
            if isinstance(item, Fragment | FileAppended):
                received.take(node, item)
    result = requeue_run(result, launch.job, cluster, run, log)
    return log_end(run, log, result.exit_code, result.reason)


def log_end(run: RunDir, log: EventLog, code: Exit, reason: str) -> Exit:
    """Log that the supervisor leaves the run, with the account of its time. Returns the exit code."""
    log.add(events.RunEnded(exit_code=int(code), reason=reason, report=account(run, time.time())))
    return code


class Supervisor:
    """The loop of one run on one allocation."""

    def __init__(
        self,
        run: RunDir,
        launch: LaunchPlan,
        cluster: Cluster,
        allocation: Allocation,
        log: EventLog,
        inbox: SupervisorInbox,
        lease: Lease,
        received: ReceivedFiles,
    ) -> None:
        store = store_of(run, launch.job, lease)
        self._run = run
        self._plan = launch
        self._log = log
        self._inbox = inbox
        self._received = received
        self._inspections = Inspections(run, log, self._put)
        self._shared = AttemptContext(
            run.id, registry.strategy_of(launch.job), allocation.channels, store, Lane("storage", self._put), log,
            self._inspections.debugging, MemoryCheckpoints(launch, store, log, run.id), run.code,
        )  # fmt: skip
        self._nodes = Nodes(run, launch, allocation, log, self._put)
        self._slow_nodes = SlowNodes(self._nodes.avoidance, launch.job.recovery, log, self._request_resize)
        self._failures: list[Failure] = []
        self._attempts = history.attempts(run)
        self._rolled_back = {*history.rolled_back(run)}
        """Steps to go on without; events that a full disk keeps pending count, too."""
        self._attempt: Attempt | None = None
        self._stopping = Stopping(log, requeues=cluster.requeues)
        self._resizing = False
        """The attempt under way was asked to save and leave only to go on with other nodes."""
        self._resume_at = 0.0
        """When a failed attempt may be answered with another one (monotonic seconds)."""
        self._turned = time.monotonic()
        self._log_trouble = LogTrouble(log)

    def work(self) -> RunResult:
        """From state to state, until there is a result."""
        steps: dict[State, Callable[[], State | RunResult]] = {
            State.PROVISIONING: self._provision,
            State.TRAINING: self._train,
            State.BACKING_OFF: self._back_off,
        }
        state = State.PROVISIONING
        while True:
            following = steps[state]()
            if isinstance(following, RunResult):
                assert State.ENDED in TRANSITIONS[state], state
                break
            assert following in TRANSITIONS[state], (state, following)
            state = following
        if following.exit_code is not Exit.DONE and not self._stopping.at_once:
            self._shared.memory.save(self._shared.channels, self._shared.lane, self._pump_events)
        return following

    def _put(self, item: Item) -> None:
        self._inbox.put(("", item))

    def _provision(self) -> State | RunResult:
        """Wait for the newest checkpoint and for enough nodes; raises `ClusterError` if they do not come in time."""
        script = self._plan.job.kind == "script"
        restore = Restore(self._shared.store, self._shared.lane, self._log, after=self._attempts, script=script)
        deadline = time.monotonic() + self._plan.job.recovery.provision_seconds
        while not self._stopping.asked:
            if self._nodes.waiting():
                deadline = time.monotonic() + self._plan.job.recovery.provision_seconds
                self._pump_events()
                continue
            late = time.monotonic() > deadline
            restore.check(late=late)
            result = self._nodes.check(late=late, failed=bool(self._failures), requeues=self._stopping.requeues)
            if result is not None:
                return result
            if restore.done and self._nodes.suffice(late=late) and restore.numbered():
                self._attempts = restore.attempt
                return self._begin_attempt(restore.found)
            self._pump_events()
        return self._stopping.left(" before the workers were started", self._nodes.avoidance.excluded)

    def _train(self) -> State | RunResult:
        """Run one attempt until it has an outcome."""
        assert self._attempt is not None
        attempt = self._attempt
        while attempt.outcome is None:
            self._pump_events()
        self._attempt = None
        return self._handle_outcome(attempt.outcome)

    def _back_off(self) -> State:
        """Leave nodes with a past, replace lost and draining ones, and wait as long as the failure policy says."""
        self._nodes.avoidance.look(self._on_node_lost, self._leave_draining_nodes)
        while (self._nodes.avoidance.looking or time.monotonic() < self._resume_at) and not self._stopping.asked:
            self._pump_events()
        return State.PROVISIONING

    # --- an attempt ---

    def _begin_attempt(self, resume: CheckpointInfo | None) -> State:
        memory = self._shared.memory.newest(after=resume.step if resume else 0)
        begin = StartPoint(resume, memory, tuple(sorted(self._rolled_back)))
        chosen = self._nodes.choose()
        plan = self._plan.on(len(chosen))
        self._attempt = Attempt(self._attempts, plan, chosen, self._shared, begin)
        self._log.add(
            events.AttemptStarted(
                attempt=self._attempts, step=begin.step, checkpoint=begin.checkpoint, memory=begin.memory is not None,
                nodes=tuple(node.name for node in chosen), workers=plan.workers, processes=plan.processes,
            )
        )  # fmt: skip
        self._attempt.begin()
        self._nodes.preflight.begin(chosen)
        return State.TRAINING

    def _handle_outcome(self, outcome: Outcome) -> State | RunResult:
        """Decide what follows from an attempt: the run's end, or another attempt."""
        if isinstance(outcome, Succeeded):
            if outcome.unsaved:
                reason = f"trained to the end, but its state could not be saved: {outcome.unsaved}"
                return RunResult(Exit.GAVE_UP, reason)
            return RunResult(Exit.DONE, outcome.stopped or "finished")
        if isinstance(outcome, Drained | RolledBack) and not self._stopping.asked:
            self._rolled_back |= {outcome.step} if isinstance(outcome, RolledBack) else set()
            return self._on_resized()
        if isinstance(outcome, Drained | RolledBack) or self._stopping.asked:
            step = outcome.step if isinstance(outcome, Drained) else None
            saved = f", saved at step {step}" if step is not None else ""
            return self._stopping.left(saved, self._nodes.avoidance.excluded)
        return self._recover(outcome)

    def _recover(self, outcome: Failed) -> State | RunResult:
        failure = outcome.failure
        self._failures.append(failure)
        self._nodes.avoidance.on_failure(failure, self._attempts)
        self._resizing = False
        decision = decide(self._failures, self._plan.job.recovery)
        self._log.add(failure_record.event_of(outcome, self._attempts, self._run))
        self._log.add(
            events.DecisionMade(retry=decision.retry, reason=decision.reason, delay_seconds=decision.delay_seconds)
        )
        if not decision.retry:
            return RunResult(decision.exit_code, decision.reason)
        self._resume_at = time.monotonic() + decision.delay_seconds
        return State.BACKING_OFF

    # --- resizing ---

    def _can_scale_up(self, attempt: Attempt) -> bool:
        """Whether an attempt that runs on fewer nodes than planned could have more of them now."""
        return self._nodes.fitting() > attempt.nodes

    def _request_resize(self, why: str) -> None:
        """Have the workers save and leave at an agreed step, to go on from it with other nodes."""
        if self._attempt and not self._resizing and not self._stopping.asked:
            self._resizing = True
            self._log.add(events.ResizeRequested(why=why))
            self._attempt.leave(time.monotonic())

    def _on_resized(self) -> State:
        self._resizing = False
        self._leave_draining_nodes()
        return State.PROVISIONING

    def _leave_draining_nodes(self) -> None:
        for node in self._nodes.pool.ready_and_draining():
            self._on_node_lost(node, "it was drained")
        self._nodes.replace_lost()

    # --- events ---

    def _pump_events(self) -> None:
        """Take in everything that happened, for one tick at most, and let time pass."""
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                node, item = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            self._dispatch(node, item)
            if (self._attempt and self._attempt.outcome) or self._inbox.empty():
                break
        self._log_trouble.look()
        self._received.write()
        self._inspections.tick()
        now = time.monotonic()
        if now - self._turned > HELD_UP_SECONDS + TICK_SECONDS:
            self._nodes.pool.restart_clocks(now)
        self._turned = now
        if self._inbox.empty():  # or what the nodes said is yet to be heard
            for node in self._nodes.pool.silent(now):
                self._on_node_lost(node, f"it said nothing for {self._plan.job.recovery.heartbeat_seconds:g} s")
        if self._attempt and not self._attempt.outcome:
            self._attempt.tick(now)
            for node in self._attempt.stuck(now):
                self._on_node_lost(node, "its workers were killed and do not end")
            self._slow_nodes.look(self._attempt.stragglers)
            if self._can_scale_up(self._attempt):
                self._request_resize(f"{len(self._nodes.pool.usable())} nodes are ready again")

    def _dispatch(self, node: str, item: Item) -> None:
        if isinstance(item, TaskDone):
            item.answer()
        elif isinstance(item, Fragment | FileAppended):
            whole = self._received.take(node, item)
            if whole is not None:
                self._dispatch(node, whole)
        elif isinstance(item, InspectionItem):
            self._inspections.handle(node, item, self._attempt)
        elif isinstance(item, StopRequest):
            self._stopping.request(item.mode, item.why)
            self._stop()
        elif isinstance(item, PreemptionNotice):
            if not self._stopping.asked:
                self._stopping.request(StopMode.GRACEFUL, item.reason, preempted=True)
                self._stop()
        elif isinstance(item, LeaseLost):
            raise taken_over(item.holder)
        elif isinstance(item, FolderTrouble):
            self._log.add(item.event)
        elif node not in self._nodes.pool.lost:  # a lost one may still talk; it is replaced under another name
            self._on_node_event(node, item)

    def _on_node_event(self, node: str, item: AgentEvent | NodeLost | NodeDraining) -> None:
        now = time.monotonic()
        if isinstance(item, NodeDraining):
            self._nodes.pool.draining.add(node)
            self._request_resize(f"{item.reason}: {node}")
        elif isinstance(item, NodeLost):
            self._on_node_lost(node, item.reason)
        elif isinstance(item, AgentReady):
            self._nodes.add(node, item, now)
        elif isinstance(item, NodeAnswered | PeersChecked):
            self._nodes.preflight.handle(node, item)
        else:
            self._nodes.pool.heard(node, now)
            self._shared.memory.handle(node, item)
            if self._attempt and getattr(item, "attempt", None) == self._attempt.number:
                self._attempt.handle(node, item, now)

    def _on_node_lost(self, node: str, reason: str) -> None:
        if node in self._nodes.pool.lost:
            return
        was_ready = self._nodes.pool.lose(node, reason)
        self._shared.memory.lose(node)
        self._log.add(events.NodeLost(node=node, reason=reason))
        if self._attempt and was_ready and not self._attempt.outcome:
            self._attempt.lost(node, reason, time.monotonic())

    def _stop(self) -> None:
        """Have the attempt under way do what was asked."""
        if self._attempt:
            self._attempt.leave(time.monotonic())
            if self._stopping.at_once:
                self._attempt.kill()
