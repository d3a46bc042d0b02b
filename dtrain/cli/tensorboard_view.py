"""`dtrain tensorboard`: TensorBoard on the loopback, on a folder with a link to each run's event files.

A run whose event files are not here (it is kept on remote storage, or has another tracker) gets them from its event log.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dtrain.api.tracker import Tracker
from dtrain.common import installation
from dtrain.common.errors import Exit, UsageError
from dtrain.launch import registry
from dtrain.record import folder
from dtrain.record.folder import RunDir
from dtrain.storage import run_sync
from dtrain.supervisor.beside.tracker_process import MOST_ENTRIES, EntrySource, tracked, tracker_folder

NAME = "tensorboard"
LOOK_SECONDS = 5.0
"""Between two looks for new runs and new events."""


def show(runs: Sequence[RunDir], root: Path, port: int | None) -> int:
    """Serve these runs, or all below `root` and those that come, until Ctrl-C; the exit code of TensorBoard."""
    if importlib.util.find_spec(NAME) is None:
        raise UsageError(f"{NAME} is not installed", f"Install it: {installation.command(NAME)}")
    if not runs and not root.is_dir():
        raise UsageError(f"no runs in {root.absolute()}", "Another folder: --runs or DTRAIN_RUNS.")
    with tempfile.TemporaryDirectory(prefix="dtrain-tensorboard-") as name:
        shown = Shown(Path(name))
        shown.refresh(runs or folder.all_runs(root))
        command = [sys.executable, "-P", "-m", "tensorboard.main", "--logdir", name, "--host", "127.0.0.1"]
        command += ["--port", str(port)] if port is not None else []
        process = subprocess.Popen(command, env={"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ)
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(LOOK_SECONDS)
                shown.refresh(runs or folder.all_runs(root))
        except KeyboardInterrupt:
            return int(Exit.DONE)
        finally:
            process.terminate()
            process.wait()


class Shown:
    """A folder that TensorBoard reads, with a folder or a link for each run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rebuilt: dict[str, _Rebuilt] = {}

    def refresh(self, runs: Sequence[RunDir]) -> None:
        """Add runs that are new, and what is new in those that are rebuilt here."""
        for run in runs:
            place, files = self._path / run.id, tracker_folder(run, NAME)
            if not place.exists() and not is_remote(run) and any(files.glob("*tfevents*")):
                place.symlink_to(files)
            elif not place.is_symlink():
                if run.id not in self._rebuilt:
                    self._rebuilt[run.id] = _Rebuilt(run, place)
                self._rebuilt[run.id].refresh()


def is_remote(run: RunDir) -> bool:
    """Whether the run may have gone on elsewhere: what is written there of its event files is not here."""
    return run.job().storage.url is not None and not run.locked()


class _Rebuilt:
    """Event files that are made here of the event log."""

    def __init__(self, run: RunDir, place: Path) -> None:
        self._run = run
        self._tracker: Tracker = registry.tracker(NAME, {})
        self._tracker.open(tracked(run, run.job(), place))
        self._source = EntrySource(run.events, 0)

    def refresh(self) -> None:
        """Add the entries that are new."""
        run_sync.refresh(self._run)
        while entries := self._source.next(MOST_ENTRIES):
            self._tracker.log(entries)
