"""Which of several supervisors has a run that is kept on a real S3 endpoint."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_endpoint import S3, endpoint

from dtrain.common.processes import boot_id
from dtrain.job.job import Job
from dtrain.record.folder import RunDir
from dtrain.record.lock import Lease, LeaseTaken, Predecessor
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_copy import RunCopy
from dtrain.storage.run_lease import RunClaim

NUMBERS = itertools.count()


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


def lease(mark: str, before: str = "", boot: str = boot_id()) -> Lease:
    return Lease(Path("claims"), 1, mark, before=Predecessor(before, boot) if before else None)


def taken(remote: ObjectStore, mark: str, before: str = "") -> RunClaim:
    claim = run_lease.take(remote, lease(mark, before))
    assert claim
    return claim


def holder(remote: ObjectStore) -> str:
    found = run_lease.claimed(remote)
    return found.mark if found else ""


def silence(remote: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest claim has not been renewed for long."""
    monkeypatch.setattr(run_lease, "age_seconds", lambda _: 3600.0)


def test_of_many_supervisors_that_find_the_same_dead_claim_one_gets_the_run(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(remote, "dead")
    silence(remote, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: run_lease.take(remote, lease(f"supervisor {number}")), range(8)))
    claims = [claim for claim in found if claim]
    numbers = [claim.number for claim in claims]
    assert sorted(numbers) == list(range(2, 2 + len(claims))), "each number once"
    for claim in claims:
        if claim.number == max(numbers):
            claim.check()
        else:
            with pytest.raises(LeaseTaken):
                claim.check()


Deed = Callable[[RunClaim], object]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("deed", [lambda claim: None, RunClaim.renew, RunClaim.release], ids=["-", "renew", "release"])
def test_one_that_was_held_up_is_lost_for_good_whatever_became_of_its_successor(
    deed: Deed, *, ended: bool, remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = taken(remote, "old")
    silence(remote, monkeypatch)
    new = taken(remote, "new")
    if ended:
        new.release()
    old._renew_at = 0.0
    deed(old)
    with pytest.raises(LeaseTaken, match="another process" if ended else "new"):
        old.check()
    new.check()
    assert holder(remote) == ("" if ended else "new")


def test_a_living_claim_is_not_taken_over_by_a_machine_whose_clock_is_fast(
    remote: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(remote, "living")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert run_lease.take(remote, lease("me")) is None
    assert holder(remote) == "living"


def test_only_who_has_the_dead_ones_lock_on_the_same_boot_need_not_wait(remote: ObjectStore) -> None:
    """Equal host names and paths say nothing: pods and cloned machines have them, too."""
    taken(remote, "dead")
    assert run_lease.take(remote, lease("elsewhere", before="another")) is None
    assert taken(remote, "here", before="dead").number == 2
    assert run_lease.take(remote, lease("clone", before="here", boot="another")) is None
    assert boot_id()


def test_a_claim_that_is_cut_short_is_somebodys(remote: ObjectStore) -> None:
    for text in (b"", b"{", b"[]", b'{"mark": 3, "colour": 1}'):
        remote.write("supervisors/00000007", text)
        assert run_lease.take(remote, lease("me")) is None


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_who_reads_a_run_with_a_clock_of_their_own_sees_that_its_supervisor_lives(
    ahead: float, remote: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    run.write_job(Job("far", script="far.py", folder=str(tmp_path)))
    claim = taken(remote, "living")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    RunCopy(run, remote).pull()
    assert run.supervised_elsewhere()
    claim.release()
    RunCopy(run, remote).pull()
    assert not run.supervised_elsewhere()


def test_a_run_that_was_given_free_is_claimed_with_a_higher_number(remote: ObjectStore) -> None:
    taken(remote, "one").release()
    assert holder(remote) == ""
    assert taken(remote, "two").number == 2


def test_what_is_made_once_has_one_maker_who_may_ask_twice(remote: ObjectStore) -> None:
    assert remote.create("x", b"one")
    assert not remote.create("x", b"two")
    assert remote.create("x", b"one"), "as a library does that has lost the first answer"
    assert remote.read("x") == b"one"
