"""A run on remote storage whose supervisor is held up, and what a third machine must find whatever happened then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from live import PROGRAMS, Live, dtrain, start
from warm import COLD

from dtrain.checkpoint.factory import store_of
from dtrain.record.event_log import read
from dtrain.record.events import AttemptStarted, RunEnded
from dtrain.report.audit import audit
from dtrain.storage import run_sync

RECIPE = str(PROGRAMS / "contract_torch.yaml")
TWO = ("--workers", "2", "--set", "params.pause=0.1", "--set", "recovery.heartbeat_seconds=600")
STEPS = 20


@contextmanager
def started(there: Path, runs: Path) -> Iterator[Live]:
    with start(RECIPE, *TWO, "--set", f"storage.url=file://{there}", runs=runs, **COLD) as live:
        yield live


def resume_elsewhere(there: Path, live: Live, runs: Path) -> None:
    dtrain("resume", f"file://{there}/{live.run.id}", "--set", "params.pause=0", "--runs", str(runs))


def assert_whole_from_a_third_machine(there: Path, live: Live, runs: Path) -> None:
    """See `assert_whole_at`."""
    assert_whole_at(f"file://{there}/{live.run.id}", runs)


def assert_whole_at(url: str, runs: Path) -> None:
    """The log tells of one end, attempts have numbers of their own, every sample was trained once, the last checkpoint loads."""
    run = run_sync.find(runs, url)
    history = read(run.events)
    assert [event.exit_code for event in history if isinstance(event, RunEnded)] == [0]
    numbers = [event.attempt for event in history if isinstance(event, AttemptStarted)]
    assert numbers == sorted(set(numbers))
    assert max(store_of(run, run.job()).steps()) == STEPS
    store_of(run, run.job()).verified(STEPS)
    found = audit(run)
    assert found
    assert found.clean, found.problems
