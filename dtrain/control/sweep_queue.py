"""A sweep with a limit: submits its runs one after another as earlier ones end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import field

from dtrain.common.errors import Exit
from dtrain.common.lazy_dataclass import dataclass
from dtrain.control import start
from dtrain.control.state import goes_on, state_of
from dtrain.record.folder import RunDir, Submitted

POLL_SECONDS = 1.0


@dataclass
class SweepQueue:
    """Runs the members of a sweep, `at_most` at once."""

    waiting: list[Callable[[], RunDir]]
    at_most: int
    started: list[RunDir] = field(default_factory=list)
    active: list[RunDir] = field(default_factory=list)

    def run(self, on_submitted: Callable[[RunDir, Submitted], None]) -> int:
        """Run all members; returns the first exit code that is not 0. After a KeyboardInterrupt no more are started."""
        while self.waiting or self.active:
            while self.waiting and len(self.active) < self.at_most:
                member = self.waiting.pop(0)()
                on_submitted(member, start.submit(member))
                self.started.append(member)
                self.active.append(member)
            time.sleep(POLL_SECONDS)
            self.active = [one for one in self.active if goes_on(one)]
        return _first_failure([state_of(one).exit_code for one in self.started])


def _first_failure(codes: Sequence[int | None]) -> int:
    return next(
        (code if code is not None else int(Exit.GAVE_UP) for code in codes if code != Exit.DONE), int(Exit.DONE)
    )
