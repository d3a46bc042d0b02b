"""`train.on_nonfinite`, `train.spike` and a scaled loss (fp16): what keeps a job from looking at its steps before the optimizer steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from dtrain.api.plan import Problem
from dtrain.api.step_checks import asked_for
from dtrain.api.strategy import Strategy
from dtrain.job import task_class
from dtrain.job.job import Job
from dtrain.launch import registry

STOP = "train.on_nonfinite: stop works everywhere"
ITSELF = "leave it out; a function may scale its loss itself and have the scaler kept by context.register"


def problems(job: Job, strategy: Strategy) -> Iterator[Problem]:
    """Yield the reasons why a job cannot check its steps, each with what to do instead."""
    if job.kind == "script":
        return
    if asked_for(job.train):
        name = "on_nonfinite" if job.train.spike is None else "spike"
        what = f"train.on_nonfinite: {job.train.on_nonfinite}" if job.train.spike is None else "train.spike"
        yield from (Problem(("train", name), f"{text}; {STOP}") for text in _why_not(what, job, strategy))
    if option := strategy.scales_loss():
        key = ("strategy", option.partition(":")[0])
        yield from (Problem(key, f"{text}; {ITSELF}") for text in _why_not(f"strategy.{option}", job, strategy))


def _why_not(what: str, job: Job, strategy: Strategy) -> Iterator[str]:
    """Yield what keeps a job from having its steps looked at, which `what` needs."""
    if job.kind == "function":
        yield f"a function makes its optimizer steps itself: {what} needs a task with `loss`"
    elif job.task and task_class.has(job.target, job.code_folders, "train_step"):
        yield f"train_step makes its optimizer steps itself: {what} needs a task with `loss`"
    elif strategy.unchecked(job) is None:
        yield (
            f"{what}: '{job.strategy.name}' makes the optimizer step in the same call as the gradient, and cannot look at it before: "
            f"choose one of {', '.join(_able())}"
        )
    elif text := strategy.unchecked(job):
        yield f"{what}: {text}"


def _able() -> list[str]:
    names = registry.installed("strategy")
    return [name for name in names if registry.plugin_class("strategy", name).unchecked is not Strategy.unchecked]
