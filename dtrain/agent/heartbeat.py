"""Sends the agent's heartbeats from a thread that touches no file, so that a file server that stalls loses no node."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from dtrain.api.protocol import Heartbeat

REPEATED = 1.5
"""Heartbeats after which the newest one is repeated if it was not renewed."""
HELD_UP_SECONDS = 15.0
"""The agent's loop ends everything by itself in this time after its commands have ended."""


class Pulse:
    """Sends the newest heartbeat with its age; the agent's loop, which looks at files, renews it when it can.

    If the commands end while the loop is held up, `on_abandoned` is called: nothing else would end this node's workers."""

    def __init__(
        self, send: Callable[[Heartbeat], None], seconds: float, commands: int, on_abandoned: Callable[[], None]
    ) -> None:
        self._send = send
        self._seconds = seconds
        self._commands = commands
        self._on_abandoned = on_abandoned
        self._newest = Heartbeat(0)
        self._renewed_at = time.monotonic()
        self._closed_at: float | None = None
        self._over = False
        self._renewed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def renew(self, heartbeat: Heartbeat) -> None:
        """Send this one, now and until the next."""
        self._newest, self._renewed_at = heartbeat, time.monotonic()
        self._renewed.set()

    def stop(self) -> None:
        """Stop the thread."""
        self._over = True
        self._renewed.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            renewed = self._renewed.wait(REPEATED * self._seconds)
            self._renewed.clear()
            if self._over:
                return
            age = 0.0 if renewed else round(time.monotonic() - self._renewed_at, 2)
            self._send(replace(self._newest, age_seconds=age))
            self._look_at_commands()

    def _look_at_commands(self) -> None:
        """Whether the supervisor is gone and the loop, which would end everything, does not notice."""
        poll = select.poll()
        poll.register(self._commands, 0)
        if not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0)):
            return
        now = time.monotonic()
        self._closed_at = self._closed_at or now
        if now - max(self._closed_at, self._renewed_at) > HELD_UP_SECONDS:
            self._on_abandoned()
