"""Stop requests, and what turns signals and the requests in the run folder into them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType

from dtrain.api.cluster import PreemptionNotice
from dtrain.common.lazy_dataclass import dataclass
from dtrain.record.events import StorageFailed, StorageWorks
from dtrain.record.folder import RunDir
from dtrain.record.inspection import InspectionRequest, parsed_request
from dtrain.record.lock import Lease
from dtrain.record.mailbox import STOP

STOPPED = "stopped by dtrain stop"
"""Why a run stops that a person has stopped so."""
INTERRUPTED = "interrupted"
"""Why a run stops after a Ctrl-C."""
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
"""How long the run folder may fail to answer before a warning."""


class StopMode(Enum):
    """How a run is to stop."""

    NONE = ""
    GRACEFUL = "leave"
    """Save, stop, and be resumable."""
    IMMEDIATE = "now"
    """Stop at once."""


@dataclass(frozen=True)
class StopRequest:
    """Inbox item: a person wants the run to stop."""

    mode: StopMode
    why: str


@dataclass(frozen=True)
class LeaseLost:
    """Inbox item: another supervisor has taken over the run."""

    holder: str


@dataclass(frozen=True)
class FolderTrouble:
    """Inbox item: the run folder does not answer ('' in `problem`: it does again)."""

    problem: str

    @property
    def event(self) -> StorageFailed | StorageWorks:
        """Return the event for the log."""
        return StorageFailed(error=self.problem) if self.problem else StorageWorks(place="the run folder")


Notice = StopRequest | LeaseLost | FolderTrouble | PreemptionNotice | InspectionRequest


@contextmanager
def signal_handlers(put: Callable[[Notice], None]) -> Iterator[None]:
    """Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal ask for a stop; a second Ctrl-C asks for one at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            put(StopRequest(StopMode.GRACEFUL, INTERRUPTED))
        else:
            put(PreemptionNotice(f"told to stop by {signal.Signals(number).name}"))

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup: the run goes on without its terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RunFolderWatcher:
    """Polls the run folder for requests and for the lease, in a thread: a file server that stalls holds up nothing else.

    One failed read ends nothing; a folder that does not answer for long is reported, and the run goes on."""

    def __init__(self, run: RunDir, lease: Lease, put: Callable[[Notice], None]) -> None:
        self._run = run
        self._lease = lease
        self._put = put
        self._over = threading.Event()
        self._failing_since: float | None = None
        self._reported = False
        self._thread = threading.Thread(target=self._watch, name="dtrain-run-folder", daemon=True)

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def stop(self) -> None:
        """Poll no more; does not wait for a read that hangs."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                self._poll()
            except OSError as error:
                self._on_error(error)
            else:
                self._on_answer()

    def _poll(self) -> None:
        """Raises `OSError` if the folder cannot be read."""
        self._lease.beat()
        holder = self._lease.successor()
        if holder is not None:
            self._put(LeaseLost(holder))
            self._over.set()
            return
        for kind, text in self._run.mailbox.take():
            request = stop_request(text) if kind == STOP else parsed_request(text)
            if request:
                self._put(request)

    def _on_error(self, error: OSError) -> None:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if not self._reported and now - self._failing_since > PATIENCE_SECONDS:
            self._reported = True
            self._put(FolderTrouble(f"the run folder {self._run.path} cannot be read: {error.strerror or error}"))

    def _on_answer(self) -> None:
        self._failing_since = None
        if self._reported:
            self._reported = False
            self._put(FolderTrouble(""))


def stop_request(how: str) -> StopRequest:
    """What `dtrain stop` left: `now`, or anything else for a graceful stop."""
    return StopRequest(StopMode.IMMEDIATE if how.strip() == "now" else StopMode.GRACEFUL, STOPPED)
