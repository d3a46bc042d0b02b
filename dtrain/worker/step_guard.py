"""Decides what follows from a loss or a gradient that is not finite, or that jumps (`train.on_nonfinite`,
`train.spike`).

All ranks decide from the same numbers, before the optimizer steps, so that they need not agree.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dtrain.api.step_checks import StepSeen, asked_for
from dtrain.api.training_backend import NonFiniteGradient, NonFiniteLoss
from dtrain.common.errors import AnotherRankFailed, CheckpointError, UserError
from dtrain.data.sampler import UNKNOWN_SIZE, Sampler
from dtrain.record.events import RESCALE, BadStep
from dtrain.record.sample_ledger import LeftOut
from dtrain.worker.trainer import Trainer

MOST_IN_A_ROW = 10
"""Steps that may be left out one after the other; a run whose every step is bad has diverged."""
MOST_SAMPLES = 8
"""Named in a message."""
LEAST_SCALE = 1.0
"""Scale of the loss (fp16) below which a gradient that is not finite is no matter of the scale."""
NAME = "dtrain_step_guard"
"""Name under which the guard's state is registered."""
HINT = "lower the learning rate, set train.clip_norm, or look at these samples"
ANSWERS = "train.on_nonfinite: skip leaves such a step out, ignore trains on"


class RollBack(BaseException):
    """Ends this attempt on all ranks; the next one begins at the last checkpoint, without the step. Not an `Exception`, so that
    nobody takes it for a failure."""


class StepGuard:
    """Guards the steps of one rank in one attempt. Its state, which is the same on every rank, is kept in
    checkpoints."""

    def __init__(self, trainer: Trainer, sampler: Sampler) -> None:
        self._trainer = trainer
        self._sampler = sampler
        self._train = trainer.train
        self._step = 0
        self._batches: Sequence[Any] = ()
        self._seeds: Sequence[int] = ()
        window = self._train.spike.window if self._train.spike else 1
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)
        self._in_a_row = 0
        self.left_out = LeftOut.NO
        """Whether the newest step was left out."""

    def begin(self, task: Any) -> None:
        """Collective, once the checkpoint is loaded. Raises `UserError` for a task that cannot have what the recipe asks for."""
        backend = self._trainer.backend
        if not (asked_for(self._train) or backend.scales_loss):
            return
        if hasattr(task, "train_step"):
            raise UserError(
                f"{task.name}.train_step makes its optimizer steps itself: train.on_nonfinite must be stop or ignore, without train.spike "
                "and without strategy.precision: fp16"
            )
        backend.judge_by(self._judge)
        # A checkpoint from before the recipe asked for this has no such state: the median begins anew.
        with suppress(CheckpointError):
            backend.register(NAME, self)

    def passes_over(self, step: int) -> bool:
        """Whether a step is left out because an earlier attempt was rolled back for it."""
        if step not in self._trainer.context.rolled_back:
            return False
        self._trainer.backend.leave_out()
        self._step, self.left_out = step, LeftOut.ROLLED_BACK
        self._count("the steps before it, for which the run was rolled back")
        return True

    @contextmanager
    def watching(self, step: int, batches: Sequence[Any], seeds: Sequence[int]) -> Iterator[None]:
        """Around a step of the training backend: what it finds becomes an error in the user's words."""
        self._step, self.left_out = step, LeftOut.NO
        self._batches, self._seeds = batches, seeds
        try:
            yield
            self._in_a_row = self._in_a_row if self.left_out else 0
        except NonFiniteLoss as error:
            raise self.loss_error(error, step, batches, seeds) from None
        except NonFiniteGradient as error:
            raise self.gradient_error(error, step, batches, seeds) from None

    def loss_error(
        self, error: NonFiniteLoss, step: int, batches: Sequence[Any] = (), seeds: Sequence[int] = ()
    ) -> UserError:
        """A loss of this rank that is not finite, found in or after this step, whose batches are given if they are at hand."""
        found = None
        if batches and not error.steps_ago:
            found = self._origin(batches[error.number], seeds[error.number], gradient=False)
        place = self._place(step - error.steps_ago, self._trainer.shards.start + error.number, found)
        return UserError(f"the loss is {error.value} at step {step - error.steps_ago} on {place}: {HINT} ({ANSWERS})")

    def gradient_error(
        self, error: NonFiniteGradient, step: int, batches: Sequence[Any] = (), seeds: Sequence[int] = ()
    ) -> Exception:
        """Collective if the gradient is that of the batches that are given. One that is not finite though all losses are: the rank
        whose shard it comes from says so."""
        said = f"the gradient is {error.norm} at step {step - error.steps_ago}"
        if error.steps_ago or not batches or not self._trainer.backend.finds_nonfinite:
            return UserError(f"{said} (averaged over the ranks): {HINT} ({ANSWERS})")
        found = self._origins(batches, seeds)
        blamed = self._blamed(found)
        if blamed is not None and found.get(blamed):
            return UserError(f"{said}, from {self._place(step, blamed, found[blamed])}: {HINT} ({ANSWERS})")
        if blamed is not None or self._trainer.rank:
            return AnotherRankFailed(said)
        why = "which rank's cannot be told" if None in found.values() else "though each rank's own is finite"
        return UserError(f"{said} (averaged over the ranks, {why}): {HINT} ({ANSWERS})")

    def _origins(self, batches: Sequence[Any], seeds: Sequence[int]) -> dict[int, str | None]:
        """Shard of this rank → the first value of its gradient that is not finite, '' or None."""
        found = [self._origin(batch, seed, gradient=True) for batch, seed in zip(batches, seeds, strict=True)]
        return dict(zip(self._trainer.shards, found, strict=False))

    def _blamed(self, found: Mapping[int, str | None]) -> int | None:
        """Collective. The first shard of any rank whose gradient alone is not finite; None if there is none, or it cannot be told."""
        total = range(self._sampler.shards)
        told = self._trainer.backend.mean({str(shard): float(bool(found.get(shard))) for shard in total})
        return next((shard for shard in total if told[str(shard)] > 0), None)

    def _origin(self, batch: Any, seed: int, *, gradient: bool) -> str | None:
        """Return what was not finite first; None if that cannot be known."""
        try:
            return self._trainer.backend.origin(batch, seed, gradient=gradient)
        except Exception as error:  # noqa: BLE001  no memory for it, a loss with a state of its own: the run ends anyway
            print(f"dtrain: looking for the first value that is not finite failed: {error}")
            return None

    def _place(self, step: int, shard: int, found: str | None = None) -> str:
        """Where a shard was computed, and of what."""
        first = f", first in {found}" if found else ""
        return f"rank {shard // len(self._trainer.shards)}, shard {shard} ({self._samples(step, shard)}{first})"

    def _samples(self, step: int, shard: int) -> str:
        sampler = self._sampler
        (count,) = sampler.sizes(range(shard, shard + 1))
        indices = sampler.indices(sampler.begin(step, shard), count).tolist()
        what = "samples of the stream" if sampler.size == UNKNOWN_SIZE else "samples"
        more = f" … {count} in all" if count > MOST_SAMPLES else ""
        return f"{what} {', '.join(map(str, indices[:MOST_SAMPLES]))}{more}"

    # --- deciding before the optimizer steps ---

    def _judge(self, seen: StepSeen) -> bool:
        wrong = next((shard for shard, loss in enumerate(seen.losses) if not math.isfinite(loss)), None)
        if seen.scale > LEAST_SCALE and (wrong is None or self._train.on_nonfinite == "ignore"):
            return self._rescaled(seen.scale)
        if wrong is not None:
            loss = seen.losses[wrong]
            return self._answer("loss", loss, f"the loss is {loss} on {self._place(self._step, wrong)}", wrong)
        if not math.isfinite(seen.norm):
            if self._train.on_nonfinite == "stop":
                raise NonFiniteGradient(seen.norm)
            blamed = self._blamed(self._origins(self._batches, self._seeds))
            place = "with finite losses" if blamed is None else f"from {self._place(self._step, blamed)}"
            return self._answer("gradient", seen.norm, f"the norm of the gradient is {seen.norm}, {place}", blamed)
        loss = math.fsum(seen.losses) / len(seen.losses)
        if jump := self._jump("the loss", loss, self._losses):
            highest = max(range(len(seen.losses)), key=seen.losses.__getitem__)
            text = f"{jump}, highest on {self._place(self._step, highest)}"
            return self._answer("loss", loss, text, highest, spike=True)
        if jump := self._jump("the norm of the gradient", seen.norm, self._norms):
            return self._answer("gradient", seen.norm, jump, spike=True)
        self._losses.append(loss)
        self._norms.append(seen.norm)
        return True

    def _rescaled(self, scale: float) -> bool:
        """Leave out a step that asks for a lower scale of the loss, which is no fault of the training."""
        self.left_out = LeftOut.NONFINITE
        if self._trainer.rank == 0:
            why = f"the gradient of the loss times {scale:g} overflowed in fp16"
            self._trainer.channel.report(BadStep(step=self._step, why=why, answer=RESCALE, metric="gradient"))
        return False

    def _jump(self, what: str, value: float, last: deque[float]) -> str:
        """In words, if it is one."""
        spike = self._train.spike
        if spike is None or len(last) < spike.window:
            return ""
        median = statistics.median(last)
        if median <= 0 or value <= spike.above * median:
            return ""
        return f"{what}, {value:.4g}, is {value / median:.3g} times the median of the last {spike.window} steps ({median:.4g})"

    def _answer(self, metric: str, value: float, text: str, shard: int | None = None, *, spike: bool = False) -> bool:
        """Do what the recipe wants with a bad step; whether the optimizer steps."""
        then = self._train.spike.then if spike and self._train.spike else self._train.on_nonfinite
        rank = None if shard is None else shard // len(self._trainer.shards)
        if then == "ignore":
            return True
        if then == "stop":
            if (rank or 0) != self._trainer.rank:
                raise AnotherRankFailed(text)
            raise UserError(f"step {self._step}: {text}: {HINT} ({'train.spike' if spike else ANSWERS})")
        self.left_out = LeftOut.NO if then == "warn" else LeftOut.SPIKE if spike else LeftOut.NONFINITE
        if self._trainer.rank == 0:
            known = value if math.isfinite(value) else None
            bad = BadStep(step=self._step, why=text, answer=then, metric=metric, value=known, rank=rank, shard=shard)
            self._trainer.channel.report(bad)
        if then == "rollback":
            raise RollBack
        if then == "skip":
            self._count(text)
        return then == "warn"

    def _count(self, text: str) -> None:
        self._in_a_row += 1
        if self._in_a_row < MOST_IN_A_ROW:
            return
        raise UserError(
            f"{self._in_a_row} steps in a row were left out, the last of them step {self._step}: {text}: this is no matter of single "
            "batches: lower the learning rate, or begin at an earlier checkpoint"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for checkpoints."""
        return {"losses": list(self._losses), "norms": list(self._norms), "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._in_a_row = state["in_a_row"]
