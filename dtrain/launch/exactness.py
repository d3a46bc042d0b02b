"""`train.exact`: what it fixes in a job, and what keeps a job from having the same bits at every size. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from dtrain.api.plan import Problem
from dtrain.api.strategy import Strategy
from dtrain.job.job import Job
from dtrain.launch import registry

MOST_SHARDS = 8
"""When the recipe does not say."""


def fixed(job: Job) -> Job:
    """The job with the shards, and on CPUs with the threads, that its bits depend on."""
    if not job.train.exact or job.kind == "script":
        return job
    shards, threads = job.train.shards, job.resources.cpus_per_worker
    if shards is None:
        shards = next(count for count in (MOST_SHARDS, 4, 2, 1) if job.train.global_batch % count == 0)
    if threads is None and job.resources.device == "cpu":
        threads = 1
    return dataclasses.replace(
        job,
        train=dataclasses.replace(job.train, shards=shards),
        resources=dataclasses.replace(job.resources, cpus_per_worker=threads),
    )


def _exact() -> list[str]:
    """The installed strategies that can."""
    names = registry.installed("strategy")
    return [name for name in names if registry.plugin_class("strategy", name).inexact is not Strategy.inexact]


def problems(job: Job, strategy: Strategy) -> Iterator[Problem]:
    """Yield the reasons why a job cannot have `train.exact`, each with what to do instead."""
    if not job.train.exact:
        return
    key = ("train", "exact")
    reasons = strategy.inexact(job)
    if reasons is None:
        yield Problem(
            key,
            f"'{job.strategy.name}' adds gradients in an order of its own, which depends on the number of workers: choose one of "
            f"{', '.join(_exact())}, or leave train.exact out",
        )
    else:
        yield from (Problem(key, text) for text in reasons)
    if job.train.matmul not in (None, "highest"):
        yield Problem(
            ("train", "matmul"), "train.exact needs whole float32, which all GPUs have: leave train.matmul out"
        )
    for name, number in (("resources.workers", job.resources.workers), ("train.shards", job.train.shards or 1)):
        if number & (number - 1):
            yield Problem(
                tuple(name.split(".")), f"{number} is no power of two, which train.exact needs: a tree has whole halves"
            )
