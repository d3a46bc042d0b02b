"""Sends the agent's heartbeats from a thread that touches no file, so that a file server that stalls loses no node."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dtrain.api.protocol import Heartbeat

REPEATED = 1.5
"""Heartbeats after which the newest one is repeated if nobody renewed it."""


class Pulse:
    """Repeats the newest heartbeat; the agent's loop, which looks at files, renews it when it can."""

    def __init__(self, send: Callable[[Heartbeat], None], seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._newest = Heartbeat(0)
        self._over = False
        self._renewed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def renew(self, heartbeat: Heartbeat) -> None:
        """What to send, now and from now on."""
        self._newest = heartbeat
        self._renewed.set()

    def stop(self) -> None:
        """Beat no more."""
        self._over = True
        self._renewed.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            self._renewed.wait(REPEATED * self._seconds)
            self._renewed.clear()
            if self._over:
                return
            self._send(self._newest)
