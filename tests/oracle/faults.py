"""Faults that a drawn program puts into dtrain before it trains, to see that the oracles find them."""

from __future__ import annotations

FAULTS = {
    "rate-not-restored": """
from dtrain.strategies.torch.state import state
state.TorchState.restore_groups = lambda self, stored: []
""",
    "momentum-skipped": """
from dtrain.strategies.torch.state import optimizer_state
restore = optimizer_state.restore
optimizer_state.restore = lambda optimizer, found, parameters: restore(optimizer, found | {"state": {}}, parameters)
""",
    "one-buffer-skipped": """
from dtrain.strategies.torch.state import state
read = state.Stored.read
def skipping(self, wanted):
    buffer = wanted.get("model", {}).get("norm.running_mean")
    kept = buffer.clone() if buffer is not None else None
    read(self, wanted)
    if kept is not None:
        buffer.copy_(kept)
state.Stored.read = skipping
""",
    "sample-skipped": """
from dtrain.data.sampler import Sampler
begin = Sampler.begin
import os
late = int(os.environ["DTRAIN_ATTEMPT"]) > 1
Sampler.begin = lambda self, step, first: begin(self, step, first) + late
""",
    "sample-twice": """
from dtrain.data.sampler import Sampler
indices = Sampler.indices
Sampler.indices = lambda self, begin, count: indices(self, begin // 12 * 12 if begin > 60 else begin, count)
""",
    "dropout-by-attempt": """
import os
from dtrain.strategies.torch.train import backend
seed = backend.TorchBackend.seed
backend.TorchBackend.seed = lambda self, number: seed(self, number + int(os.environ["DTRAIN_ATTEMPT"]))
""",
    "scheduler-not-restored": """
from dtrain.strategies.torch.state import state
give = state.Stored.give
state.Stored.give = lambda self, section, name, thing: None if section == "schedulers" or name == "schedule" else give(self, section, name, thing)
""",
    "registered-not-restored": """
from dtrain.strategies.torch.state import state
give = state.Stored.give
state.Stored.give = lambda self, section, name, thing: None if name in ("average", "kept") else give(self, section, name, thing)
""",
    "buffers-not-shared": """
from dtrain.strategies.torch.train import buffers
buffers.BufferSync.share = lambda self, every: None
""",
    "loss-unweighted": """
from dtrain.strategies.torch.train.objective import Objective
add = Objective.add
Objective.add = lambda self, loss, weight, share: add(self, loss, None, share)
""",
    "parts-unweighted": """
from dtrain.strategies.torch.train import backend
backend.TorchBackend.weigh = lambda self, weights: setattr(self, "_weights", [1.0] * len(weights))
""",
    "schedule-of-the-step-before": """
from dtrain.worker.task import Task
factor = Task.factor
Task.factor = lambda self, step, total: factor(self, max(0, step - 1), total)
""",
    "gradients-not-kept": """
from dtrain.strategies.torch.state import optimizer_state
optimizer_state.pending_gradients = lambda named, ranks: {}
""",
    "metrics-by-position": """
from dtrain.strategies import means
def by_position(values, weights, ranks, totals, everyones):
    return dict(zip(values, (total / ranks for total in totals(list(values.values()) + [0.0] * (4 - len(values)))), strict=False))
means.by_name = by_position
""",
    "saved-in-training-mode": """
from contextlib import contextmanager
from dtrain.strategies.torch.state import optimizer_state
@contextmanager
def nothing(optimizers, named):
    yield {}
optimizer_state.evaluating = nothing
""",
    "clipped-twice-as-far": """
from dtrain.strategies.torch.train.parallel import Parallel
clip = Parallel.clip
Parallel.clip = lambda self, parameters, most: clip(self, parameters, most / 2)
""",
}
"""Name → what lies beside the program as `fault.py` and is imported first, in the worker."""
