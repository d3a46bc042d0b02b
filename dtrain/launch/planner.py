"""Turns a job into its launch plan. Pure, so that `dtrain plan` shows exactly what `dtrain run` does."""

from __future__ import annotations

import ast
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from dtrain.api.plan import LaunchPlan, Problem
from dtrain.api.strategy import TrainingStrategy
from dtrain.common.errors import nearest
from dtrain.common.sizes import memory_bytes
from dtrain.job import entrypoint, import_ways, task_class
from dtrain.job.job import Data, Job, PluginChoice, ScriptModule, Train
from dtrain.launch import bench_store, checks, exactness, initial_weights, registry, step_checks, tuning
from dtrain.record.folder import default_root
from dtrain.storage import object_store


def resolve(job: Job, runs: Path | None = None) -> Job:
    """Fix what the recipe leaves open for the life of the run: the strategy that `auto` stands for, and what `train.exact` needs.
    Measurements of `dtrain bench` are looked for in the folder `runs`."""
    strategy = registry.strategy_of(job)
    if choice := strategy.resolve(job):
        if runs and job.kind != "script":
            choice = strategy.learned(choice, bench_store.of_job(runs, job))
        job = dataclasses.replace(job, strategy=PluginChoice(*choice))
    return exactness.fixed(job)


def make(job: Job) -> LaunchPlan:
    """The plan of a job that was `checked`."""
    job = resolve(job)
    strategy = registry.strategy_of(job)
    nodes, workers = job.resources.nodes, job.resources.workers
    per_node = max(1, workers // nodes)
    processes = max(1, strategy.processes(per_node, job.resources.device))
    return LaunchPlan(
        job,
        nodes,
        per_node,
        processes,
        tuple(dict.fromkeys((*strategy.preload(job), *job.preload))),
        uneven=job.kind == "task" and strategy.splits_unevenly(job),
    )


def checked(job: Job, *, here: bool = True, runs: Path | None = None) -> tuple[Job, list[Problem]]:
    """The resolved job (see `resolve`), and everything that keeps it from running, each with what to do instead; none: it can
    start. Without `here`, what keeps this machine from starting it is left out. `runs` is where runs that it names are looked for."""
    job, found = initial_weights.resolved(job, default_root(runs))
    found += [*_of_target(job), *_of_numbers(job), *_of_storage(job), *checks.environment(job), *tuning.problems(job)]
    if found:
        return job, found
    plan = make(resolve(job, runs))
    found += [
        *_of_strategy(plan),
        *exactness.problems(plan.job, registry.strategy_of(plan.job)),
        *step_checks.problems(plan.job, registry.strategy_of(plan.job)),
        *checks.preload(job),
        *checks.trackers(job),
    ]
    texts = registry.cluster_of(plan.job).problems(plan)
    if here and not texts:
        texts = out_of_reach(plan)
    return plan.job, [*found, *(Problem(("resources",), text) for text in texts)]


def out_of_reach(plan: LaunchPlan) -> list[str]:
    """Return the reasons why this machine cannot start a run on its cluster."""
    cluster = registry.cluster_of(plan.job)
    return cluster.out_of_reach(plan)


def _of_target(job: Job) -> Iterator[Problem]:
    named = [kind for kind in ("task", "function", "script") if getattr(job, kind)]
    if len(named) != 1:
        given = f"it names {' and '.join(named)}" if named else "it names none"
        yield Problem((named[-1],) if named else (), f"a recipe runs one of task, function and script: {given}")
    elif job.kind != "script":
        kind = ast.ClassDef if job.kind == "task" else ast.FunctionDef
        text = entrypoint.problem(job.target, job.code_folders, kind)
        if text := text or _not_found(job):
            yield Problem((job.kind,), text)
        elif job.kind == "task":
            found = task_class.problems(job.target, job.code_folders, job.params)
            yield from (Problem(path, text) for path, text in found)
        elif text := task_class.problem_of_function(job.target, job.code_folders):
            yield Problem(("function",), text)
    elif text := _of_script(job):
        yield Problem(("script",), text)
    for folder, part in zip(job.code_folders[1:], job.pythonpath, strict=True):
        if not Path(folder).is_dir():
            yield Problem(("pythonpath",), f"there is no folder {folder} ('{part}', as seen from {job.folder})")
    if job.kind == "script" and job.params:
        yield Problem(("params",), "a script takes `args`, not `params`")
    if job.kind != "script" and job.recovery.retry_exit_codes:
        yield Problem(
            ("recovery", "retry_exit_codes"), f"a {job.kind} reports its errors itself: exit codes are for a script"
        )
    if job.kind != "script" and job.args:
        yield Problem(("args",), f"a {job.kind} takes `params`, not `args`")


def _not_found(job: Job) -> str:
    """The message for a module that is not there, if the workers run in this environment."""
    if entrypoint.source(job.target, job.code_folders) or not registry.cluster_of(job).same_machine:
        return ""
    name, _ = entrypoint.split(job.target)
    where = f"there is no module '{name}' in {' or '.join(job.code_folders)} or among the installed packages"
    return f"{where}{import_ways.of_module(name, job)}"


def _of_script(job: Job) -> str:
    if isinstance(job.script, ScriptModule):
        return _of_module(job.script.module, job)
    path = Path(job.folder) / str(job.script)
    if path.suffix == ".py":
        tree = entrypoint.parsed(path)
        return tree if isinstance(tree, str) else ""
    if path.is_file() and not os.access(path, os.X_OK):
        return f"{path} is no Python file and may not be executed: chmod +x {path}"
    if path.is_file() or shutil.which(str(job.script)):
        return ""
    others = [str(file.relative_to(job.folder)) for file in Path(job.folder).glob("*.py")]
    return f"there is no file {path} and no program '{job.script}'. {nearest(str(job.script), others) if others else ''}".rstrip()


def _of_module(name: str, job: Job) -> str:
    if not all(part.isidentifier() for part in name.split(".")):
        return f"'{name}' is no module: name one as after python -m, package.module"
    if path := entrypoint.module_file(name, job.code_folders):
        tree = entrypoint.parsed(path)
        return tree if isinstance(tree, str) else ""
    where = f"there is no module '{name}' that python -m could run, in {' or '.join(job.code_folders)} or among the installed packages"
    return f"{where}{import_ways.of_module(name, job)}"


def _of_numbers(job: Job) -> Iterator[Problem]:
    resources, train = job.resources, job.train
    if resources.workers % resources.nodes:
        near = math.ceil(resources.workers / resources.nodes) * resources.nodes
        yield Problem(
            ("resources", "workers"),
            f"{resources.workers} workers cannot be spread evenly over {resources.nodes} nodes: take {near} workers",
        )
    if resources.gpus and not registry.cluster_of(job).same_machine:
        yield Problem(
            ("resources", "gpus"), f"the cluster '{job.cluster.name}' chooses the GPUs itself: leave resources.gpus out"
        )
    if resources.numa and resources.nodes > 1 and registry.cluster_of(job).same_machine:
        yield Problem(
            ("resources", "numa"),
            "several nodes on one machine would be bound to the same CPUs: leave resources.numa out",
        )
    if (resources.min_workers or 0) > resources.workers:
        yield Problem(("resources", "min_workers"), f"min_workers is above workers ({resources.workers})")
    if resources.device_memory is not None:
        yield from _of_amount(("resources", "device_memory"), resources.device_memory)
    if job.logs.keep is not None:
        yield from _of_amount(("logs", "keep"), job.logs.keep)
    if job.kind == "script":
        return
    yield from _of_amount(("data", "memory"), job.data.memory)
    if job.checkpoint.memory_limit is not None:
        yield from _of_amount(("checkpoint", "memory_limit"), job.checkpoint.memory_limit)
    if job.kind == "task":
        yield from _of_decisions(job)
    if job.kind == "function" and train.stop_when:
        yield Problem(("train", "stop_when"), "a function decides itself when it stops: it calls context.stop(reason)")
    if (train.steps is None) == (train.epochs is None):
        yield Problem(("train",), "give train.steps or train.epochs, one of the two")
    workers = resources.workers
    if job.data.sharded and train.exact:
        yield Problem(
            ("data", "sharded"), "each number of workers reads other samples then, which train.exact cannot have"
        )
    divided = [key for key in ("shards", "micro_batch", "accumulate") if getattr(train, key)]
    if len(divided) > 1:
        yield Problem(("train", divided[-1]), f"give {' or '.join(f'train.{key}' for key in divided)}, one of them")
    if train.shards and train.shards % workers:
        near = math.ceil(train.shards / workers) * workers
        yield Problem(
            ("train", "shards"),
            f"{train.shards} shards cannot be shared evenly by {workers} workers: take {near} shards, or workers that divide {train.shards}",
        )
    if train.shards and train.global_batch % train.shards:
        yield _not_divided(train.global_batch, train.shards, "shards")
    elif train.global_batch < workers:
        yield _not_divided(train.global_batch, workers, "workers")
    elif train.accumulate and train.global_batch < workers * train.accumulate:
        yield _not_divided(train.global_batch, workers * train.accumulate, "passes of all workers")


def _of_decisions(job: Job) -> Iterator[Problem]:
    """Problems of what evaluations of a task decide."""
    decisions = {("train", "stop_when"): job.train.stop_when, ("checkpoint", "keep_best"): job.checkpoint.keep_best}
    for key, wanted in decisions.items():
        if wanted is None:
            continue
        if not job.train.evaluate_every:
            yield Problem(
                key, f"{key[1]} looks at evaluations, and there is one at the end only: set train.evaluate_every"
            )
        names = task_class.metric_names(job.target, job.code_folders)
        if names and wanted.metric not in names:
            yield Problem(
                (*key, "metric"),
                f"there is no metric {wanted.metric!r} in an evaluation, which has {', '.join(names)}. {nearest(wanted.metric, names)}",
            )


def _of_amount(key: tuple[str, ...], text: str) -> Iterator[Problem]:
    if memory_bytes(text) is None:
        yield Problem(key, f"'{text}' is no amount of memory: write it like 500MB or 2GB")


def _not_divided(batch: int, parts: int, what: str) -> Problem:
    lower = batch // parts * parts
    batches = f"{lower} or {lower + parts}" if lower else str(parts)
    return Problem(
        ("train", "global_batch"), f"a global batch of {batch} cannot be divided by {parts} {what}: take {batches}"
    )


def _of_storage(job: Job) -> Iterator[Problem]:
    if job.storage.url is not None and (text := object_store.url_problem(job.storage.url)):
        yield Problem(("storage", "url"), text)
    if job.storage.options and job.storage.url is None:
        yield Problem(("storage", "options"), "options of what? Give storage.url, for example s3://bucket/runs")


def _of_strategy(plan: LaunchPlan) -> Iterator[Problem]:
    job, strategy = plan.job, registry.strategy_of(plan.job)
    if job.kind != "script" and not isinstance(strategy, TrainingStrategy):
        yield Problem(
            ("strategy",), f"the strategy '{job.strategy.name}' runs scripts only: choose one that trains a {job.kind}"
        )
    if job.kind == "script" and isinstance(strategy, TrainingStrategy):
        yield Problem(
            ("strategy",),
            f"a script trains by itself: '{job.strategy.name}' is for tasks and functions; leave `strategy` out",
        )
    if job.kind == "script" and job.train != Train():
        yield Problem(("train",), "a script has its own loop: `train` is for tasks and functions; give it `args`")
    if job.kind == "script" and job.data != Data():
        yield Problem(("data",), "a script fetches its own data: `data` is for tasks and functions; give it `args`")
    if job.train.matmul and job.resources.device == "tpu":
        yield Problem(("train", "matmul"), "train.matmul is for GPUs and CPUs: leave it out")
    batch, workers = job.train.global_batch, job.resources.workers
    if job.kind != "script" and not job.train.shards and batch % workers and not plan.uneven:
        yield _not_divided(batch, workers, "workers")
    for problem in strategy.problems(job.resources):
        yield Problem(("strategy",), problem)
    missing = registry.missing_for("strategy", job.strategy.name) if registry.cluster_of(job).same_machine else ""
    if missing:
        yield Problem(("strategy",), f"the strategy '{job.strategy.name}': {missing}")
