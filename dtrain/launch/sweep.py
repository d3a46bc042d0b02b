"""One recipe, several runs: each member of a sweep is a run of its own, with its values written into its job.

On a cluster each is a submission of its own too, so that whatever is started again can only be the member it was."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from dtrain.common.errors import UsageError
from dtrain.job.job import Job
from dtrain.launch import recipe

LONGEST_NAME = 64


def members(sweeps: Sequence[str], option: str = "--sweep") -> list[list[recipe.Override]]:
    """The overrides of each member: every combination of the values; one member without any if nothing is swept."""
    parsed = [_axis(text, option) for text in sweeps]
    keys = [key for key, _ in parsed]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"{option} {twice}: given twice", f"Give all its values at once: {option} {twice}=a,b,c")
    axes = [[_override(key, value, option) for value in values] for key, values in parsed]
    return [list(member) for member in itertools.product(*axes)]


def _override(key: str, value: str, option: str) -> recipe.Override:
    path, typed, _ = recipe.override(f"{key}={value}")
    return path, typed, f"{option} {key}={value}"


def _axis(text: str, option: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    found = values.split(",")
    if not sign or not all(key.split(".")) or not all(found):
        example = f"For example: {option} train.seed=0,1,2"
        raise UsageError(f"{option} {text}: not of the form section.key=a,b,c", example)
    if len(set(found)) < len(found):
        raise UsageError(f"{option} {text}: a value stands there twice", "Give each value once.")
    return key.strip(), found


def named(job: Job, member: Sequence[recipe.Override]) -> Job:
    """The job under a name that tells it from the other members: `digits-seed2`."""
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", f"-{path[-1]}{value}") for path, value, _ in member]
    return dataclasses.replace(job, name=f"{job.name}{''.join(parts)}"[:LONGEST_NAME])
