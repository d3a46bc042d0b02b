"""Sends the agent's heartbeats from a thread that touches no file, so that a file server that stalls loses no node."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dtrain.api.protocol import Heartbeat


class Pulse:
    """Repeats the newest heartbeat; the agent's loop, which looks at files, renews it when it can."""

    def __init__(self, send: Callable[[Heartbeat], None], seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._newest = Heartbeat(0)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def renew(self, heartbeat: Heartbeat) -> None:
        """What to send from now on."""
        self._newest = heartbeat

    def stop(self) -> None:
        """Beat no more."""
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._seconds):
            self._send(self._newest)
