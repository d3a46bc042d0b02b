"""Runs one attempt, from its rendezvous to its last exit, as a state machine that is fed the agents' events.

It decides nothing about the run: its outcome is a value for the supervisor. Time comes in from outside.
"""

from __future__ import annotations

import base64
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dtrain.api import protocol, reports
from dtrain.api.cluster import Channel
from dtrain.api.plan import LaunchPlan
from dtrain.api.protocol import (
    AgentEvent,
    DumpStacks,
    Heartbeat,
    Inspect,
    Inspected,
    LeaveAt,
    PortsReserved,
    ProfileSteps,
    ProposeStop,
    StopWorkers,
    WorkerCommand,
    WorkerExited,
    WorkerReport,
    report_of,
)
from dtrain.api.strategy import Strategy, error_kind
from dtrain.checkpoint.store import CheckpointOrigin, CheckpointStore
from dtrain.common.lazy_dataclass import dataclass
from dtrain.common.serde import to_dict
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.job.job import Recovery
from dtrain.record import events
from dtrain.record.debug_session import DebugRequest
from dtrain.record.event_log import EventLog
from dtrain.record.inspection import InspectionRequest
from dtrain.supervisor.beside.background import Lane
from dtrain.supervisor.beside.debugging import DebuggerReport, Debugging
from dtrain.supervisor.failures.attribution import FailureAttribution, settle_seconds
from dtrain.supervisor.failures.hang_detector import Hang
from dtrain.supervisor.failures.hang_stacks import HangStacks, known_of
from dtrain.supervisor.failures.stragglers import Stragglers
from dtrain.supervisor.failures.watch import Watch
from dtrain.supervisor.leaving.ending import Ending
from dtrain.supervisor.nodes.pool import AgentInfo
from dtrain.supervisor.nodes.rendezvous import Rendezvous, of_rank_zero
from dtrain.supervisor.nodes.workers import Workers
from dtrain.supervisor.outcome import Drained, Failed, Outcome, Succeeded
from dtrain.supervisor.saving.commits import CheckpointCommits
from dtrain.supervisor.saving.memory_checkpoints import MemoryCheckpoints
from dtrain.supervisor.saving.retention import CheckpointRetention
from dtrain.supervisor.saving.start_point import StartPoint
from dtrain.supervisor.states import Phase

STACKS_SECONDS = 1.0
RECORDS_SECONDS = 5.0
"""For the record of collectives, too, that programs on GPUs have: NCCL looks once a second whether it is asked for."""


@dataclass(frozen=True)
class AttemptContext:
    """The parts that all attempts of a run share."""

    run_id: str
    strategy: Strategy
    channels: Mapping[str, Channel]
    store: CheckpointStore
    lane: Lane
    """For what waits for storage."""
    log: EventLog
    debugging: Debugging
    memory: MemoryCheckpoints
    code: Path
    """Snapshot of the user's code, which nodes that do not see the run folder are sent."""


class Attempt:
    """Feed it events with `handle` and time with `tick` until `outcome` is there."""

    def __init__(
        self,
        number: int,
        plan: LaunchPlan,
        nodes: Sequence[AgentInfo],
        context: AttemptContext,
        begin: StartPoint,
    ) -> None:
        job = plan.job
        self.number = number
        self.outcome: Outcome | None = None
        self._plan = plan
        self._context = context
        self._begin = begin
        self._phase = Phase.RENDEZVOUS
        self._workers = Workers(nodes, plan.ranks_by_node(), context.channels)
        self._rendezvous = Rendezvous({node.name: node.address for node in nodes}, self._workers.ranks)
        own_loop = job.kind == "task"
        self._watch = Watch(number, job.recovery, self._workers.owner, context.log, own_loop=own_loop)
        self._failures = FailureAttribution(
            self._workers.owner, partial(error_kind, context.strategy), script=self._is_script,
            retry_exit_codes=job.recovery.retry_exit_codes, classes=job.recovery.classes,
        )  # fmt: skip
        self._commits = CheckpointCommits(
            number, context.store, context.lane, context.log,
            ranks=len(self._workers), retention=CheckpointRetention(job.checkpoint, context.log.path),
            origin=CheckpointOrigin(job.strategy.name, plan.workers, context.run_id),
            saved_step=begin.saved_step, begun_step=begin.step, changed=self._close,
        )  # fmt: skip
        self._ending = Ending(len(self._workers), kind=job.kind)
        self._deadline: float | None = None
        self._ending_since: float | None = None

    @property
    def nodes(self) -> int:
        """How many nodes it runs on."""
        return len(self._workers.nodes)

    @property
    def stragglers(self) -> Stragglers:
        """The ranks that the others wait for."""
        return self._watch.stragglers

    @property
    def _is_script(self) -> bool:
        return self._plan.job.kind == "script"

    @property
    def _settings(self) -> Recovery:
        return self._plan.job.recovery

    def begin(self) -> None:
        """Ask every node for its ports."""
        if apart := [one.name for one in self._workers.nodes if not one.sees_run]:
            code = base64.b64encode(self._context.code.read_bytes()).decode() if self._context.code.exists() else ""
            for node in apart:
                self._workers.send(node, protocol.SetJob(to_dict(self._plan.job), code))
        for node in self._workers.ranks:
            wanted, key = self._rendezvous.ports_wanted(node), self._context.memory.key(self.nodes)
            self._workers.send(node, protocol.ReservePorts(self.number, wanted, key))

    def handle(self, node: str, event: AgentEvent, now: float) -> None:
        """Something an agent said about this attempt."""
        if node not in self._workers.ranks:
            return
        if isinstance(event, PortsReserved):
            self._rendezvous.add(node, event.ports)
            self._context.memory.listens(node, self._rendezvous.address(node), event.memory_port)
            if self._rendezvous.complete and self._phase is Phase.RENDEZVOUS:
                self._start(now)
        elif isinstance(event, events.WorkersStarted):
            self._watch.start.started(node)
            self._context.log.add(event)
        elif isinstance(event, Heartbeat):
            self._watch.beat(node, event, now)
        elif isinstance(event, WorkerReport):
            self._on_report(event.rank, report_of(event.report), now)
        elif isinstance(event, WorkerExited):
            self._on_exit(event, now)

    def lost(self, node: str, reason: str, now: float) -> None:
        """A node is gone, and its workers with it."""
        if node not in self._workers.ranks:
            return
        self._workers.lose(node)
        failure = Failure(FailureKind.NODE_LOST, f"node {node} was lost: {reason}", node=node)
        self._on_failure(self._failures.add(failure, self._commits.saved_step), now)
        self._close()

    def tick(self, now: float) -> None:
        """Apply the passage of time."""
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            if self._phase in (Phase.SETTLING, Phase.RUNNING):
                self.kill()
        if self._phase is Phase.RUNNING and not self._ending.asked:
            found = self._watch.look(self._workers.running, now, suspended=self._context.debugging.open)
            if isinstance(found, Hang):
                self._on_hang(found, now)
            elif found:
                self._workers.send_all(DumpStacks(self.number))
                self._wait_for_stacks(found, now)
        if self._phase is Phase.ENDING and self._ending_since is None:
            self._ending_since = now

    def stuck(self, now: float) -> set[str]:
        """Nodes whose workers were killed long ago and have not ended."""
        if self._phase is not Phase.ENDING or self._ending_since is None:
            return set()
        waited = now - self._ending_since
        return (
            {self._workers.owner[rank] for rank in self._workers.running}
            if waited > self._settings.heartbeat_seconds
            else set()
        )

    def leave(self, now: float) -> None:
        """Have the workers agree on a step, save at it and end; scripts get a SIGTERM. Killed after the grace, and before they train."""
        if self._ending.asked or self._phase is Phase.COMMITTING:
            return
        self._ending.asked = True
        if self._phase is not Phase.RUNNING or not (self._is_script or self._ending.can_save):
            self.kill()  # what they are resumed from is what they were started from
            return
        self._deadline = now + self._settings.grace_seconds
        if self._is_script:
            self._workers.send_all(StopWorkers(self.number, max(0.1, self._settings.grace_seconds)))
        else:
            self._workers.send_all(ProposeStop(self.number))

    def inspect(self, request: InspectionRequest, *, collectives: bool = False) -> set[str]:
        """Have the agents of these ranks look into them; the nodes that are going to answer."""
        asked = self._workers.running_on(request.ranks)
        for node, own in asked.items():
            self._workers.send(node, Inspect(self.number, request.id, own, request.stacks, request.native, collectives))
        return set(asked)

    def inspected(self, node: str, answer: Inspected) -> None:
        """The stacks that were asked for because of a hang; once all are there, nothing is waited for."""
        if self._watch.stacks.add(node, answer) and self._phase is Phase.SETTLING:
            self._deadline = 0.0

    def profile(self, request: InspectionRequest) -> None:
        """Have some ranks profile the same steps, which none of them has reached when it hears of it."""
        step, ranks = self._watch.step_ahead(), request.ranks or (0,)
        self._workers.send_all(ProfileSteps(self.number, request.id, step, request.profile_steps, ranks))

    def debug(self, request: DebugRequest) -> int | None:
        """Tell all workers where to stop for a debugger (rank -1: nowhere); the step, if one is meant."""
        step = None if request.on_exception else max(self._watch.step_ahead(), request.at_step or 0)
        rank = request.rank if request.on_exception or request.rank is not None else 0
        self._workers.send_all(protocol.DebugStop(self.number, rank, step, request.on_exception))
        return step

    def tell(self, rank: int, command: WorkerCommand) -> None:
        """Send this to the node of a rank."""
        self._workers.send(self._workers.owner[rank], command)

    def has_rank(self, rank: int) -> bool:
        """Whether the rank runs."""
        return self._workers.runs(rank)

    @property
    def over(self) -> bool:
        """Ended, or asked to end."""
        ends = self._phase in (Phase.ENDING, Phase.COMMITTING, Phase.OVER)
        return self._ending.asked or bool(self._ending.stopped) or ends

    def kill(self) -> None:
        """End all workers now, and do not wait for a commit that is under way."""
        if self._phase is Phase.OVER:
            return
        if self._phase is Phase.COMMITTING:
            self._phase = Phase.OVER
            unsaved = "stopped before its last checkpoint was committed"
            self.outcome = Drained(None) if self._ending.asked else Succeeded(unsaved)
            return
        self._phase = Phase.ENDING
        self._workers.send_all(StopWorkers(self.number, 0.0))
        if not self._workers.started:
            self._workers.running.clear()
        self._close()

    def _start(self, now: float) -> None:
        """Fork the workers everywhere: all ports are known."""
        self._watch.start.begin(self._workers.ranks, now)
        self._phase = Phase.RUNNING
        self._workers.started = True
        info = self._rendezvous.info(self._context.run_id, self.number, self._settings.restarts)
        strategy = self._context.strategy
        if not strategy.needs_all_addresses(len(self._workers)):
            info = of_rank_zero(info)
        votes = self._context.memory
        votes.begin(self.number, len(self._workers), self._begin.memory)
        for node, ranks in self._workers.ranks.items():
            partner = votes.partner(node, self._workers.ranks)
            self._workers.send(node, self._begin.command(self.number, ranks, info, self._plan.job, partner))

    def _on_report(self, rank: int, report: reports.Report, now: float) -> None:
        if isinstance(report, reports.ShardWritten):
            self._commits.add(rank, report)
        elif isinstance(report, reports.SaveFailed):
            self._commits.fail(report.step, report.error)
        elif isinstance(report, reports.StopProposal):
            self._ending.propose(rank, report.step)
            self._agree()
        elif isinstance(report, reports.StopAsked):
            self._stop_by_function(report.reason)
        elif isinstance(report, reports.LeftAtStep | reports.EndedEarly):
            self._ending.hear(report)
        elif isinstance(report, reports.LoopPhase):
            self._watch.phase(rank, stepping=report.stepping)
        elif isinstance(report, reports.LoopLeft):
            self._failures.left_loop(rank, report.step)
        elif isinstance(report, reports.StepsDone):
            self._failures.steps_done(rank)
        elif isinstance(report, reports.WorkerFailed):
            self._failures.report(rank, report)
        elif isinstance(report, reports.RankTimes):
            self._watch.stragglers.heard(rank, report)
        elif isinstance(report, DebuggerReport):
            self._context.debugging.hear(self, rank, report)
        elif not isinstance(report, reports.MemoryOffered):  # which is for the agent
            event = replace(report, attempt=self.number) if isinstance(report, events.AttemptEvent) else report
            if isinstance(event, events.Metrics):
                samples = (event.samples_per_second or 0.0) / self._plan.job.train.global_batch
                self._watch.rate = event.steps_per_second or samples or self._watch.rate
            self._ending.see(event)
            self._commits.see(event)
            self._watch.metrics.add(event, now)

    def _stop_by_function(self, reason: str) -> None:
        """The ranks agree on a step as if they were asked to leave, but the run is done then."""
        if not self._ending.stopped:
            self._ending.stopped = reason
            self._workers.send_all(ProposeStop(self.number))

    def _agree(self) -> None:
        step = self._ending.agree(self._workers.running)
        if step is not None:
            self._context.log.add(events.DrainAgreed(attempt=self.number, step=step))
            self._workers.send_all(LeaveAt(self.number, step))

    def _on_exit(self, event: WorkerExited, now: float) -> None:
        self._workers.running.discard(event.rank)
        self._ending.exited(event.code, event.step)
        reported = self._failures.has_report(event.rank)
        asked_to = self._ending.asked and (self._is_script or event.code == -signal.SIGTERM)
        if event.code and (reported or self._phase is not Phase.ENDING) and not asked_to:
            self._on_failure(self._failures.exited(event, self._commits.saved_step), now)
        ends = self._ending.asked or self._phase is Phase.ENDING
        if event.code == 0 and not ends and self._failures.exited_with_zero(event, self._commits.saved_step):
            self.kill()
        self._agree()
        self._close()

    def _on_failure(self, failure: Failure, now: float) -> None:
        """A possible cause; one that explains itself ends the wait for others."""
        wait = settle_seconds(failure)
        if not wait:
            self.kill()
        elif self._phase is Phase.RUNNING:
            self._phase = Phase.SETTLING
            self._deadline = now + wait

    def _close(self) -> None:
        """When no worker runs any more, this attempt is over; a good end waits for the commits under way."""
        if self._workers.running or self._phase is Phase.OVER:
            return
        failure = self._failures.cause()
        if failure is None and self._commits.under_way:
            self._phase = Phase.COMMITTING
            return
        self._phase = Phase.OVER
        self._watch.end()
        if failure is not None:
            known = known_of(self._context.strategy, self._plan.job, self._context.log.path.parent, self.number)
            self.outcome = Failed(
                self._watch.stacks.explain(failure, known, self._workers.owner), self._failures.also(failure)
            )
        else:
            self.outcome = self._ending.outcome(self._commits.unsaved)

    def _on_hang(self, hang: Hang, now: float) -> None:
        self._context.log.add(events.HangDetected(attempt=self.number, rank=hang.rank, steps=hang.steps))
        failure = Failure(FailureKind.HANG, hang.message, hang.rank, self._workers.owner[hang.rank], hang.step)
        if hang.stopped:  # it is woken, to say where it was
            self._workers.send_all(DumpStacks(self.number))
        request = InspectionRequest(f"hang-{self.number}")
        on_gpus = self._plan.job.resources.device == "gpu"
        self._watch.stacks = HangStacks(request.id, self.inspect(request, collectives=on_gpus))
        self._wait_for_stacks(failure, now, RECORDS_SECONDS if on_gpus else STACKS_SECONDS)

    def _wait_for_stacks(self, failure: Failure, now: float, seconds: float = STACKS_SECONDS) -> None:
        """A hang is not an end at once: the workers need a moment to write their stacks."""
        self._failures.add(failure, self._commits.saved_step)
        self._phase = Phase.SETTLING
        self._deadline = now + seconds
