"""`train.on_nonfinite` and `train.spike`: what keeps a job from looking at its steps before the optimizer steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from dtrain.api.plan import Problem
from dtrain.api.step_checks import asked_for
from dtrain.api.strategy import Strategy
from dtrain.job import task_class
from dtrain.job.job import Job
from dtrain.launch import registry

STOP = "train.on_nonfinite: stop works everywhere"


def problems(job: Job, strategy: Strategy) -> Iterator[Problem]:
    """Yield the reasons why a job cannot check its steps, each with what to do instead."""
    if not asked_for(job.train) or job.kind == "script":
        return
    what = f"train.on_nonfinite: {job.train.on_nonfinite}" if job.train.spike is None else "train.spike"
    key = ("train", "on_nonfinite" if job.train.spike is None else "spike")
    if job.kind == "function":
        yield Problem(key, f"a function makes its optimizer steps itself: {what} needs a task with `loss`; {STOP}")
    elif job.task and task_class.has(job.target, job.code_folders, "train_step"):
        yield Problem(key, f"train_step makes its optimizer steps itself: {what} needs a task with `loss`; {STOP}")
    elif strategy.unchecked(job) is None:
        yield Problem(
            key,
            f"{what}: '{job.strategy.name}' makes the optimizer step in the same call as the gradient, and cannot look at it before: "
            f"choose one of {', '.join(_able())}; {STOP}",
        )
    elif text := strategy.unchecked(job):
        yield Problem(key, f"{what}: {text}; {STOP}")


def _able() -> list[str]:
    names = registry.installed("strategy")
    return [name for name in names if registry.plugin_class("strategy", name).unchecked is not Strategy.unchecked]
