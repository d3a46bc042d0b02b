"""Decides what follows from a failure. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass
from dtrain.job.failure_kinds import Failure, FailureKind
from dtrain.job.job import Recovery


@dataclass(frozen=True)
class Decision:
    """The answer to a failure."""

    retry: bool
    reason: str
    exit_code: Exit = Exit.DONE
    """Of the run, if it is not tried again."""
    delay_seconds: float = 0.0


EQUAL_BEFORE = {FailureKind.KILLED: 2}
"""How often an equal failure may have struck before; a kill comes from outside and may be chance twice. 1 if not named."""
NOT_COUNTED = (FailureKind.NODE_LOST, FailureKind.PREEMPTED)
OF_ALLOCATOR = re.compile(r"(CUDA|HIP) out of memory")
FRAGMENTS = (
    "; if much of the GPU's memory is reserved and not allocated, set PYTORCH_ALLOC_CONF=expandable_segments:True "
    "(before PyTorch 2.9 PYTORCH_CUDA_ALLOC_CONF)"
)
"""Advice for PyTorch's allocator."""
LOSSES_PER_RESTART = 4


def decide(failures: Sequence[Failure], settings: Recovery) -> Decision:
    """Pure. The answer to the last of these failures, in the light of all before it."""
    last = failures[-1]
    stretch = [failure for failure in failures if failure.saved_step == last.saved_step]
    equal = [failure for failure in stretch[:-1] if last.fingerprint and failure.fingerprint == last.fingerprint]
    if last.kind is FailureKind.SETUP:
        return Decision(retry=False, reason="it would be the same again", exit_code=Exit(last.exit_code))
    if last.kind is FailureKind.BUG:
        return Decision(retry=False, reason="an error in the user's code is not retried", exit_code=Exit.USER_CODE)
    if last.kind is FailureKind.OUT_OF_MEMORY:
        hint = "lower train.global_batch, bound the samples of a pass with train.micro_batch, or use more workers"
        hint += FRAGMENTS if OF_ALLOCATOR.search(last.message) else ""
        return Decision(retry=False, reason=f"out of memory would strike again: {hint}", exit_code=Exit.USER_CODE)
    if len(equal) >= EQUAL_BEFORE.get(last.kind, 1):
        code = Exit(last.exit_code) if last.kind is FailureKind.TRANSIENT else Exit.GAVE_UP
        return Decision(
            retry=False,
            reason=f"the same failure struck {_times(len(equal) + 1)} with no new checkpoint in between",
            exit_code=code,
        )
    if last.kind in NOT_COUNTED:
        return _after_loss(stretch, settings)
    spent = sum(failure.kind not in NOT_COUNTED for failure in stretch)
    if spent > settings.restarts:
        return Decision(
            retry=False,
            reason=f"{spent} failures without a new checkpoint (recovery.restarts: {settings.restarts})",
            exit_code=Exit.GAVE_UP,
        )
    delay = 0.0 if spent == 1 else settings.backoff_seconds * 2.0 ** (spent - 2)
    return Decision(
        retry=True, reason=f"restart {spent} of {settings.restarts} since the last progress", delay_seconds=delay
    )


def _times(number: int) -> str:
    return {2: "twice", 3: "three times"}.get(number, f"{number} times")


def _after_loss(stretch: Sequence[Failure], settings: Recovery) -> Decision:
    losses = sum(failure.kind in NOT_COUNTED for failure in stretch)
    if losses > LOSSES_PER_RESTART * (settings.restarts + 1):
        return Decision(
            retry=False, reason=f"{losses} nodes were lost without a new checkpoint in between", exit_code=Exit.GAVE_UP
        )
    delay = 0.0 if losses == 1 else settings.backoff_seconds * min(losses - 1, 30)
    return Decision(retry=True, reason="a lost node does not count as a failure of the run", delay_seconds=delay)


RANKING = (
    # A cause from outside explains whatever the others report; an abort can be the answer to a broken connection.
    FailureKind.NODE_LOST,
    FailureKind.DEVICE,
    FailureKind.KILLED,
    FailureKind.OUT_OF_MEMORY,
    FailureKind.SETUP,
    FailureKind.BUG,
    FailureKind.CRASH,
    FailureKind.HANG,
    FailureKind.TRANSIENT,
    FailureKind.PREEMPTED,
    FailureKind.CASCADE,
)


def cause(candidates: Sequence[Failure]) -> Failure:
    """Pure. The initiator among the failures of one attempt, given in the order they were noticed."""
    return min(candidates, key=lambda failure: RANKING.index(failure.kind))


def conclusive(failure: Failure) -> bool:
    """Pure. Whether this failure is a cause by itself, so that there is no need to wait for other workers' reports."""
    return failure.kind in (
        FailureKind.KILLED,
        FailureKind.HANG,
        FailureKind.OUT_OF_MEMORY,
        FailureKind.NODE_LOST,
    )
