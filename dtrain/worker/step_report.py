"""Reports of a training loop: loss, metrics and speed, averaged over the ranks and sent by one of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from dtrain.common.errors import UserError
from dtrain.record.events import Evaluation, Metrics
from dtrain.worker.trainer import Trainer


class Report:
    """What is reported every `log_every` steps, and of evaluations."""

    def __init__(self, trainer: Trainer, total_steps: int, *, counts_samples: bool = True) -> None:
        self._trainer = trainer
        self._counts_samples = counts_samples
        """Whether each step trains on a global batch; a loop with data of its own says nothing of its samples."""
        self._total_steps = total_steps
        self._since = time.perf_counter()
        self._counted = 0
        self._waited = 0.0
        self._pending: dict[str, Any] = {}
        """The newest value of each name since the last report."""

    def count(self, done: int, values: Any) -> None:
        """Collective if a report is due. Count a step that is done, with this loss or these named numbers."""
        self._counted += 1
        trainer = self._trainer
        self._pending |= values if isinstance(values, Mapping) else {"loss": values}
        if not trainer.due(done, self._total_steps, trainer.train.log_every):
            return
        weights = {name: value[1] if isinstance(value, tuple) else 1.0 for name, value in self._pending.items()}
        values = {
            name: float(value[0]) / (value[1] or 1.0) if isinstance(value, tuple) else float(value)
            for name, value in self._pending.items()
        }
        means = trainer.backend.mean(values, weights)
        self._pending.clear()
        if not means:
            return
        self._check(means, done)
        now = time.perf_counter()
        speed = self._counted / max(1e-9, now - self._since)
        wait = trainer.data_wait
        share = min(1.0, (wait.seconds - self._waited) / max(1e-9, now - self._since))
        self._since, self._counted, self._waited = now, 0, wait.seconds
        backend = trainer.backend
        optimizer = backend.measured() if trainer.rank == 0 else {}
        self._send(
            Metrics(
                step=done,
                values=means,
                samples_per_second=round(speed * trainer.train.global_batch, 1) if self._counts_samples else None,
                steps_per_second=None if self._counts_samples else round(speed, 4),
                data_wait=round(share, 4),
                data_workers=wait.workers,
                optimizer=optimizer,
            )
        )

    def _check(self, means: Mapping[str, float], done: int) -> None:
        loss = means.get("loss", 0.0)
        if self._trainer.train.on_nonfinite != "ignore" and not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {done - 1} (seen on rank {self._trainer.rank}; at the earliest, "
                f"{self._trainer.train.log_every - 1} steps before): lower the learning rate, set train.clip_norm, or look "
                "for bad samples (train.on_nonfinite: ignore trains on)"
            )

    def evaluated(self, done: int, values: dict[str, float], seconds: float) -> None:
        """Report an evaluation, whose time does not count as training."""
        self._send(Evaluation(step=done, values=values, seconds=round(seconds, 4)))
        self._since, self._counted = time.perf_counter(), 0
        self._waited = self._trainer.data_wait.seconds

    def _send(self, report: Metrics | Evaluation) -> None:
        if self._trainer.rank == 0:
            self._trainer.channel.report(report)
