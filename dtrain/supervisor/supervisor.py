"""The supervisor of one run: asks for nodes, starts attempts, watches, decides, and writes down all of it."""

from __future__ import annotations

import gc
import queue
import time
from typing import Any

from dtrain.api.cluster import (
    Allocation,
    Cluster,
    DescribesShortage,
    Inbox,
    NodeDraining,
    NodeLost,
    PreemptionNotice,
    SupportsRequeue,
)
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import AgentReady, FileAppended, Fragment, Reassembler
from dtrain.checkpoint.factory import store_of
from dtrain.checkpoint.store import CheckpointInfo
from dtrain.common.errors import ClusterError, DtrainError, Exit, StorageError
from dtrain.launch import planner, registry
from dtrain.run import event_log, goodput, history
from dtrain.run.folder import RunDir
from dtrain.run.lock import Lease
from dtrain.spec.failures import Failure
from dtrain.storage import run_sync
from dtrain.storage.object_store import of_run
from dtrain.supervisor.attempt import AgentInfo, Attempt
from dtrain.supervisor.failure_policy import decide
from dtrain.supervisor.requeue import requeue_run
from dtrain.supervisor.results import Drained, Failed, Outcome, RunResult, Succeeded
from dtrain.supervisor.stop_request import StopMode, signal_handlers

TICK_SECONDS = 0.25
LOOK_SECONDS = 0.5
MOST_STILLBORN = 3


class Supervisor:
    """The loop of one run on one allocation."""

    def __init__(
        self, run: RunDir, launch: LaunchPlan, cluster: Cluster, log: event_log.EventLog, inbox: Inbox, lease: Lease
    ) -> None:
        self._run = run
        self._lease = lease
        self._plan = launch
        self._cluster = cluster
        self._strategy = registry.strategy_of(launch.job)
        self._log = log
        self._inbox = inbox
        self._settings = launch.job.recovery
        self._store = store_of(run, launch.job, lease.mark)
        self._failures: list[Failure] = []
        self._attempts = history.attempts(run)
        self._ready: dict[str, AgentInfo] = {}
        self._heard: dict[str, float] = {}
        self._attempt: Attempt | None = None
        self._failed_to_start: dict[str, str] = {}
        """Agents that ended before they were ready, since one was, and why."""
        self._lost: set[str] = set()
        self._irreplaceable: set[str] = set()
        """Lost nodes that the cluster has nothing to replace with."""
        self._stop_mode = StopMode.NONE
        self._stop_reason = ""
        self._preempted = False
        """The cluster wants the run to leave, and no person does."""
        self._draining: set[str] = set()
        """Nodes that the cluster is about to take away."""
        self._resizing = False
        """The attempt under way was asked to save and leave only to go on with other nodes."""
        self._look_at = 0.0
        self._joiner = Reassembler()

    def run(self) -> Exit:
        """The whole run; the exit code of the process."""
        try:
            with self._cluster.allocate(self._plan, self._run, self._inbox) as allocation:
                ending = self._train(allocation)
                if not ending.requeue:
                    return self._end(ending.exit_code, ending.reason)
        finally:
            self._hear_last_words()
        assert isinstance(self._cluster, SupportsRequeue)
        ending = requeue_run(ending, self._plan.job, self._cluster, self._run, self._log)
        return self._end(ending.exit_code, ending.reason)

    def _hear_last_words(self) -> None:
        """Of agents that have ended: what was still to be added to logs."""
        while not self._inbox.empty():
            node, item = self._inbox.get()
            whole = self._joiner.add(node, item) if isinstance(item, Fragment) else item
            if isinstance(whole, FileAppended):
                self._dispatch(node, whole)

    def _train(self, allocation: Allocation) -> RunResult:
        """Attempts, until there is no further one."""
        while True:
            resume = self._resume_from()
            ending = self._provision(allocation)
            if ending is None and self._stop_mode is not StopMode.NONE:
                ending = self._leaving(f"{self._stop_reason} before the workers were started")
            ending = ending or self._handle_result(self._watch(allocation, resume), allocation)
            if ending:
                return ending

    def _provision(self, allocation: Allocation) -> RunResult | None:
        """Wait for enough nodes, as long as more can come; raises `ClusterError` where they do not come in time."""
        deadline = time.monotonic() + self._settings.provision_seconds
        while len(self._ready) < self._plan.nodes and self._stop_mode is StopMode.NONE:
            late = time.monotonic() > deadline
            coming = any(name not in self._ready and name not in self._lost for name in allocation.channels)
            if not coming or late:
                if self._enough():
                    return None
                if self._failures and isinstance(self._cluster, SupportsRequeue):
                    lost = tuple(sorted(self._irreplaceable | self._failed_to_start.keys()))
                    reason = f"{len(self._ready)} of {self._plan.nodes} nodes are left"
                    return RunResult(Exit.GAVE_UP, reason, requeue=True, exclude=lost)
            if late or not allocation.channels:
                raise ClusterError(
                    f"{len(self._ready)} of {self._plan.nodes} nodes were ready after {self._settings.provision_seconds:g} s",
                    allocation.shortage()
                    if isinstance(allocation, DescribesShortage)
                    else f"The agents' logs are in {self._run.logs}.",
                )
            self._pump_events()
            if self._failed_to_start:
                self._start_again(allocation)
        return None

    def _enough(self) -> bool:
        """Whether an attempt can do with the nodes that are ready."""
        return any(self._plan.fits(nodes) for nodes in range(1, len(self._ready) + 1))

    def _start_again(self, allocation: Allocation) -> None:
        """Some agents ended before they were ready: try each a few times."""
        if len(self._failed_to_start) <= MOST_STILLBORN:
            self._replace_lost(allocation)
        elif not self._failures:
            node, reason = list(self._failed_to_start.items())[-1]
            raise ClusterError(
                f"the agents end as soon as they are started: {node}: {reason}", f"See {self._run.logs}/agent-*.log."
            )

    def _replace_lost(self, allocation: Allocation) -> None:
        for node in [name for name in allocation.channels if name in self._lost]:
            if not allocation.replace(node):
                self._irreplaceable.add(node)

    def _watch(self, allocation: Allocation, resume: CheckpointInfo | None) -> Outcome:
        """One attempt on the nodes that are ready."""
        nodes = next(
            n
            for n in range(min(len(self._ready), self._plan.nodes), 0, -1)
            if n == self._plan.nodes or self._plan.fits(n)
        )
        self._attempts += 1
        chosen = list(self._ready.values())[:nodes]
        self._attempt = Attempt(
            self._attempts, self._plan.on(nodes), self._strategy, chosen, allocation.channels,
            run_id=self._run.id, store=self._store, log=self._log, resume=resume, lease=self._lease,
        )  # fmt: skip
        self._log.add(
            "attempt", attempt=self._attempts, step=resume.step if resume else 0, checkpoint=resume.name if resume else None,
            nodes=[node.name for node in chosen], workers=self._plan.on(nodes).workers, processes=self._plan.on(nodes).processes,
        )  # fmt: skip
        self._attempt.begin()
        while self._attempt.outcome is None:
            self._pump_events()
        return self._attempt.outcome

    def _pump_events(self) -> None:
        """Take in everything that happened, for one tick at most."""
        end = time.monotonic() + TICK_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                node, item = self._inbox.get(timeout=left)
            except queue.Empty:
                break
            self._dispatch(node, item)
            if self._attempt and self._attempt.outcome:
                return
            if self._inbox.empty():
                break
        now = time.monotonic()
        if self._inbox.empty():  # or this process was held up, and what they said is yet to be heard
            self._find_silent_nodes(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._poll_stop_file_and_lease()
        if self._attempt:
            self._attempt.tick(now)
            for node in self._attempt.stuck(now):
                self._on_node_lost(node, "its workers were killed and do not end")
            if self._can_scale_up(self._attempt):
                self._request_resize(f"{len(self._ready)} nodes are ready again")

    def _find_silent_nodes(self, now: float) -> None:
        for node, heard in list(self._heard.items()):
            if now - heard > self._settings.heartbeat_seconds:
                self._on_node_lost(node, f"it said nothing for {self._settings.heartbeat_seconds:g} s")

    def _can_scale_up(self, attempt: Attempt) -> bool:
        """Whether an attempt that had to do with fewer nodes could have more of them now."""
        more = range(attempt.nodes + 1, min(len(self._ready.keys() - self._draining), self._plan.nodes) + 1)
        return any(nodes == self._plan.nodes or self._plan.fits(nodes) for nodes in more)

    def _request_resize(self, why: str) -> None:
        """Have the workers save and leave at an agreed step, to go on from it with other nodes."""
        if self._attempt and not self._resizing and self._stop_mode is StopMode.NONE:
            self._resizing = True
            self._log.add("moving", why=why)
            self._attempt.leave(time.monotonic())

    def _on_resized(self, allocation: Allocation) -> None:
        self._resizing = False
        for node in self._draining & self._ready.keys():
            self._on_node_lost(node, "it was drained")
        self._replace_lost(allocation)

    def _dispatch(self, node: str, item: Any) -> None:
        now = time.monotonic()
        if isinstance(item, Fragment):
            if whole := self._joiner.add(node, item):
                self._dispatch(node, whole)
        elif isinstance(item, FileAppended):
            from dtrain.agent import node_run_folder  # few runs need it

            node_run_folder.keep(self._run, item)
        elif isinstance(item, StopMode):
            self._request_stop(item, "interrupted")
        elif isinstance(item, PreemptionNotice):
            if self._stop_mode is StopMode.NONE:
                self._request_stop(StopMode.GRACEFUL, item.reason)
                self._preempted = True
        elif node in self._lost:
            # Given up, but not dead: it has been replaced, or will be, under another name.
            return
        elif isinstance(item, NodeDraining):
            self._draining.add(node)
            self._request_resize(f"{item.reason}: {node}")
        elif isinstance(item, NodeLost):
            self._on_node_lost(node, item.reason)
        elif isinstance(item, AgentReady):
            self._heard[node] = now
            self._on_agent_ready(node, item)
        else:
            self._heard[node] = now
            if self._attempt and item.attempt == self._attempt.number:
                self._attempt.handle(node, item, now)

    def _on_agent_ready(self, node: str, ready: AgentReady) -> None:
        if not ready.sees_run and not self._plan.job.storage.url:
            raise ClusterError(
                f"the agent on {ready.host} does not see the run folder {self._run.path}",
                "Put it on a file system that all nodes share (--runs FOLDER), or give storage.url.",
            )
        self._failed_to_start.clear()
        self._ready[node] = AgentInfo(node, ready.address, ready.host, ready.sees_run)
        self._log.add(
            "node", node=node, host=ready.host, address=ready.address, cpus=ready.cpus, gpus=ready.gpus, pid=ready.pid
        )

    def _on_node_lost(self, node: str, reason: str) -> None:
        if node in self._lost:
            return
        self._heard.pop(node, None)
        known = self._ready.pop(node, None)
        self._lost.add(node)
        self._log.add("node_lost", node=node, reason=reason)
        if self._attempt and known and not self._attempt.outcome:
            self._attempt.lost(node, reason, time.monotonic())
        elif not known:
            self._failed_to_start[node] = reason

    def _request_stop(self, wish: StopMode, why: str) -> None:
        """Somebody wants the run to stop; whoever asks twice means at once."""
        self._preempted = False
        self._stop_mode = (
            StopMode.IMMEDIATE
            if self._stop_mode is not StopMode.NONE or wish is StopMode.IMMEDIATE
            else StopMode.GRACEFUL
        )
        self._stop_reason = self._stop_reason or why
        self._log.add("stopping", why=why, now=self._stop_mode is StopMode.IMMEDIATE)
        if self._attempt:
            self._attempt.leave(time.monotonic())
            if self._stop_mode is StopMode.IMMEDIATE:
                self._attempt.kill()

    def _poll_stop_file_and_lease(self) -> None:
        """`dtrain stop` leaves a file, which works on every cluster; another supervisor leaves its mark."""
        self._lease.check()
        if self._run.stop_request.exists():
            now = self._run.stop_request.read_text().strip() == "now"
            self._run.stop_request.unlink(missing_ok=True)
            self._request_stop(StopMode.IMMEDIATE if now else StopMode.GRACEFUL, "stopped by dtrain stop")

    def _resume_from(self) -> CheckpointInfo | None:
        """The newest checkpoint. Storage that does not answer is waited for as long as nodes are: that it just failed is often
        why an attempt did."""
        deadline = time.monotonic() + self._settings.provision_seconds
        while self._stop_mode is StopMode.NONE:
            try:
                self._store.clear_staging()
                return self._newest_checkpoint()
            except StorageError:
                if time.monotonic() > deadline:
                    raise
            self._pump_events()
        return None

    def _newest_checkpoint(self) -> CheckpointInfo | None:
        """The newest whole checkpoint; damaged ones are set aside on the way to it."""
        if self._plan.job.kind == "script":
            return None
        for found in self._store.latest_valid():
            if isinstance(found, CheckpointInfo):
                return found
            aside, problem = found
            self._log.add("checkpoint_damaged", folder=aside, problem=problem)
        return None

    def _handle_result(self, outcome: Outcome, allocation: Allocation) -> RunResult | None:
        """What follows from an attempt: the run's end, or None for another attempt."""
        self._attempt = None
        if isinstance(outcome, Succeeded):
            if outcome.unsaved:
                return RunResult(
                    Exit.GAVE_UP, f"trained to the end, but its state could not be saved: {outcome.unsaved}"
                )
            return RunResult(Exit.DONE, outcome.stopped or "finished")
        if isinstance(outcome, Drained) and self._stop_mode is StopMode.NONE:
            self._on_resized(allocation)
            return None
        if isinstance(outcome, Drained) or self._stop_mode is not StopMode.NONE:
            step = outcome.step if isinstance(outcome, Drained) else None
            return self._leaving(f"{self._stop_reason}{f', saved at step {step}' if step is not None else ''}")
        assert isinstance(outcome, Failed)
        return self._recover(outcome.failure, allocation)

    def _leaving(self, reason: str) -> RunResult:
        requeue = self._preempted and isinstance(self._cluster, SupportsRequeue)
        return RunResult(Exit.RESUMABLE, reason, requeue=requeue)

    def _recover(self, failure: Failure, allocation: Allocation) -> RunResult | None:
        self._failures.append(failure)
        self._resizing = False
        decision = decide(self._failures, self._settings)
        self._log.add(
            "failure", attempt=self._attempts, kind=failure.kind.value, rank=failure.rank, node=failure.node, step=failure.step,
            message=failure.message, where=failure.where, traceback=failure.traceback, code=failure.code, saved_step=failure.saved_step,
        )  # fmt: skip
        self._log.add("decision", retry=decision.retry, reason=decision.reason, delay_seconds=decision.delay_seconds)
        if not decision.retry:
            return RunResult(decision.exit_code, decision.reason)
        self._replace_lost(allocation)
        deadline = time.monotonic() + decision.delay_seconds
        while time.monotonic() < deadline and self._stop_mode is StopMode.NONE:
            self._pump_events()
        return None

    def _end(self, exit_code: Exit, reason: str) -> Exit:
        self._log.add("end", exit_code=int(exit_code), reason=reason, report=goodput.account(self._run, time.time()))
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
        log = event_log.EventLog(run.events)
        copy = run_sync.RunSyncer(run, run.job(), lease, log)
        try:
            launch = planner.make(run.job())
            job = launch.job
            with signal_handlers(inbox):
                log.add(
                    "run", run=run.id, kind=job.kind, target=job.target, strategy=job.strategy.name, cluster=job.cluster.name,
                    workers=launch.workers, nodes=launch.nodes, global_batch=job.train.global_batch, preload=launch.preload,
                    storage=of_run(job.storage, run.id).url if job.storage.url else None,
                )  # fmt: skip
                copy.start(patience_seconds)
                return Supervisor(run, launch, registry.cluster_of(job), log, inbox, lease).run()
        except DtrainError as error:
            if lease.held():
                log.add(
                    "end", exit_code=int(error.exit_code), reason=str(error), report=goodput.account(run, time.time())
                )
            raise
        finally:
            log.close()
            copy.finish()
