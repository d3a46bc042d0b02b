"""What people and signals ask of a supervisor."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from dtrain.api.cluster import Inbox, PreemptionNotice


class StopMode(Enum):
    """What somebody asked the supervisor to do."""

    NONE = ""
    GRACEFUL = "leave"
    """Save, stop, and be resumable."""
    IMMEDIATE = "now"
    """Stop at once."""


@contextmanager
def signal_handlers(inbox: Inbox) -> Iterator[None]:
    """Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal ask for a stop; a second Ctrl-C for one at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        inbox.put(
            (
                "",
                StopMode.GRACEFUL
                if number == signal.SIGINT
                else PreemptionNotice(f"told to stop by {signal.Signals(number).name}"),
            )
        )

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
