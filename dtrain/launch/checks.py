"""Checks of a job's environment variables, arguments, preloads and trackers, before anything is started."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from importlib.machinery import PathFinder

from dtrain.api.plan import Problem
from dtrain.job.job import Job
from dtrain.launch import registry

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
OWN = re.compile(
    r"DTRAIN_.*|TORCHELASTIC_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TF_CONFIG"
    r"|HOROVOD_((LOCAL_|CROSS_)?(RANK|SIZE)|HOSTNAME|GLOO_.*|CONTROLLER)"
)
"""Variables that tell a worker its place among the others; the launcher sets them."""


def environment(job: Job) -> Iterator[Problem]:
    """Variables that cannot be set, or that the launcher sets; arguments that no program can be given."""
    for name, value in job.env.items():
        if not VARIABLE.fullmatch(name):
            yield Problem(
                ("env", name), f"{name!r} cannot name an environment variable: letters, digits and underscores"
            )
        elif OWN.fullmatch(name):
            yield Problem(("env", name), f"{name} is set by the launcher, differently for each worker: leave it out")
        elif "\0" in value:
            yield Problem(("env", name), "an environment variable cannot hold a NUL character")
    for index, argument in enumerate(job.args):
        if "\0" in str(argument):
            yield Problem(("args", str(index)), "an argument cannot hold a NUL character")


def preload(job: Job) -> Iterator[Problem]:
    """Modules that are not there, if the workers run in this environment."""
    here = registry.cluster_of(job).same_machine
    for module in job.preload:
        if not MODULE.fullmatch(module):
            yield Problem(("preload",), f"{module!r} cannot name a module: for example package.module")
        elif here and not _is_there(module.partition(".")[0], job.env.get("PYTHONPATH", "")):
            yield Problem(("preload",), f"there is no module {module.partition('.')[0]}: install it, or leave it out")


def trackers(job: Job) -> Iterator[Problem]:
    """Trackers that lack something, if the supervisor runs in this environment."""
    if not registry.cluster_of(job).same_machine:
        return
    for index, choice in enumerate(job.track or ()):
        if missing := registry.missing_for("tracker", choice.name):
            yield Problem(("track", index), f"{choice.name}: {missing}")


def _is_there(package: str, path: str) -> bool:
    """Whether a package is installed, or below the PYTHONPATH of the recipe's own variables."""
    folders = [folder for folder in path.split(os.pathsep) if folder]
    return importlib.util.find_spec(package) is not None or PathFinder.find_spec(package, folders) is not None
