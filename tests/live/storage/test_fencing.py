"""A supervisor that is held up while another one takes over its run on remote storage writes nothing there afterwards.

The other machine is another folder of runs; the silence of a minute is made by ageing the claim there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, process_tree, silence, start, suspended, wait_for

from dtrain.checkpoint.factory import store_of
from dtrain.record.event_log import read
from dtrain.record.events import AttemptStarted, RunEnded
from dtrain.report.audit import audit
from dtrain.storage import run_sync

RECIPE = str(PROGRAMS / "contract_torch.yaml")
TWO = ("--workers", "2", "--set", "params.pause=0.1", "--set", "recovery.heartbeat_seconds=600")
STEPS = 20


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


@contextmanager
def started(there: Path, runs: Path) -> Iterator[Live]:
    with start(RECIPE, *TWO, "--set", f"storage.url=file://{there}", runs=runs) as live:
        yield live


def resume_elsewhere(there: Path, live: Live, runs: Path) -> None:
    dtrain("resume", f"file://{there}/{live.run.id}", "--set", "params.pause=0", "--runs", str(runs))


def assert_whole_from_a_third_machine(there: Path, live: Live, runs: Path) -> None:
    """The log tells of one end, attempts have numbers of their own, every sample was trained once, the last checkpoint loads."""
    run = run_sync.find(runs, f"file://{there}/{live.run.id}")
    history = read(run.events)
    assert [event.exit_code for event in history if isinstance(event, RunEnded)] == [0]
    numbers = [event.attempt for event in history if isinstance(event, AttemptStarted)]
    assert numbers == sorted(set(numbers))
    assert max(store_of(run, run.job()).steps()) == STEPS
    store_of(run, run.job()).verified(STEPS)
    found = audit(run)
    assert found
    assert found.clean, found.problems


def events_there(there: Path, live: Live) -> dict[str, bytes]:
    folder = there / live.run.id / "events.jsonl"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_that_wakes_after_its_successors_end_leaves_everything_as_it_is(there: Path, tmp_path: Path) -> None:
    with started(there, tmp_path / "one") as live:
        live.wait_event("checkpoint_saved", step=5)
        live.wait_step(7)
        with suspended(process_tree(live.process.pid)):
            silence(there / live.run.id / "supervisors")
            resume_elsewhere(there, live, tmp_path / "two")
            before = events_there(there, live)
        out = live.finish(code=3)
    assert "another supervisor has taken over" in out
    assert events_there(there, live) == before
    assert_whole_from_a_third_machine(there, live, tmp_path / "three")


def test_workers_of_a_lost_attempt_that_train_on_never_touch_the_checkpoints_of_the_next(
    there: Path, tmp_path: Path
) -> None:
    """The supervisor alone stands still, just after it began an attempt that nobody elsewhere has heard of."""
    with started(there, tmp_path / "one") as live:
        live.wait_event("checkpoint_saved", step=5)
        live.kill(1)
        live.wait_event("workers_started", attempt=2)
        live.see()
        with suspended({live.process.pid}):
            silence(there / live.run.id / "supervisors")
            resume_elsewhere(there, live, tmp_path / "two")
            live.wait_step(STEPS, attempt=2)
            time.sleep(1.0)
        live.finish(code=3)
    assert_whole_from_a_third_machine(there, live, tmp_path / "three")


def test_one_that_wakes_while_its_successor_trains_does_not_disturb_it(there: Path, tmp_path: Path) -> None:
    with started(there, tmp_path / "one") as live, ExitStack() as later:
        live.wait_event("checkpoint_saved", step=5)
        with suspended(process_tree(live.process.pid)):
            silence(there / live.run.id / "supervisors")
            url = f"file://{there}/{live.run.id}"
            second = later.enter_context(start(url, command="resume", runs=tmp_path / "two"))
            wait_for((tmp_path / "two" / live.run.id / "job.json").exists, "its folder")
            second.wait_event("checkpoint_saved", step=10)
        live.finish(code=3)
        second.finish()
    assert_whole_from_a_third_machine(there, live, tmp_path / "three")
