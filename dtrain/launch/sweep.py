"""One recipe, several runs: each member of a sweep is a run of its own, with its values written into its job.

On a cluster each is a submission of its own too, so that whatever is started again can only be the member it was."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from dtrain.common.errors import UsageError
from dtrain.launch import recipe
from dtrain.spec.job import Job

LONGEST_NAME = 64


def members(sweeps: Sequence[str]) -> list[list[recipe.Override]]:
    """The overrides of each member: every combination of the values; one member without any if nothing is swept."""
    axes = [[recipe.override(f"{key}={value}") for value in values] for key, values in map(_axis, sweeps)]
    return [list(member) for member in itertools.product(*axes)]


def _axis(text: str) -> tuple[str, list[str]]:
    key, sign, values = text.partition("=")
    found = values.split(",")
    if not sign or not key or not all(found):
        raise UsageError(f"--sweep {text}: not of the form section.key=a,b,c", "For example: --sweep train.seed=0,1,2")
    if len(set(found)) < len(found):
        raise UsageError(f"--sweep {text}: a value stands there twice", "Give each value once.")
    return key, found


def named(job: Job, member: Sequence[recipe.Override]) -> Job:
    """The job under a name that tells it from the other members: `digits-seed2`."""
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", f"-{path[-1]}{value}") for path, value, _ in member]
    return dataclasses.replace(job, name=f"{job.name}{''.join(parts)}"[:LONGEST_NAME])
