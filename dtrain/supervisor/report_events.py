"""What workers report becomes events of the run."""

from __future__ import annotations

from dtrain.api import reports
from dtrain.run import events


def event_of(
    report: reports.TrainingBegan | reports.StepMetrics | reports.EvaluationMetrics | reports.UserWarned, attempt: int
) -> events.Event:
    """The event that a report becomes in the log."""
    if isinstance(report, reports.TrainingBegan):
        return events.TrainingStarted(
            attempt=attempt, step=report.step, total_steps=report.total_steps, samples=report.samples
        )
    if isinstance(report, reports.UserWarned):
        return events.UserWarned(attempt=attempt, text=report.text)
    if isinstance(report, reports.StepMetrics):
        return events.Metrics(
            attempt=attempt, step=report.step, values=report.values, samples_per_second=report.samples_per_second,
            data_wait=report.data_wait, data_workers=report.data_workers, optimizer=report.optimizer,
        )  # fmt: skip
    return events.Evaluation(attempt=attempt, step=report.step, values=report.values, seconds=report.seconds)
