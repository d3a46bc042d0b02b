"""The events of what goes wrong in the training, and what follows; the others are in `dtrain.record.events`."""

from __future__ import annotations

from dataclasses import field

from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.event import AttemptEvent, Event

RESCALE = "rescale"
"""Answer to a gradient that overflowed in fp16: the step is left out and the loss scaled less. Nothing failed."""


@dataclass(frozen=True, kw_only=True)
class BadStep(AttemptEvent):
    """The loss or the gradient of a step was not finite, or jumped, and the run goes on (`train.on_nonfinite`, `train.spike`,
    `precision: fp16`)."""

    step: int
    """Counted from 0."""
    why: str
    """What was found, and where."""
    answer: str
    """`skip`, `rollback`, `warn` or `rescale`."""
    metric: str = ""
    """`loss` or `gradient`."""
    value: float | None = None
    """None if it is not finite."""
    rank: int | None = None
    """Rank whose loss it was; None if that is not known."""
    shard: int | None = None

    @property
    def left_out(self) -> bool:
        """Whether the run goes on without this step's batch."""
        return self.answer in ("skip", "rollback", RESCALE)


@dataclass(frozen=True, kw_only=True)
class FailureOccurred(AttemptEvent, was="failure"):
    """An attempt failed; this is the cause."""

    kind: str
    """Value of a `dtrain.job.failure_kinds.FailureKind`."""
    message: str
    rank: int | None = None
    node: str = ""
    step: int | None = None
    where: str = ""
    traceback: str = ""
    code: int = 1
    saved_step: int = 0
    same: tuple[int, ...] = ()
    """Other ranks that reported the same error."""
    others: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Other reports → ranks that sent them."""
    log_tail: str = ""
    """The last lines of this rank's log, without the traceback."""


@dataclass(frozen=True, kw_only=True)
class DecisionMade(Event, was="decision"):
    """The failure policy's answer to a failure."""

    retry: bool
    reason: str
    delay_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class HangDetected(AttemptEvent, was="hang"):
    """Nothing moves; the stacks of all ranks go to their logs."""

    rank: int
    steps: dict[str, int | None] = field(default_factory=dict)
