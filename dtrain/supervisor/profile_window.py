"""The steps that a requested profile covers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dtrain.api.protocol import ProfileWindow
from dtrain.run.inspection import InspectionRequest

LEAST_STEPS_AHEAD = 3
HEARD_SECONDS = 2.0
"""For a command to reach every worker."""


def profile_window(request: InspectionRequest, steps: Mapping[int, int], rate: float) -> ProfileWindow:
    """Pure. From a step on that no rank has reached by then; `steps` are those done by each rank, `rate` is in steps a second."""
    first = max(steps.values(), default=0) + max(LEAST_STEPS_AHEAD, math.ceil(rate * HEARD_SECONDS))
    return ProfileWindow(request.id, first, request.profile_steps, request.ranks or (0,))
