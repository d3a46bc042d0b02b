"""The step that all ranks can still be told of: where a requested profile begins, or a debugger stops."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dtrain.api.protocol import ProfileSteps
from dtrain.record.inspection import InspectionRequest

LEAST_STEPS_AHEAD = 3
HEARD_SECONDS = 2.0
"""Longest time for a command to reach every worker."""


def profile_steps(attempt: int, request: InspectionRequest, steps: Mapping[int, int], rate: float) -> ProfileSteps:
    """Pure. The steps that some ranks profile; see `step_ahead`."""
    return ProfileSteps(attempt, request.id, step_ahead(steps, rate), request.profile_steps, request.ranks or (0,))


def step_ahead(steps: Mapping[int, int], rate: float) -> int:
    """Pure. A step that no rank has reached by the time it hears of it; `steps` are those done by each rank, `rate` is in
    steps a second."""
    return max(steps.values(), default=0) + max(LEAST_STEPS_AHEAD, math.ceil(rate * HEARD_SECONDS))
