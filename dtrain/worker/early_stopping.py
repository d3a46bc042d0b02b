"""`train.stop_when`: ends a run whose evaluations get no better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dtrain.job.job import StopWhen


class EarlyStopping:
    """The best evaluation so far, and how many have passed since. Every rank has the same, and a checkpoint keeps it."""

    def __init__(self, wanted: StopWhen) -> None:
        self._wanted = wanted
        self._best: float | None = None
        self._best_step = 0
        self._since = 0

    def reason(self, step: int, values: Mapping[str, float]) -> str:
        """Why the run ends after this evaluation; '' if it goes on."""
        wanted = self._wanted
        value = values[wanted.metric]
        if self._is_better(value):
            self._best, self._best_step, self._since = value, step, 0
        else:
            self._since += 1
        if self._since < wanted.patience:
            return ""
        return (
            f"{wanted.metric} was no better in {self._since} evaluations than at step {self._best_step} "
            f"({self._best:.4g}; train.stop_when)"
        )

    def _is_better(self, value: float) -> bool:
        """Whether a value is better than the best so far; whatever is finite is better than what is not."""
        if self._best is None or not math.isfinite(value):
            return self._best is None
        if not math.isfinite(self._best):
            return True
        gain = (self._best - value) * (1 if self._wanted.mode == "min" else -1)
        return gain > self._wanted.min_delta

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        return {"best": self._best, "best_step": self._best_step, "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self._best, self._best_step, self._since = state["best"], state["best_step"], state["since"]
