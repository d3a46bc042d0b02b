"""Which of several supervisors has a run that is kept on a real S3 endpoint."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_endpoint import S3, endpoint

from dtrain.job.job import Job
from dtrain.record.folder import RunDir
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_sync import RunCopy

NUMBERS = itertools.count()
HERE, ELSEWHERE = Path("here"), Path("elsewhere")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with endpoint(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


@pytest.fixture
def remote(s3: S3, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An empty folder there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"{s3.url}/run-{next(NUMBERS)}", {})


def mark(remote: ObjectStore) -> str:
    holder = run_lease.claimed(remote)
    return holder.mark if holder else ""


def test_of_two_supervisors_that_find_the_same_dead_claim_one_gets_the_run(remote: ObjectStore) -> None:
    dead = run_lease.claim(remote, "dead", HERE)
    assert dead == 1
    assert run_lease.claim(remote, "first", HERE, above=dead) == 2
    assert run_lease.claim(remote, "second", ELSEWHERE, above=dead) is None
    assert mark(remote) == "first"


def test_a_supervisor_that_was_held_up_does_not_undo_the_claim_of_its_successor(remote: ObjectStore) -> None:
    number = run_lease.claim(remote, "old", HERE)
    assert number
    run_lease.claim(remote, "new", ELSEWHERE)
    run_lease.renew(remote, "old", HERE, number)
    assert mark(remote) == "new"


def test_a_living_claim_is_not_taken_over_by_a_machine_whose_clock_is_fast(
    remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_lease.claim(remote, "living", ELSEWHERE)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert not RunCopy(RunDir(tmp_path), remote).claim("me")
    assert mark(remote) == "living"


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_who_reads_a_run_with_a_clock_of_their_own_sees_that_its_supervisor_lives(
    ahead: float, remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.write_job(Job("far", script="far.py", folder=str(tmp_path)))
    number = run_lease.claim(remote, "living", ELSEWHERE)
    assert number
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    RunCopy(run, remote).pull()
    assert run.supervised_elsewhere()
    run_lease.renew(remote, "", ELSEWHERE, number)
    RunCopy(run, remote).pull()
    assert not run.supervised_elsewhere()


def test_a_run_that_was_given_free_is_claimed_with_a_higher_number(remote: ObjectStore, tmp_path: Path) -> None:
    copy = RunCopy(RunDir(tmp_path / "one"), remote)
    assert copy.claim("one")
    copy.release()
    assert copy.holder() is None
    assert RunCopy(RunDir(tmp_path / "two"), remote).claim("two")
    assert run_lease.newest(remote) == 2
