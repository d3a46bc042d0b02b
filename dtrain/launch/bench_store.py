"""Measurements of `dtrain bench`, kept beside the runs: `strategy: auto` learns from them.

A measurement counts for the same task, parameters, numbers, workers and machine, as long as the task's file and the versions of the
packages are those that were measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dtrain.api.bench_choice import Measured, MeasuredStrategies, MeasuredStrategy
from dtrain.common.files import PRIVATE_FILE, private_folder, write_json
from dtrain.common.serde import from_dict, to_dict
from dtrain.job import entrypoint
from dtrain.job.job import Job
from dtrain.launch import registry

FOLDER = ".measured"
"""In the folder of runs."""
LAUNCHER = "dtrain"


def keep(runs: Path, job: Job, run: str, measured: Measured) -> None:
    """Keep what a run of this job measured; a newer measurement replaces an older one."""
    choice = MeasuredStrategy(job.strategy.name, _changed_options(job), measured, run, time.time())
    kept = to_dict(choice) | {"versions": _versions(job, choice.name), "source": _source(job)}
    folder = private_folder(runs.absolute() / FOLDER)
    name = f"{_problem(job)}-{_digest([choice.name, choice.options])}.json"
    write_json(folder / name, kept, PRIVATE_FILE)


def of_job(runs: Path, job: Job) -> MeasuredStrategies:
    """The measurements that count for this job, the fastest first, and why others do not."""
    found, outdated = list[MeasuredStrategy](), list[str]()
    for path in sorted((runs.absolute() / FOLDER).glob(f"{_problem(job)}-*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept: dict[str, Any] = json.loads(path.read_text())
            versions, source = kept.pop("versions"), kept.pop("source")
            choice = from_dict(MeasuredStrategy, kept)
            if problem := _changed(versions, source, job, choice.name):
                outdated.append(problem)
            else:
                found.append(choice)
    found.sort(key=lambda one: -one.measured.samples_per_second)
    return MeasuredStrategies(tuple(found), tuple(dict.fromkeys(outdated)))


def _changed_options(job: Job) -> dict[str, Any]:
    """The options of its strategy that are not the default."""
    options = registry.plugin_class("strategy", job.strategy.name).Options
    defaults = {field.name: json.dumps(field.default, default=str) for field in dataclasses.fields(options)}
    return {name: value for name, value in job.strategy.options.items() if json.dumps(value) != defaults[name]}


def _changed(versions: dict[str, str], source: str, job: Job, strategy: str) -> str:
    """Describe what has changed since the measurement; '' if nothing has."""
    now = _versions(job, strategy)
    for name in sorted(versions.keys() | now.keys()):
        if versions.get(name) != now.get(name):
            return f"{name} was {versions.get(name, 'not installed')} and is {now.get(name, 'not installed')} now"
    return "" if source == _source(job) else f"the file of {job.target} has changed"


def _versions(job: Job, strategy: str) -> dict[str, str]:
    """Of dtrain, of the strategy's framework and of those that the task's file imports, as far as they are installed here."""
    frameworks = {registry.plugin_class("strategy", name).framework for name in registry.installed("strategy")}
    file = _file(job)
    imported = entrypoint.imports(file) if file else frozenset()
    wanted = {LAUNCHER, registry.plugin_class("strategy", strategy).framework, *(frameworks & imported)}
    packages = importlib.metadata.packages_distributions()
    return {name: importlib.metadata.version(packages[name][0]) for name in sorted(wanted & packages.keys())}


def _file(job: Job) -> Path | None:
    return entrypoint.source(job.target, job.code_folders)


def _source(job: Job) -> str:
    """Digest of the file of the task."""
    file = _file(job)
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file else ""
    except OSError:
        return ""


def _problem(job: Job) -> str:
    """Digest of everything that a measurement of a strategy depends on, the strategy itself left out."""
    resources, train = job.resources, job.train
    where = [job.cluster.name, _machine() if registry.cluster_of(job).same_machine else job.cluster.options]
    file = _file(job)
    return _digest([
        job.target, str(file.resolve() if file else ""), job.params, where, resources.workers, resources.nodes, resources.device,
        resources.cpus_per_worker, train.global_batch, train.shards, train.micro_batch,
    ])  # fmt: skip


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _machine() -> str:
    """The processors and GPUs of this machine, as the kernel names them."""
    processor = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line for line in lines if line.startswith(("model name", "CPU part"))), "")
    gpus = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            gpus += [line for line in file.read_text().splitlines() if line.startswith("Model")]
    return f"{processor} x {len(os.sched_getaffinity(0))} {gpus}"
