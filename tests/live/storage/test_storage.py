"""Runs whose checkpoints and events are on remote storage: a real S3 endpoint, which also fails and lies."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PROGRAMS, Live, assert_attached_until_stopped, attached, dtrain, finished, start
from s3_endpoint import BUCKET, S3, endpoint

from dtrain.record.folder import RunDir
from dtrain.storage.object_store import ObjectStore
from dtrain.storage.run_lease import newest

RECIPE = str(PROGRAMS / "contract_torch.yaml")
TWO = ("--workers", "2")
SLOW = (*TWO, "--set", "params.pause=0.05")
QUICK = '{"config_kwargs": {"connect_timeout": 1, "read_timeout": 1, "retries": {"max_attempts": 0}}}'
IMPATIENT = ("--set", f"storage.options={QUICK}", "--set", "params.pause=0.3")
STEPS = 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with endpoint(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """Without any storage."""
    return finished(RECIPE, *TWO, runs=tmp_path_factory.mktemp("undisturbed"))


def kept_on(s3: S3) -> tuple[str, ...]:
    return ("--set", f"storage.url={s3.url}")


def assert_as_if_nothing_happened(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    live.assert_clean_audit(steps=STEPS)


def on_storage(s3: S3, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The run's folder there."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ObjectStore(f"{s3.url}/{run.id}", {})


def test_killed_workers_go_on_from_what_is_on_s3(s3: S3, tmp_path: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, *kept_on(s3), runs=tmp_path, **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=5)
        live.kill(1)
        live.wait_event("checkpoint_saved", step=10)
        live.kill(0, attempt=2)
        out = live.finish()
    assert s3.url in out
    assert [bool(event["checkpoint"]) for event in live.events("attempt_started")] == [False, True, True]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_run_is_seen_stopped_and_resumed_on_another_machine_by_its_url(
    s3: S3, tmp_path: Path, undisturbed: Live
) -> None:
    """The other machine is another folder of runs, which knows nothing of the first one's lock."""
    slow = (*TWO, "--set", "params.pause=2")
    with start(RECIPE, *slow, *kept_on(s3), runs=tmp_path / "one", **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=5)
        url, other = f"{s3.url}/{live.run.id}", ("--runs", str(tmp_path / "other"))
        status = json.loads(dtrain("status", url, "--json", *other, **s3.environment).stdout)
        assert status["step"] > 0
        seen = json.loads(dtrain("stacks", url, "--json", *other, **s3.environment).stdout)
        assert set(seen["ranks"]) == {"0", "1"}
        assert "its remote storage" in dtrain("top", url, *other, check=2, **s3.environment).stderr
        watching = attached(url, tmp_path / "third", **s3.environment)
        assert "saved at step" in dtrain("stop", url, *other, **s3.environment).stdout
        live.finish(code=4)
    assert_attached_until_stopped(watching)
    assert "saved at step" in dtrain("status", url, *other, **s3.environment).stdout
    dtrain("resume", url, "--set", "params.pause=0", *other, **s3.environment)
    resumed = Live(live.process, tmp_path / "other", set())
    assert len(resumed.events("attempt_started")) == 2
    assert resumed.events("attempt_started")[1]["step"] == live.events("checkpoint_saved")[-1]["step"]
    assert_as_if_nothing_happened(resumed, undisturbed)
    kinds = json.loads(dtrain("report", url, "--json", *other, **s3.environment).stdout)["account"]
    assert kinds["training"] > 0
    assert "0 twice, 0 skipped" in dtrain("audit", url, "--runs", str(tmp_path / "third"), **s3.environment).stdout
    assert url in dtrain("rm", url, "--yes", *other, **s3.environment).stdout
    assert dtrain("status", url, "--runs", str(tmp_path / "fourth"), check=3, **s3.environment).stderr


def test_a_damaged_object_is_set_aside_and_the_checkpoint_before_it_is_used(
    s3: S3, tmp_path: Path, undisturbed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(RECIPE, *SLOW, *kept_on(s3), runs=tmp_path, **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=10)
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)
    remote = on_storage(s3, live.run, monkeypatch)
    last = max(name for name in remote.sizes("checkpoints") if name.endswith(".safetensors"))
    data = bytearray(remote.read(last) or b"")
    data[len(data) // 2] ^= 1
    remote.write(last, bytes(data))
    out = dtrain("resume", live.run.id, "--runs", str(tmp_path), **s3.environment).stdout
    assert f"a damaged checkpoint was set aside as {last.split('/')[1]}" in out
    assert_as_if_nothing_happened(live, undisturbed)


def test_storage_that_falls_silent_for_a_while_costs_warnings_only(s3: S3, tmp_path: Path, undisturbed: Live) -> None:
    with start(RECIPE, *TWO, *IMPATIENT, *kept_on(s3), runs=tmp_path, **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=5)
        s3.freeze()
        try:
            live.wait_event("checkpoint_failed")
        finally:
            s3.thaw()
        out = live.finish()
    assert "training goes on" in out
    assert live.events("checkpoint_saved")[-1]["step"] == STEPS
    assert not live.events("failure_occurred")
    assert_as_if_nothing_happened(live, undisturbed)
    status = dtrain("status", f"{s3.url}/{live.run.id}", "--runs", str(tmp_path / "other"), **s3.environment).stdout
    assert "done" in status


def test_a_restart_waits_for_storage_that_does_not_answer(s3: S3, tmp_path: Path, undisturbed: Live) -> None:
    with start(RECIPE, *TWO, *IMPATIENT, *kept_on(s3), runs=tmp_path, **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=5)
        s3.freeze()
        try:
            live.kill(1)
            live.wait_event("failure_occurred")
            live.wait_event("storage_failed")
            assert len(live.events("attempt_started")) == 1
        finally:
            s3.thaw()
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_run_whose_last_state_is_nowhere_does_not_end_well(tmp_path: Path) -> None:
    with (
        endpoint(tmp_path) as s3,
        start(RECIPE, *TWO, *IMPATIENT, *kept_on(s3), runs=tmp_path / "runs", **s3.environment) as live,
    ):
        live.wait_event("checkpoint_saved", step=15)
        s3.process.kill()
        out = live.finish(code=3)
    assert "its state could not be saved" in out
    assert "are in" in out


def test_a_second_supervisor_on_another_machine_takes_over_only_from_a_dead_one(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start(RECIPE, *SLOW, "--set", "train.steps=2000", *kept_on(s3), runs=tmp_path, **s3.environment) as live:
        live.wait_event("checkpoint_saved", step=5)
        remote = on_storage(s3, live.run, monkeypatch)
        refused = dtrain("resume", remote.url, "--runs", str(tmp_path / "copy"), check=2, **s3.environment)
        assert "still going on" in refused.stderr
        remote.create(f"supervisors/{newest(remote) + 1:08d}", b'{"mark": "process 1 of elsewhere", "place": "there"}')
        out = live.finish(code=3)
    assert "another supervisor has taken over" in out


@pytest.mark.parametrize(
    ("url", "environment", "code", "words"),
    [
        ("s3://no-such-bucket/runs", {}, 3, "bucket does not exist"),
        (f"s3://{BUCKET}/runs", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 3, "Could not connect"),
        ("nowhere/runs", {}, 2, "is no URL"),
        ("sss://bucket/runs", {}, 2, "no file system 'sss'"),
        ("gs://bucket/runs", {}, 2, "is not installed"),
    ],
)
def test_storage_that_cannot_work_is_said_before_anything_starts(
    url: str, environment: dict[str, str], code: int, words: str, s3: S3, tmp_path: Path
) -> None:
    given = s3.environment | environment
    options = ("--set", f"storage.url={url}", "--set", f"storage.options={QUICK}" if code == 3 else "train.steps=5")
    done = dtrain("run", RECIPE, *TWO, *options, "--runs", str(tmp_path), check=code, **given)
    assert words in done.stderr
    assert not list(tmp_path.glob("*/events.jsonl"))
