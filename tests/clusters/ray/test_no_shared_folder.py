"""A Ray cluster whose nodes see nothing of the user's machine: code is sent along, and the run is kept on S3."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, Live, debugged, dtrain, finished, start, wait_for
from ray_lab import RayLab, hiding_refused, ray_missing
from s3_endpoint import S3, endpoint

from dtrain.record import sample_ledger
from dtrain.record.folder import RunDir, all_runs

MISSING = ray_missing() or hiding_refused()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
FOUR = ("--workers", "4", "--nodes", "2", "--set", "recovery.provision_seconds=60")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is on the user's machine alone: a project and its runs."""
    home = tmp_path_factory.mktemp("home")
    (home / "project").mkdir()
    for name in ("contract_torch.yaml", "tiny_mlp.py"):
        shutil.copy(PROGRAMS / name, home / "project" / name)
    return home


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with endpoint(tmp_path_factory.mktemp("s3")) as s3:
        yield s3


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[RayLab]:
    with RayLab.start(nodes=3, cpus=2, gpus=0, hidden=home) as lab:
        yield lab


@pytest.fixture(scope="module")
def local(home: Path) -> Live:
    """The same run on the user's machine."""
    return finished(str(home / "project/contract_torch.yaml"), *FOUR, runs=home / "local")


def kept_on(s3: S3) -> tuple[str, ...]:
    variables = json.dumps(s3.environment)
    return ("--cluster", "ray", "--set", f"storage.url={s3.url}", "--set", f"cluster.runtime_env.env_vars={variables}")


def on(lab: RayLab, s3: S3) -> dict[str, Any]:
    return lab.environment | s3.environment | {"RAY_API_SERVER_ADDRESS": lab.jobs_address}


def private_folders() -> set[Path]:
    """Run folders of nodes that do not see the real one."""
    return set(Path("/tmp").glob("dtrain-*/*/*"))


def assert_as_local(live: Live, local: Live) -> None:
    assert live.weights() == local.weights()
    assert live.losses() == local.losses()
    live.assert_clean_audit(steps=20)


def test_a_run_folder_that_the_nodes_do_not_see_is_said_at_the_start(lab: RayLab, s3: S3, home: Path) -> None:
    recipe = str(home / "project/contract_torch.yaml")
    with start(recipe, *FOUR, "--cluster", "ray", runs=home / "runs0", **on(lab, s3)) as live:
        out = live.finish(code=3)
    assert "does not see the run folder" in out
    assert "storage.url" in out
    assert not live.events("attempt_started")


def test_a_killed_worker_and_agent_cost_nothing_where_nothing_is_shared(
    lab: RayLab, s3: S3, home: Path, local: Live
) -> None:
    recipe, before = str(home / "project/contract_torch.yaml"), private_folders()
    slow = ("--set", "params.pause=0.1")
    with start(recipe, *FOUR, *slow, *kept_on(s3), runs=home / "project/runs", **on(lab, s3)) as live:
        live.wait_event("checkpoint_saved", step=5)
        live.kill(3)
        live.wait_event("checkpoint_saved", attempt=2)  # one of before the kill may be committed after it
        os.kill(int(live.events("node_ready")[0]["pid"]), signal.SIGKILL)
        live.finish()
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed", "node lost"]
    assert live.events("attempt_started")[-1]["checkpoint"]
    assert_as_local(live, local)
    for rank in range(4):
        assert "--- dtrain: attempt 3" in live.output(rank)
        assert sample_ledger.last_step(live.run.ledger(3, rank)) == 20
    assert private_folders() <= before
    status = dtrain("status", f"{s3.url}/{live.run.id}", "--runs", str(home / "elsewhere"), **on(lab, s3)).stdout
    assert "done" in status
    assert live.weights()[:16] in status


def test_a_profile_of_a_node_that_sees_nothing_comes_to_the_run_folder_and_a_debugger_reaches_it(
    lab: RayLab, s3: S3, home: Path
) -> None:
    slow = ("--set", "params.pause=0.05", "--set", "train.steps=10000")
    recipe = str(home / "project/contract_torch.yaml")
    with start(recipe, *FOUR, *slow, *kept_on(s3), runs=home / "profiled", **on(lab, s3)) as live:
        live.wait_event("checkpoint_saved")
        (found,) = json.loads(dtrain("profile", str(live.run.path), "--rank", "3", "--steps", "2", "--json").stdout)
        (path,) = live.run.path.glob(f"{found['file']}*.gz")
        with gzip.open(path) as file:
            assert json.load(file)["traceEvents"]
        out, _ = debugged(live.run, "p total_steps\nq\n", "--rank", "3")
        assert "(rank 3) p total_steps\n10000\n" in out
        shown = dtrain("logs", str(live.run.path), "--since", "1h").stdout
        assert "rank 3 | --- dtrain: attempt 1" in shown
        dtrain("stop", str(live.run.path), "--now")
        live.finish(code=4)


def test_a_submitted_run_is_watched_stopped_and_resumed_from_afar(lab: RayLab, s3: S3, home: Path, local: Live) -> None:
    runs = ("--runs", str(home / "far"))
    recipe = str(home / "project/contract_torch.yaml")
    dtrain("submit", recipe, *FOUR, "--set", "params.pause=2", *kept_on(s3), *runs, **on(lab, s3))
    (run,) = all_runs(home / "far")
    jobs = json.loads(urllib.request.urlopen(f"{lab.jobs_address}/api/jobs/").read())
    shown = json.dumps([job for job in jobs if (job["submission_id"] or "").startswith(run.id)])
    assert run.id in shown
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in shown
    assert "tiny_mlp" not in shown, "the recipe may hold secrets, too"
    state = wait_for(lambda: _state(run, lab, s3, "checkpoint"), "a checkpoint as it is seen from afar")
    assert state["outcome"] == "running"
    assert "saved at step" in dtrain("stop", "last", *runs, **on(lab, s3)).stdout
    assert "stopped" in dtrain("ps", *runs, **on(lab, s3)).stdout
    assert "rank 3 | --- dtrain: attempt 1" in dtrain("logs", "last", *runs, **on(lab, s3)).stdout
    dtrain("resume", "last", "--detach", "--set", "params.pause=0", *runs, **on(lab, s3))
    wait_for(lambda: _state(run, lab, s3, "done"), "its end")
    live = Live(None, home / "far", set())  # type: ignore[arg-type]
    assert_as_local(live, local)
    assert "0 twice, 0 skipped" in dtrain("audit", "last", *runs, **on(lab, s3)).stdout


def _state(run: RunDir, lab: RayLab, s3: S3, wanted: str) -> dict[str, Any] | None:
    text = dtrain("status", "--json", run.id, "--runs", str(run.path.parent), **on(lab, s3)).stdout
    state: dict[str, Any] = json.loads(text)
    assert state["phase"] != "lost", state
    return state if (state["saved_step"] if wanted == "checkpoint" else state["outcome"] == wanted) else None
