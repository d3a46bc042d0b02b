"""Reports of a training loop: loss, metrics and speed, averaged over the ranks and sent by one of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dtrain.common.errors import UserError
from dtrain.record.events import Evaluation, Metrics
from dtrain.worker.trainer import Trainer

UNREPORTED_NAME = "dtrain_unreported"
"""Name under which the numbers since the last report are registered."""


class Unreported:
    """This rank's newest value of each name since the last report; a checkpoint between two reports holds those of all ranks."""

    def __init__(self, trainer: Trainer) -> None:
        """Collective, once a checkpoint was loaded."""
        self.values: dict[str, Any] = {}
        self._backend, self._rank, self._ranks = trainer.backend, trainer.rank, trainer.world_size
        self._steps = 0
        self._everyones: dict[str, Any] = {}
        trainer.writer.memory.preparing.append(self.gather)
        trainer.keep(UNREPORTED_NAME, self)

    def add(self, values: Mapping[str, Any]) -> None:
        """Keep the numbers of a step: a value, or the sum of weighted values and the sum of the weights."""
        self.values |= values
        self._steps += 1

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the values, and the weights of those that have one; there are none afterwards."""
        values, weights = {}, {}
        for name, value in self.values.items():
            total, weight = value if isinstance(value, tuple | list) else (value, 1.0)
            values[name], weights[name] = float(total) / (weight or 1.0), weight
        self.values, self._steps = {}, 0
        return values, weights

    def gather(self, *, to_disk: bool) -> None:
        """Collective between two reports. Take the values of every rank for the checkpoint that is about to be made."""
        self._everyones = {}
        if not self._steps:
            return
        own: dict[str, float] = {}
        for place, (name, value) in enumerate(self.values.items()):
            parts = value if isinstance(value, tuple | list) else (value,)
            own |= {f"{self._rank:06}.{place:06}.{number}.{name}": float(part) for number, part in enumerate(parts)}
        ranks: list[dict[str, list[float]]] = [{} for _ in range(self._ranks)]
        for key, value in sorted(self._backend.mean(own).items()):
            rank, _, _, name = key.split(".", 3)
            ranks[int(rank)].setdefault(name, []).append(value)
        self._everyones = {"steps": self._steps, "ranks": ranks}

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered last, for a checkpoint."""
        return self._everyones

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with this rank's values; at another number of workers, rank 0 has the sums of all."""
        ranks, self._steps = state.get("ranks", []), state.get("steps", 0)
        if len(ranks) != self._ranks:
            ranks = [_summed(ranks), *({} for _ in range(1, self._ranks))]
        self.values = {name: parts if parts[1:] else parts[0] for name, parts in ranks[self._rank].items()}


def _summed(ranks: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, (value, *weight) in (item for rank in ranks for item in rank.items()):
        total = found.setdefault(name, [0.0, 0.0])
        total[0] += value
        total[1] += weight[0] if weight else 1.0
    return found


class Report:
    """What is reported every `log_every` steps, and of evaluations."""

    def __init__(
        self, trainer: Trainer, total_steps: int, unreported: Unreported, *, counts_samples: bool = True
    ) -> None:
        self._trainer = trainer
        self._counts_samples = counts_samples
        """Whether each step trains on a global batch; a loop with data of its own says nothing of its samples."""
        self._total_steps = total_steps
        self._unreported = unreported
        self._since = time.perf_counter()
        self._counted = 0
        self._waited = 0.0

    def count(self, done: int, values: Any) -> None:
        """Collective if a report is due. Count a step that is done, with this loss or these named numbers."""
        self._counted += 1
        trainer = self._trainer
        self._unreported.add(values if isinstance(values, Mapping) else {"loss": values})
        if not trainer.due(done, self._total_steps, trainer.train.log_every):
            return
        means = trainer.backend.mean(*self._unreported.take())
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
