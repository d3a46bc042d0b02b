"""Runs on a real Ray cluster of three nodes, and what such clusters do to them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documents
import pytest
from live import (
    PROGRAMS,
    Live,
    assert_attached_until_stopped,
    attached,
    debugged,
    dtrain,
    finished,
    process_tree,
    start,
    wait_for,
)
from processes import listening, open_to_others, started_with
from ray_lab import RayLab, ray_missing
from warm import COLD

from dtrain.record import event_log
from dtrain.record.events import AttemptStarted, NodeReady
from dtrain.record.folder import RunDir, all_runs
from dtrain.report.audit import audit
from dtrain.study import folder

pytestmark = pytest.mark.skipif(ray_missing() is not None, reason=str(ray_missing()))
RECIPE = str(PROGRAMS / "contract_torch.yaml")
FOUR = ("--workers", "4", "--nodes", "2", "--set", "recovery.provision_seconds=60")
SLOW = ("--set", "params.pause=0.05")


@pytest.fixture(scope="module")
def lab() -> Iterator[RayLab]:
    with RayLab.start(nodes=3, cpus=2, gpus=2) as lab:
        yield lab


@pytest.fixture
def fresh_lab() -> Iterator[RayLab]:
    """For tests that break it."""
    with RayLab.start(nodes=3, cpus=2, gpus=2) as lab:
        yield lab


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """The same run on this machine."""
    return finished(RECIPE, *FOUR, runs=tmp_path_factory.mktemp("local"))


def on(lab: RayLab) -> dict[str, Any]:
    return lab.environment | {"RAY_API_SERVER_ADDRESS": lab.jobs_address}


def groups(lab: RayLab) -> int:
    """Placement groups that are not removed."""
    listed = lab.call("/api/v0/placement_groups?limit=100")["data"]["result"]["result"]
    return sum(group["state"] != "REMOVED" for group in listed)


def assert_as_local(live: Live, local: Live) -> None:
    assert live.weights() == local.weights()
    assert live.losses() == local.losses()
    live.assert_clean_audit(steps=20)


def test_ddp_on_two_nodes_equals_the_local_run_to_the_last_bit(lab: RayLab, local: Live, tmp_path: Path) -> None:
    with start(RECIPE, *FOUR, "--cluster", "ray", runs=tmp_path, **on(lab)) as live:
        live.finish()
    assert len({event["address"] for event in live.events("node_ready")}) == 2
    assert [event["warnings"] for event in live.events("node_checked")] == [[], []], "both nodes were looked at"
    assert_as_local(live, local)
    wait_for(lambda: groups(lab) == 0, "the placement group's end", 20)


def test_a_killed_worker_and_a_killed_agent_actor_leave_no_trace(lab: RayLab, local: Live, tmp_path: Path) -> None:
    with start(RECIPE, *FOUR, *SLOW, "--cluster", "ray", runs=tmp_path, **on(lab)) as live:
        live.wait_step(6)
        live.kill(3)
        live.wait_step(12, attempt=2)
        agent = int(live.events("node_ready")[0]["pid"])
        actor = int(Path(f"/proc/{agent}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(actor, signal.SIGKILL)
        live.finish()
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed", "node lost"]
    assert_as_local(live, local)
    wait_for(lambda: groups(lab) == 0, "the placement group's end", 20)


def test_an_edit_does_not_reach_a_run_by_a_restart(lab: RayLab, tmp_path: Path) -> None:
    text = "import beside, time\nfor _ in range(600):\n    print('value', beside.VALUE, flush=True)\n    time.sleep(0.02)\n"
    (tmp_path / "train.py").write_text(text)
    (tmp_path / "beside.py").write_text("VALUE = 1\n")
    (tmp_path / "recipe.yaml").write_text("script: train.py\nrecovery: {backoff_seconds: 0}\n")
    with start(str(tmp_path / "recipe.yaml"), *FOUR, "--cluster", "ray", runs=tmp_path / "runs", **on(lab)) as live:
        wait_for(lambda: "value 1" in live.output(3), "the script to begin", 60)
        (tmp_path / "train.py").write_text("this is no Python")
        (tmp_path / "beside.py").write_text("VALUE = 2\n")
        live.kill(3)
        live.finish()
    assert len(live.events("attempt_started")) == 2
    assert {line for line in live.output(3).splitlines() if "value" in line} == {"value 1"}


def test_a_sigterm_has_a_run_save_and_leave(lab: RayLab, tmp_path: Path) -> None:
    """Ray's own handler would end the process at once."""
    with start(RECIPE, *FOUR, *SLOW, "--cluster", "ray", runs=tmp_path, **on(lab)) as live:
        live.wait_step(6)
        live.process.send_signal(signal.SIGTERM)
        assert "saved at step" in live.finish(code=4)


def test_stacks_of_all_nodes_are_seen_while_a_run_goes_on(lab: RayLab, tmp_path: Path) -> None:
    with start(RECIPE, *FOUR, "--set", "params.pause=0.2", "--cluster", "ray", runs=tmp_path, **on(lab)) as live:
        live.wait_step(2)
        found = json.loads(dtrain("stacks", "last", "--json", "--runs", str(tmp_path), **on(lab)).stdout)
        assert set(found["ranks"]) == {"0", "1", "2", "3"}
        assert len({used["node"] for used in found["ranks"].values()}) == 2
        assert any("dtrain/worker/loop.py" in frame for thread in found["threads"] for frame in thread["frames"])
        pids = {int(event["pid"]) for event in live.events("node_ready")}
        pids |= {int(pid) for event in live.events("workers_started") for pid in event["pids"].values()}
        ours = {pid for pid in pids if (Path("/proc") / str(pid)).exists()}
        assert len(ours) == 2 + 4 and listening(ours)
        assert open_to_others(ours) == {}, "only on the addresses of the nodes, which are loopback ones in the lab"
        live.finish()
    assert not live.events("failure_occurred")


def test_gpus_are_mapped(lab: RayLab, tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text("import os\nprint('sees', os.environ['CUDA_VISIBLE_DEVICES'])\n")
    (tmp_path / "r.yaml").write_text("script: seen.py\ncluster: ray\n")
    with start(str(tmp_path / "r.yaml"), "--gpus", "2", runs=tmp_path / "runs", **on(lab)) as live:
        live.finish()
    assert "sees 0,1" in live.output(0)


def test_a_submitted_job_goes_on_without_its_client_and_is_stopped(lab: RayLab, tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    runs = ("--runs", str(tmp_path))
    dtrain(
        "submit",
        RECIPE,
        *FOUR,
        *SLOW,
        "--set",
        "train.steps=1000",
        "--cluster",
        "ray",
        "--tag",
        "dataset=v2",
        *runs,
        **on(lab),
    )
    (run,) = all_runs(tmp_path)
    wait_for(lambda: run.events.exists() and '"metrics"' in run.events.read_text(), "its first steps")
    assert json.loads(dtrain("ps", "--json", *runs, **on(lab)).stdout)[0]["state"] == "running"
    watching = attached("last", tmp_path, **on(lab))
    assert "saved at step" in dtrain("stop", "last", *runs, **on(lab)).stdout
    assert_attached_until_stopped(watching)
    wait_for(lambda: groups(lab) == 0, "the placement group's end", 20)
    jobs, submitted = JobSubmissionClient(on(lab)["RAY_API_SERVER_ADDRESS"]), run.submitted()
    assert submitted
    wait_for(lambda: jobs.get_job_status(submitted.reference).is_terminal(), "the end of the job")
    info = jobs.get_job_info(submitted.reference)
    assert (info.status.value, info.metadata) == ("SUCCEEDED", {"dtrain_run": run.id, "dataset": "v2"})


def test_waiting_for_what_is_not_there_says_what_is_missing_and_gives_up(lab: RayLab, tmp_path: Path) -> None:
    options = ("--workers", "8", "--nodes", "2", "--set", "recovery.provision_seconds=5", "--cluster", "ray")
    with start(RECIPE, *options, runs=tmp_path, **on(lab)) as live:
        out = live.finish(code=3)
    assert "CPU: 8 asked, 6 free, 6 in all" in out
    wait_for(lambda: groups(lab) == 0, "the placement group's end", 20)


def test_a_lost_node_is_replaced_where_there_is_room(fresh_lab: RayLab, local: Live, tmp_path: Path) -> None:
    with start(RECIPE, *FOUR, *SLOW, "--cluster", "ray", runs=tmp_path, **on(fresh_lab)) as live:
        live.wait_step(6)
        fresh_lab.kill_node(victim(fresh_lab, live))
        live.finish()
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert live.events("attempt_started")[-1]["workers"] == 4
    assert_as_local(live, local)


def test_a_run_shrinks_and_grows_again_with_its_sample_order_unchanged(tmp_path: Path) -> None:
    options = (
        "--workers",
        "4",
        "--nodes",
        "2",
        "--set",
        "resources.min_workers=2",
        "--set",
        "train.steps=60",
        "--set",
        "params.pause=0.1",
    )
    with (
        RayLab.start(nodes=2, cpus=2, gpus=2) as lab,
        start(RECIPE, *options, "--cluster", "ray", runs=tmp_path, **on(lab)) as live,
    ):
        live.wait_step(3)
        lab.kill_node(1)
        live.wait_event("attempt_started", workers=2)
        live.wait_step(10, attempt=2)
        lab.add_node(cpus=2, gpus=2)
        live.wait_event("resize_requested")
        live.finish()
    assert [event["workers"] for event in live.events("attempt_started")] == [4, 2, 4]
    live.assert_clean_audit(steps=60)


def test_a_drained_node_is_left_at_an_agreed_step(fresh_lab: RayLab, local: Live, tmp_path: Path) -> None:
    with start(RECIPE, *FOUR, "--set", "params.pause=0.2", "--cluster", "ray", runs=tmp_path, **on(fresh_lab)) as live:
        live.wait_step(3)
        fresh_lab.drain_node(victim(fresh_lab, live), seconds=120)
        live.finish()
    assert live.events("resize_requested")
    assert not live.events("failure_occurred")
    assert_as_local(live, local)


def victim(lab: RayLab, live: Live) -> int:
    """A node of the run that is not the head."""
    used = {event["address"] for event in live.events("node_ready")}
    return next(index for index in lab.nodes if index and lab.node_address(index) in used)


def test_what_a_warm_run_imported_serves_the_next_one(lab: RayLab, local: Live, tmp_path: Path) -> None:
    def run(name: str, *options: str) -> dict[int, int]:
        """A run, then how often each resident that was started for this test has lent what it imported."""
        options = ("--set", "env.ONLY_HERE=here", *options)
        with start(RECIPE, *FOUR, "--cluster", "ray", *options, runs=tmp_path / name, **on(lab) | COLD) as live:
            live.finish()
        assert_as_local(live, local)
        every = {one["pid"]: one["runs"] for one in json.loads(dtrain("warm", "--json").stdout)}
        return {pid: times for pid, times in every.items() if pid in started_with("ONLY_HERE=here")}

    first, second = run("first", "--warm", "60s"), run("second")
    assert sum(first.values()) == 2, "one for the agent of each node"
    assert sum(second.values()) == 4
    assert second.keys() == first.keys()


def test_doctor_profile_and_debugger_reach_the_nodes(lab: RayLab, tmp_path: Path) -> None:
    lines = json.loads(dtrain("doctor", "--cluster", "ray", "--nodes", "2", "--json", "--runs", str(tmp_path), **on(lab)).stdout)  # fmt: skip
    found = {line["check"]: line for line in lines}
    assert len(found["ray"]["nodes"]) == 2
    assert found["locks"]["state"] == "ok"
    assert "all_reduce of 16 MiB with rank 1" in found["network"]["text"]
    with start(
        RECIPE, *FOUR, *SLOW, "--cluster", "ray", "--set", "train.steps=10000", runs=tmp_path, **on(lab)
    ) as live:
        live.wait_step(3)
        (profile,) = json.loads(dtrain("profile", str(live.run.path), "--rank", "3", "--steps", "2", "--json").stdout)
        assert list(live.run.path.glob(f"{profile['file']}*.gz"))
        out, said = debugged(live.run, "p total_steps\nq\n", "--rank", "3", **on(lab))
        assert "rank 3 is stopped in step" in said
        assert "-> return 1 - step / (2 * total_steps)" in out
        live.wait_event("debugger_left", rank=3)
        dtrain("stop", str(live.run.path), "--now")
        live.finish(code=4)


def test_a_bench_measures_on_the_cluster(lab: RayLab, tmp_path: Path) -> None:
    over = ("--over", "resources.workers=2,4", "--set", "resources.nodes=2", "--steps", "10", "--json")
    done = dtrain("bench", RECIPE, "--cluster", "ray", *over, "--runs", str(tmp_path), **on(lab))
    two, four = json.loads(done.stdout)["rows"]
    assert two["efficiency"] == 1.0
    assert four["samples_per_second"] > 0
    assert four["memory_bytes"] > two["memory_bytes"] > 0
    assert "--cluster ray" in four["command"]
    wait_for(lambda: groups(lab) == 0, "the placement group's end", 20)


def test_a_node_with_two_failures_is_left_for_another_one_and_out_of_later_runs(lab: RayLab, tmp_path: Path) -> None:
    """A placement group of its own keeps off it by Ray's label of the node."""
    with start(RECIPE, *FOUR, *SLOW, "--cluster", "ray", runs=tmp_path, **on(lab)) as live:
        for attempt in (1, 2):
            live.wait_step(6 * attempt, attempt)
            live.kill(3, attempt)
        live.finish()
    addresses = {event["node"]: event["address"] for event in live.events("node_ready")}
    first, _, last = (event["nodes"] for event in live.events("attempt_started"))
    bad = addresses[first[1]]
    assert bad in {addresses[node] for node in first}
    assert bad not in {addresses[node] for node in last}
    assert live.events("node_avoided")[0]["node"] == bad
    with start(RECIPE, *FOUR, "--cluster", "ray", runs=tmp_path, **on(lab)) as later:
        later.finish()
    assert bad not in {event["address"] for event in later.events("node_ready")}
    three = ("--workers", "3", "--nodes", "3", "--set", "train.shards=3", "--set", "train.global_batch=30")
    with start(RECIPE, *three, "--cluster", "ray", runs=tmp_path, **on(lab)) as all_of_them:
        out = all_of_them.finish()
    assert bad in {event["address"] for event in all_of_them.events("node_ready")}
    assert f"failures began on {bad}" in out and "the run goes on with it" in out
    wait_for(lambda: groups(lab) == 0, "the placement groups' end", 20)


def test_an_embedded_cluster_joins_no_other_and_listens_on_the_loopback(lab: RayLab, tmp_path: Path) -> None:
    """The lab is a neighbour's cluster, which Ray would join: its address is in Ray's folder for temporary files."""
    found_by = {"RAY_TMPDIR": str(lab.folder / "0"), "RAY_raylet_start_wait_time_s": "120"}
    two = ("--workers", "2", "--set", "params.pause=0.2")
    with start(RECIPE, *two, "--cluster", "ray", runs=tmp_path, **found_by) as live:
        live.wait_step(3)
        found = listening(process_tree(live.process.pid))
        assert groups(lab) == 0
        live.finish()
    assert {event["address"] for event in live.events("node_ready")} == {"127.0.0.1"}
    # In the kernel's order of bytes 127.x.y.z ends with 7F; in IPv6 it may be mapped.
    assert found and all(address.endswith("7F") for address in found), found


def test_what_the_tutorial_types_on_ray(lab: RayLab, tmp_path: Path) -> None:
    documents.files("docs/tutorial.md", tmp_path)
    documents.session(documents.commands("docs/tutorial.md", "On Ray"), tmp_path, on(lab))


def test_trials_of_a_study_are_jobs_of_ray(lab: RayLab, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    recipe, runs = str(PROGRAMS / "tuned.yaml"), ("--runs", str(tmp_path))
    out = dtrain("tune", recipe, "--cluster", "ray", "--trials", "3", "--at-once", "2", *runs, **on(lab)).stdout
    assert ": done - " in out
    assert {submitted.cluster for run in all_runs(tmp_path) if (submitted := run.submitted())} == {"ray"}
    assert len(all_runs(tmp_path)) == 3
    wait_for(lambda: groups(lab) == 0, "the placement groups' end", 20)


def test_a_study_goes_on_when_a_node_dies_under_a_trial(fresh_lab: RayLab, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    recipe, runs = str(PROGRAMS / "tuned.yaml"), ("--runs", str(tmp_path))
    long = ("--set", "train.steps=4000", "--set", "train.evaluate_every=200", "--early-stop", "none")
    whole = ("--workers", "2", "--trials", "3", "--at-once", "3", "--set", "recovery.provision_seconds=120")
    words = ("tune", recipe, "--cluster", "ray", *long, *whole, "--detach", "--quiet", *runs)
    study = folder.require(tmp_path, dtrain(*words, **on(fresh_lab)).stdout.strip())
    trials = [study.trial(number) for number in range(3)]
    wait_for(lambda: all(b'"checkpoint_saved"' in read(run) for run in trials), "a checkpoint of each", 120)
    used = {
        event.address: run for run in trials for event in event_log.read(run.events) if isinstance(event, NodeReady)
    }
    index = next(index for index in fresh_lab.nodes if index and fresh_lab.node_address(index) in used)
    fresh_lab.kill_node(index)
    dtrain("wait", study.id, *runs, **on(fresh_lab))
    found = json.loads(dtrain("status", study.id, "--json", *runs, **on(fresh_lab)).stdout)["trials"]
    assert [(one["state"], one["step"], one["failure"]) for one in found] == [("done", 4000, "")] * 3
    lost = used[fresh_lab.node_address(index)]
    assert sum(isinstance(event, AttemptStarted) for event in event_log.read(lost.events)) > 1
    assert all((done := audit(run)) and done.clean for run in trials)


def read(run: RunDir) -> bytes:
    return run.events.read_bytes() if run.events.exists() else b""
