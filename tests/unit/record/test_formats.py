"""What a newer version of dtrain wrote is refused in one sentence; `ps`, `logs` and `rm` need no job at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dtrain.api.protocol import AgentReady
from dtrain.checkpoint import memory_record
from dtrain.checkpoint.memory_record import MemoryRecord, RecordFile
from dtrain.cli.app import app
from dtrain.common.errors import DtrainError, NewerFormat
from dtrain.job.job import Job, PluginChoice
from dtrain.launch import planner
from dtrain.record.event_log import EventLog, read
from dtrain.record.events import RunEnded, RunStarted
from dtrain.record.folder import RunDir, create
from dtrain.record.lock import Lease, locked
from dtrain.storage import run_lease
from dtrain.storage.object_store import ObjectStore
from dtrain.supervisor.nodes.pool import node_problem


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One that has ended well."""
    job = Job("a-run", script="x.py", folder=str(tmp_path), strategy=PluginChoice("script"))
    run = create(tmp_path / "runs", job)
    log = EventLog(run.events)
    log.add(
        RunStarted(run=run.id, target="x.py", strategy="script", cluster="local", workers=1, nodes=1, kind="script")
    )
    log.add(RunEnded(exit_code=0, reason="finished"))
    log.close()
    run.rank_log(0).write_text("a line of the worker's\n")
    return run


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99, "new": 1}))


def test_a_job_of_a_newer_version_is_refused_and_an_old_one_read(run: RunDir) -> None:
    written = json.loads(run.job_file.read_text())
    assert written["format"] == 2
    run.job_file.write_text(json.dumps({name: value for name, value in written.items() if name != "format"}))
    assert run.job().name == "a-run"
    newer(run.job_file)
    with pytest.raises(NewerFormat, match=r"job.json has the format 99, and this dtrain reads up to 2") as caught:
        run.job()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("was", "answer"), [(True, "stop"), (False, "ignore")])
def test_a_job_with_a_key_of_a_former_name_is_read(*, was: bool, answer: str, run: RunDir) -> None:
    written = json.loads(run.job_file.read_text())
    del written["format"], written["train"]["on_nonfinite"]
    written["train"]["terminate_on_nan"] = was
    run.job_file.write_text(json.dumps(written))
    assert run.job().train.on_nonfinite == answer


def test_an_event_log_of_a_newer_version_is_refused(run: RunDir) -> None:
    log = EventLog(run.events)
    started = RunStarted(run=run.id, target="x.py", strategy="script", cluster="local", workers=1, nodes=1, format=3)
    log.add(started)
    log.close()
    with pytest.raises(NewerFormat, match=r"events.jsonl has the format 3"):
        read(run.events)


def test_claims_of_a_newer_version_are_refused(run: RunDir, tmp_path: Path) -> None:
    with run.lock() as lease:
        (run.claims / f"{lease.number + 1:08d}").write_text("process 1 elsewhere\nboot\n3\n")
    with pytest.raises(NewerFormat), locked(run.lock_file, run.id):
        raise AssertionError
    store = ObjectStore(f"file://{tmp_path}/there", {})
    store.write("supervisors/00000001", json.dumps({"mark": "x", "place": "", "format": 3, "new": 1}).encode())
    with pytest.raises(NewerFormat, match="supervisors/00000001"):
        run_lease.take(store, Lease(Path("claims"), 1, "own"))


def test_the_boot_in_a_claim_is_known_whatever_version_wrote_it(run: RunDir) -> None:
    for text in ("process 1 elsewhere\na-boot\n", "process 1 elsewhere\na-boot\n2\n"):
        for claim in run.claims.glob("*"):
            claim.unlink()
        run.claims.mkdir(exist_ok=True)
        (run.claims / "00000001").write_text(text)
        with run.lock() as lease:
            assert lease.before
            assert (lease.before.mark, lease.before.boot) == ("process 1 elsewhere", "a-boot")


def test_a_record_of_an_in_memory_checkpoint_of_another_version_is_none() -> None:
    for number, found in ((memory_record.FORMAT, True), (memory_record.FORMAT + 1, False)):
        file = RecordFile()
        file.complete(MemoryRecord(3, 0, "x", format=number), {})
        assert bool(memory_record.read(file.fd)) == found
        file.close()


def test_an_agent_of_another_version_is_refused(run: RunDir) -> None:
    ready = AgentReady("host", "127.0.0.1", 1, 0, 1, sees_run=True, format=3)
    problem = node_problem(planner.make(run.job()), run, ready, None)
    assert problem
    assert "format 3" in str(problem)


@pytest.mark.parametrize("spoil", [newer, Path.unlink, lambda path: path.write_text('{"name": [')])
def test_listing_logs_and_removing_need_no_job(spoil: Callable[[Path], object], run: RunDir) -> None:
    spoil(run.job_file)
    runs = ("--runs", str(run.path.parent))
    listed = invoked("ps", *runs)
    assert run.id in listed
    assert "done" in listed
    assert "a line of the worker's" in invoked("logs", run.id, *runs)
    assert "removed" in invoked("rm", run.id, "--yes", *runs)
    assert not run.path.exists()


def test_what_needs_the_job_says_why_it_cannot_be_read(run: RunDir) -> None:
    newer(run.job_file)
    result = CliRunner().invoke(app, ["resume", run.id, "--runs", str(run.path.parent)])
    assert isinstance(result.exception, DtrainError)
    assert "has the format 99" in result.exception.message


def invoked(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output
