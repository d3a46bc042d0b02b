"""The requests that people leave for a run's supervisor: a folder with a file for each, so that none takes the place of another."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from dtrain.common.files import PRIVATE_FILE, PRIVATE_FOLDER, write_whole
from dtrain.common.lazy_dataclass import dataclass

STOP = "stop"
"""To stop; the text is `leave` or `now`."""
INSPECT = "inspect"
"""To look into the workers; the text is that of `dtrain.record.inspection.request_text`."""


@dataclass(frozen=True)
class Mailbox:
    """A folder in the run folder, which is there once somebody asked for something."""

    path: Path

    def post(self, kind: str, text: str) -> None:
        """Leave a request; the supervisor reads all of it or nothing."""
        self.path.mkdir(PRIVATE_FOLDER, exist_ok=True)
        write_whole(self.path / f"{kind}-{secrets.token_hex(8)}", text, PRIVATE_FILE)

    def take(self) -> list[tuple[str, str]]:
        """Remove the requests and return the kind and the text of each, the oldest first. Raises `OSError`."""
        found = []
        for path in self._waiting():
            found.append((path.name.partition("-")[0], path.read_text()))
            path.unlink()
        return found

    def forget_before(self, moment: float) -> None:
        """Drop the requests that are older, by the clock of the run folder's file system."""
        for path in self._waiting():
            if path.stat().st_mtime < moment:
                path.unlink()

    def _waiting(self) -> list[Path]:
        with suppress(FileNotFoundError):
            return sorted(self.path.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
        return []
