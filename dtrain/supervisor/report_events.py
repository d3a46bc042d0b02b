"""What workers report becomes events of the run."""

from __future__ import annotations

import dataclasses

from dtrain.api import reports
from dtrain.api.protocol import AgentReady
from dtrain.record import events

Told = (
    reports.TrainingBegan | reports.StepMetrics | reports.EvaluationMetrics | reports.UserWarned | reports.LogShortened
    | reports.StepsProfiled | reports.MemoryUsed | reports.MemoryInterval | reports.BadStep
)  # fmt: skip
"""Reports that nothing follows from but an event."""


def event_of(report: Told, rank: int, attempt: int) -> events.Event:
    """The event that a rank's report becomes in the log."""
    if isinstance(report, reports.LogShortened):
        return events.LogShortened(rank=rank, removed=report.removed, problem=report.problem)
    if isinstance(report, reports.StepsProfiled):
        return events.StepsProfiled(
            attempt=attempt, rank=rank, request=report.request, step=report.step, steps=report.steps, file=report.file,
            operations=report.operations, problem=report.problem,
        )  # fmt: skip
    if isinstance(report, reports.MemoryUsed):
        return events.MemoryUsed(attempt=attempt, rank=rank, bytes=report.bytes, device_bytes=report.device_bytes)
    if isinstance(report, reports.MemoryInterval):
        return events.MemoryInterval(
            attempt=attempt, every_steps=report.every_steps, seconds=report.seconds, bytes=report.bytes
        )
    if isinstance(report, reports.TrainingBegan):
        return events.TrainingStarted(
            attempt=attempt, step=report.step, total_steps=report.total_steps, samples=report.samples,
            sanity_check_seconds=report.sanity_check_seconds, began=report.began,
        )  # fmt: skip
    if isinstance(report, reports.UserWarned):
        return events.UserWarned(attempt=attempt, text=report.text)
    if isinstance(report, reports.BadStep):
        return events.BadStep(attempt=attempt, **dataclasses.asdict(report))
    if isinstance(report, reports.StepMetrics):
        return events.Metrics(
            attempt=attempt, step=report.step, values=report.values, samples_per_second=report.samples_per_second,
            data_wait=report.data_wait, data_workers=report.data_workers, optimizer=report.optimizer,
        )  # fmt: skip
    return events.Evaluation(attempt=attempt, step=report.step, values=report.values, seconds=report.seconds)


def ready_event(node: str, ready: AgentReady) -> events.NodeReady:
    """The event that a node whose agent is up becomes in the log."""
    return events.NodeReady(
        node=node, host=ready.host, address=ready.address, cpus=ready.cpus, gpus=ready.gpus, pid=ready.pid
    )
