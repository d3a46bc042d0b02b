"""Runs on a real SLURM cluster of four nodes, which takes nodes away, preempts, warns and cancels."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import documents
import pytest
import tracker_files
from live import (
    DTRAIN,
    PROGRAMS,
    Live,
    assert_attached_until_stopped,
    attached,
    debugged,
    dtrain,
    finished,
    running,
    start,
    wait_for,
)
from processes import is_alive, open_to_others, wait_until
from slurm_lab import SlurmLab, install_slurm
from ssh_lab import SshLab, install_ssh

from dtrain.api import testing
from dtrain.launch import registry
from dtrain.record import event_log, lock
from dtrain.record.events import AttemptStarted
from dtrain.record.folder import RunDir, all_runs
from dtrain.report.audit import audit

RECIPE = str(PROGRAMS / "contract_torch.yaml")
STEPS = 40
TWO = ("--workers", "2", "--nodes", "2", "--set", f"train.steps={STEPS}", "--set", "params.pause=0.02")
SLURM = ("--cluster", "slurm")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    problem = install_slurm()
    if problem is not None:
        pytest.skip(problem)
    with SlurmLab.start(tmp_path_factory.mktemp("lab"), nodes=4) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return finished(RECIPE, *TWO, runs=tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def runs(tmp_path: Path, lab: SlurmLab) -> Iterator[Path]:
    """A folder of runs with a name that wants quoting; afterwards, nothing of a test may be left on the cluster."""
    yield tmp_path / """it's "100%" mine"""
    wait_until(lambda: not lab.run("squeue", "-h").stdout, 20, f"jobs are left: {lab.run('squeue').stdout}")
    for node in lab.nodes:
        wait_until(lambda node=node: not (lab.task_pids(node) | lab.step_pids(node)), 20, f"processes left on {node}")  # type: ignore[misc]


@contextmanager
def on_slurm(lab: SlurmLab, runs: Path, *options: str) -> Iterator[Live]:
    """`dtrain run` on the cluster, which follows; its job is cancelled where the test has failed."""
    with start(RECIPE, *SLURM, *TWO, *options, runs=runs, **lab.environment) as live:
        try:
            yield live
        finally:
            if live.process.poll() is None:
                lab.run("scancel", job(live.run), check=False)


def job(run: RunDir) -> str:
    submitted = wait_for(run.submitted, "the submission")
    return str(submitted.reference)


def command(lab: SlurmLab, runs: Path, *words: str, check: int | None = 0) -> str:
    done = dtrain(*words, "--runs", str(runs), check=check, **lab.environment)
    return done.stdout + done.stderr


def shown(lab: SlurmLab, runs: Path) -> str:
    """What `dtrain ps` calls the newest run."""
    return str(json.loads(command(lab, runs, "ps", "--json"))[-1]["state"])


def node_of(live: Live, rank: int, attempt: int = 1) -> str:
    live.wait_event("workers_started", attempt=attempt)
    wait_for(
        lambda: any(str(rank) in e["pids"] for e in live.events("workers_started", attempt=attempt)), f"rank {rank}"
    )
    return next(str(e["node"]) for e in live.events("workers_started", attempt=attempt) if str(rank) in e["pids"])


def batch_host(lab: SlurmLab, live: Live) -> str:
    return lab.run("squeue", "-h", "-o", "%B", "-j", job(live.run)).stdout.strip()


def other_node(lab: SlurmLab, live: Live) -> str:
    """A node of the attempt that the supervisor is not on."""
    host = batch_host(lab, live)
    return next(name for name in (node_of(live, 0), node_of(live, 1)) if name != host)


def agent_pid(live: Live, node: str) -> int:
    return int(next(event["pid"] for event in live.events("node_ready", node=node)))


def assert_as_if_nothing_happened(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    live.assert_clean_audit(steps=STEPS)


def test_nothing_but_srun_listens_on_every_interface(lab: SlurmLab, runs: Path) -> None:
    """What the run's own processes listen on is bound to the address of their node, which is on the loopback here."""
    with on_slurm(lab, runs, "--set", "params.pause=0.2") as live:
        live.wait_step(3)
        pids = set[int]().union(*(lab.task_pids(node) for node in lab.nodes))
        assert {event["pid"] for event in live.events("node_ready")} <= pids
        assert open_to_others(pids).keys() <= {"srun"}
        live.finish()


def test_two_nodes_of_two_workers_give_the_weights_of_a_local_run(lab: SlurmLab, runs: Path, tmp_path: Path) -> None:
    four = ("--workers", "4", "--nodes", "2")
    local = finished(RECIPE, *four, runs=tmp_path / "local")
    with start(RECIPE, *SLURM, *four, runs=runs, **lab.environment) as live:
        out = live.finish()
    assert live.weights() == local.weights()
    assert live.losses() == local.losses()
    assert {event["address"] for event in live.events("node_ready")} == {"127.0.2.1", "127.0.2.2"}
    assert "held-out" in out
    assert (live.run.path / "job.sh").exists()


def test_a_plain_script_runs_unchanged(lab: SlurmLab, runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "script.yaml"
    recipe.write_text(
        f"script: {PROGRAMS}/counting.py\nargs: ['{tmp_path}', 5, 0.01]\nresources: {{workers: 2, nodes: 2}}\n"
    )
    with start(str(recipe), *SLURM, "--name", "a.plain_script-1", runs=runs, **lab.environment) as live:
        live.finish()
    assert "rank 1 of 2" in live.output(1)


def test_every_worker_of_a_node_sees_its_gpus(lab: SlurmLab, runs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "gpus.yaml"
    recipe.write_text(
        "script: printenv\nargs: [CUDA_VISIBLE_DEVICES]\nresources: {workers: 4, nodes: 2, device: gpu}\n"
    )
    with start(str(recipe), *SLURM, runs=runs, **lab.environment) as live:
        live.finish()
    assert [live.output(rank).splitlines()[-1] for rank in range(4)] == ["0,1"] * 4


def test_stacks_of_all_nodes_are_seen_while_a_run_goes_on(lab: SlurmLab, runs: Path) -> None:
    with on_slurm(lab, runs, "--set", "params.pause=0.2") as live:
        live.wait_step(2)
        found = json.loads(command(lab, runs, "stacks", "last", "--json"))
        assert set(found["ranks"]) == {"0", "1"}
        assert len({used["node"] for used in found["ranks"].values()}) == 2
        assert any("dtrain/worker/loop.py" in frame for thread in found["threads"] for frame in thread["frames"])
        assert "main thread" in command(lab, runs, "stacks", "last", "--rank", "1")
        live.finish()
    assert not live.events("failure_occurred")


def test_a_warning_saves_and_requeues_and_the_run_ends_as_if_nothing_had_happened(
    lab: SlurmLab, runs: Path, undisturbed: Live
) -> None:
    with on_slurm(lab, runs, "--set", "track=null") as live:
        live.wait_step(12)
        lab.run("scancel", "--batch", "-s", "USR1", job(live.run))
        requeued = live.wait_event("requeued")
        assert requeued["step"] == live.events("checkpoint_saved")[-1]["step"]
        wait_for(lambda: shown(lab, runs).startswith("REQUEUED (PENDING"), "the state REQUEUED")
        out = live.finish()
    assert [event["step"] for event in live.events("attempt_started")] == [0, requeued["step"]]
    assert not live.events("failure_occurred")
    assert "told to stop by SIGUSR1" in out
    assert [event["exit_code"] for event in live.events("run_ended")] == [4, 0]
    account = json.loads(command(lab, runs, "report", "last", "--json"))["account"]
    assert account["queued"] > 0
    assert account["effective_share"] < account["goodput"]
    assert_as_if_nothing_happened(live, undisturbed)
    # The curves go on where they were: a requeue is a mark in the same run of the tracker.
    curves, marks = tracker_files.tensorboard(live.run)
    steps = [step for step, _ in curves["train/loss"]]
    assert steps == sorted(live.losses())
    assert [text.split(":")[0] for _, text in marks if text.startswith(("requeued", "resume"))] == [
        "requeued",
        "resume",
    ]


def test_preemption_by_the_urgent_partition_costs_no_step(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs, "--set", "checkpoint.every_steps=1000") as live:
        live.wait_step(8)
        lab.run("srun", "-N4", "--exclusive", "-p", "urgent", "true")
        live.finish()
    assert len(live.events("requeued")) == 1
    assert not live.events("failure_occurred")
    assert_as_if_nothing_happened(live, undisturbed)
    assert live.events("attempt_started")[1]["step"] >= 8


def test_a_node_set_down_requeues_a_run_that_cannot_do_without_it(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs) as live:
        live.wait_event("checkpoint_saved", step=10)
        victim = other_node(lab, live)
        with down(lab, victim):
            live.finish()
    assert victim not in live.events("attempt_started")[-1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


@contextmanager
def down(lab: SlurmLab, node: str) -> Iterator[None]:
    lab.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        yield
    finally:
        lab.run("scontrol", "update", f"nodename={node}", "state=resume")
        lab.wait_for_state(node, "idle")


def test_a_spare_node_takes_the_place_of_one_set_down(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs, "--set", "cluster.spare_nodes=1") as live:
        live.wait_event("checkpoint_saved", step=10)
        wait_for(lambda: len(live.events("node_ready")) == 3, "the spare agent")
        victim = other_node(lab, live)
        with down(lab, victim):
            live.finish()
    assert not live.events("requeued")
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert victim not in live.events("attempt_started")[1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_run_shrinks_to_the_nodes_that_are_left(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs, "--set", "resources.min_workers=1") as live:
        live.wait_event("checkpoint_saved", step=10)
        victim = other_node(lab, live)
        began = time.time()
        with down(lab, victim):
            live.finish()
    assert [event["workers"] for event in live.events("attempt_started")] == [2, 1]
    assert live.events("attempt_started")[1]["time"] - began < 10
    live.assert_clean_audit(steps=STEPS)
    for step, loss in undisturbed.losses().items():
        assert live.losses()[step] == pytest.approx(loss, rel=1e-4)


@contextmanager
def started_again(lab: SlurmLab, node: str, live: Live) -> Iterator[None]:
    """Afterwards the node is there again, without the run."""
    try:
        yield
    finally:
        lab.run("scancel", job(live.run), check=False)
        lab.start_node(node)
        lab.wait_for_state(node, "idle")


def test_a_killed_slurmd_in_the_middle_of_a_run(lab: SlurmLab, runs: Path) -> None:
    """Its tasks run on, and so does the run, until SLURM takes the node away after 10 to 14 s: then the spare takes its place."""
    with on_slurm(lab, runs, "--set", "cluster.spare_nodes=1", "--set", "params.pause=0.25") as live:
        live.wait_event("checkpoint_saved", step=10)
        wait_for(lambda: len(live.events("node_ready")) == 3, "the spare agent")
        victim = other_node(lab, live)
        with started_again(lab, victim, live):
            lab.kill_node(victim)
            live.finish()
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert victim not in live.events("attempt_started")[1]["nodes"]
    live.assert_clean_audit(steps=STEPS)


def test_a_killed_agent_is_replaced_on_its_node(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs) as live:
        live.wait_step(12)
        victim = node_of(live, 1)
        os.kill(agent_pid(live, victim), signal.SIGKILL)
        live.finish()
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert f"{victim}.1" in live.events("attempt_started")[1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_workers_of_all_nodes_complaining_at_once_are_all_understood(lab: SlurmLab, runs: Path, tmp_path: Path) -> None:
    """Their tracebacks are longer than what SLURM carries in one piece."""
    four = ("--workers", "4", "--nodes", "2", "--set", "params.pause=0.02", "--set", "recovery.backoff_seconds=0")
    with start(RECIPE, *SLURM, *four, "--set", "train.steps=200", runs=runs, **lab.environment) as live:
        for attempt in range(1, 11):
            begun = len(live.events("checkpoint_saved"))
            wait_for(lambda begun=begun: len(live.events("checkpoint_saved")) > begun, "progress")  # type: ignore[misc]
            live.kill(1, attempt=attempt)
            live.wait_event("attempt_started", attempt=attempt + 1)
        live.finish()
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed"] * 10
    live.assert_clean_audit(steps=200)


def test_a_killed_slurmstepd_is_noticed_by_the_heartbeat(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs, "--set", "recovery.heartbeat_seconds=2") as live:
        live.wait_step(12)
        victim = other_node(lab, live)
        began = time.time()
        for pid in lab.step_pids(victim):
            os.kill(pid, signal.SIGKILL)
        live.finish()
    assert live.events("failure_occurred")[0]["time"] - began < 5
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_stale_agent_cannot_write_into_a_later_attempt(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    with on_slurm(lab, runs, "--set", "recovery.heartbeat_seconds=2", "--set", "cluster.spare_nodes=1") as live:
        live.wait_step(12)
        victim = node_of(live, 1)
        stale = [agent_pid(live, victim), live.pid(1)]
        for pid in stale:
            os.kill(pid, signal.SIGSTOP)
        live.wait_event("attempt_started", attempt=2)
        for pid in filter(is_alive, stale):
            os.kill(pid, signal.SIGCONT)
        live.finish()
    begun = live.events("attempt_started", attempt=2)[0]["time"]
    assert not [e for e in live.events() if e.get("attempt") == 1 and e["time"] > begun]
    assert not any(is_alive(pid) for pid in stale)
    assert_as_if_nothing_happened(live, undisturbed)


def test_scancel_ends_the_run_for_good(lab: SlurmLab, runs: Path) -> None:
    with on_slurm(lab, runs) as live:
        live.wait_step(5)
        lab.run("scancel", job(live.run))
        live.finish(code=4)
    lab.wait_for_job(job(live.run), "CANCELLED")
    assert "was cancelled" in live.events("run_ended")[-1]["reason"]
    assert not live.events("requeued")


def test_stop_saves_and_resume_goes_on_with_another_number_of_nodes(lab: SlurmLab, runs: Path) -> None:
    command(lab, runs, "submit", RECIPE, *SLURM, *TWO, "--set", "params.pause=0.2")
    run = all_runs(runs)[-1]
    wait_for(lambda: '"checkpoint_saved"' in (run.events.read_text() if run.events.exists() else ""), "a checkpoint")
    assert shown(lab, runs) == "running"
    assert "still going on" in command(lab, runs, "resume", "last", check=2)
    watching = attached("last", runs, **lab.environment)
    assert "saved at step" in command(lab, runs, "stop", "last")
    assert_attached_until_stopped(watching)
    lab.wait_for_job(job(run), "FAILED")  # SLURM's word for an exit code that is not 0
    assert shown(lab, runs) == "stopped"
    assert "stopped" in command(lab, runs, "stop", "last")
    out = command(lab, runs, "resume", "last", "--nodes", "1", "--workers", "1")
    assert "from the checkpoint" in out
    live = Live(subprocess.Popen(["true"], text=True), runs, set())
    live.process.wait()
    assert [event["workers"] for event in live.events("attempt_started")] == [2, 1]
    assert "requeued" not in run.events.read_text()
    live.assert_clean_audit(steps=STEPS)
    assert "rank 0 | --- dtrain: attempt 2" in command(lab, runs, "logs", "-f", "last")


def test_a_run_that_waits_says_why_and_can_be_taken_back(lab: SlurmLab, runs: Path) -> None:
    blocker = lab.run(
        "sbatch", "--parsable", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 15"
    ).stdout.strip()
    lab.wait_for_job(blocker, "RUNNING")
    with on_slurm(lab, runs) as live:
        wait_for(live.run.submitted, "the submission")
        wait_for(lambda: shown(lab, runs) == "PENDING (Resources)", "the reason it waits")
        assert "goes on: nothing was removed" in command(lab, runs, "rm", "last", "--yes", check=2)
        assert "is not running: PENDING" in command(lab, runs, "stacks", "last", check=2)
        live.process.send_signal(signal.SIGINT)
        out = live.finish(code=4)
    assert "taken back" in out
    lab.wait_for_job(job(live.run), "CANCELLED")
    lab.run("scancel", blocker)


def test_ctrl_c_while_following_saves_and_stops_the_run(lab: SlurmLab, runs: Path) -> None:
    with on_slurm(lab, runs) as live:
        live.wait_step(5)
        live.process.send_signal(signal.SIGINT)
        out = live.finish(code=4)
    assert "saved at step" in out
    assert not live.events("requeued")


def test_a_sweep_is_a_run_for_each_value_and_a_requeue_starts_the_right_one(lab: SlurmLab, runs: Path) -> None:
    one = ("--set", "train.steps=20", "--set", "params.pause=0.05", *SLURM)
    command(lab, runs, "submit", RECIPE, *one, "--sweep", "train.seed=4,5,6")
    members = {run.job().train.seed: run for run in all_runs(runs)}
    assert sorted(run.job().name for run in members.values()) == [f"contract-seed{seed}" for seed in (4, 5, 6)]
    wait_for(lambda: members[5].rank_log(0).exists(), "the start of a member")
    wait_for(lambda: '"checkpoint_saved"' in members[5].events.read_text(), "its first checkpoint")
    lab.run("scontrol", "requeue", job(members[5]))
    for run in members.values():
        wait_for(lambda run=run: '"exit_code":0' in run.events.read_text(), f"the end of {run.id}")  # type: ignore[misc]
    weights = set()
    for seed, run in members.items():
        events = [json.loads(line) for line in run.events.read_text().splitlines()]
        weights.add([event["weights"] for event in events if event["event"] == "checkpoint_saved"][-1])
        assert len([event for event in events if event["event"] == "run_started"]) == (2 if seed == 5 else 1)
    assert len(weights) == 3


def test_no_progress_between_two_requeues_ends_the_run(lab: SlurmLab, runs: Path) -> None:
    with on_slurm(lab, runs) as live:
        wait_for(live.run.submitted, "the submission")
        with open(live.run.events, "a") as diary:
            event = {"time": time.time() + 1, "event": "requeued", "step": 0, "words": ""}
            diary.write(json.dumps(event, separators=(",", ":")) + "\n")
        live.wait_event("run_started")
        lab.run("scancel", "--batch", "-s", "USR1", job(live.run))
        live.finish(code=3)
    assert "no progress" in live.events("run_ended")[-1]["reason"]


def test_what_the_recipe_says_is_what_the_job_gets_whatever_the_site_exports(lab: SlurmLab, runs: Path) -> None:
    site: dict[str, Any] = {
        "SBATCH_TIMELIMIT": "3", "SBATCH_OUTPUT": "/dev/null", "SBATCH_EXPORT": "NONE", "SBATCH_NO_REQUEUE": "1", "SBATCH_SIGNAL": "B:USR2@10",
        "SBATCH_ARRAY_INX": "0-3", "SBATCH_COMMENT": "of the site", "SBATCH_NICE": "5", "SBATCH_WAIT": "1",
        "SLURM_JOB_ID": "4711", "SLURM_MEM_PER_CPU": "1", "SLURM_MEM_PER_NODE": "1", "SLURM_NTASKS": "9",
    }  # fmt: skip
    timed = ("--set", "cluster.time='17:00'")
    done = dtrain("submit", RECIPE, *SLURM, *TWO, *timed, "--runs", str(runs), check=0, **(site | lab.environment))
    assert "SBATCH_TIMELIMIT=3 is left out: the recipe says otherwise" in done.stderr
    (run,) = all_runs(runs)
    described = lab.run("scontrol", "-o", "show", "job", job(run)).stdout
    assert "TimeLimit=00:17:00" in described
    assert "Requeue=1" in described
    assert "/dev/null" not in described.partition("StdOut=")[2]
    wait_for(lambda: '"exit_code":0' in (run.events.read_text() if run.events.exists() else ""), "the end")


def test_run_inside_an_allocation_uses_it_as_it_is(lab: SlurmLab, runs: Path) -> None:
    words = [*DTRAIN, "run", RECIPE, *SLURM, "--workers", "2", "--nodes", "2", "--runs", str(runs)]
    out = lab.run("salloc", "-N3", *words).stdout
    assert "finished" in out
    assert "submitted" not in out
    assert "wants 2 nodes" in lab.run("salloc", "-N1", *words, check=False).stderr


def test_each_element_of_a_job_array_runs_on_its_own_node(lab: SlurmLab, runs: Path) -> None:
    given = [*DTRAIN, "run", RECIPE, *SLURM, "--workers", "1", "--set", f"train.steps={STEPS}", "--runs", str(runs)]
    asked = ("--wait", "--array=0-2", "-N1", "--exclusive", f"--output={runs.parent}/%a.out")
    lab.run("sbatch", *asked, f"--wrap={shlex.join(given)}", seconds=240)
    outputs = [(runs.parent / f"{element}.out").read_text() for element in range(3)]
    assert all("finished" in text for text in outputs), outputs
    hosts = {re.search(r"1 worker on (\S+)", text)[1] for text in outputs}  # type: ignore[index]
    assert len(hosts) == 3


def test_what_a_warm_run_imported_in_an_allocation_serves_the_next_one(
    lab: SlurmLab, runs: Path, tmp_path: Path
) -> None:
    run = shlex.join([*DTRAIN, "run", RECIPE, *SLURM, "--workers", "2", "--nodes", "2", "--runs", str(runs)])
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # the name of a socket has 107 bytes at most
        both = f"export XDG_RUNTIME_DIR={folder}; {run} --warm 60s && {run} && {shlex.join(DTRAIN)} warm --json"
        out = lab.run("salloc", "-N2", "sh", "-c", both, seconds=180).stdout
        assert out.count("done in") == 2, out
        residents = json.loads(next(line for line in out.splitlines() if line.startswith("[{")))
        assert len(residents) == 2, "one in the step on each node"
        assert sum(one["runs"] for one in residents) == 4, "two runs of two agents"
        digests = re.findall(r"weights digest (\w+)", out)
        assert len(digests) == 2
        assert len(set(digests)) == 1
        wait_for(lambda: not running({one["pid"] for one in residents}), "their end with the allocation", 30)


def test_doctor_looks_at_the_nodes(lab: SlurmLab, runs: Path) -> None:
    lines = json.loads(command(lab, runs, "doctor", "--cluster", "slurm", "--nodes", "2", "--json"))
    found = {line["check"]: line for line in lines}
    assert len(found["python"]["nodes"]) == 2
    assert re.fullmatch(r".* in job \d+", found["time left"]["text"])
    assert found["clock"]["state"] == "ok"
    assert "all_reduce of 16 MiB with rank 1" in found["network"]["text"]


def test_a_profile_and_a_debugger_of_a_run_on_slurm(lab: SlurmLab, runs: Path) -> None:
    with on_slurm(lab, runs, "--set", "train.steps=1000") as live:
        live.wait_step(3)
        (found,) = json.loads(command(lab, runs, "profile", "last", "--rank", "1", "--steps", "2", "--json"))
        assert list(live.run.path.glob(f"{found['file']}*.gz"))
        assert "Self CPU time total" in found["operations"]
        out, said = debugged(live.run, "p total_steps\nq\n", "--rank", "1", check=0, **lab.environment)
        assert "rank 1 is stopped in step" in said
        assert "-> return 1 - step / (2 * total_steps)" in out
        live.wait_event("debugger_left", rank=1)
        live.process.send_signal(signal.SIGINT)
        live.finish(code=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nodes", "5", "--workers", "5", "--set", "train.shards=5", "--set", "train.global_batch=40"), "has 4"),
        (("--gpus", "4"), "more than 2"),
        (("--set", "cluster.partition=nowhere"), "no partition 'nowhere': it has main, urgent"),
        (("--set", "resources.cpus_per_worker=5"), "more than 4"),
    ],
    ids=["nodes", "gpus", "partition", "cpus"],
)
def test_what_no_node_can_give_is_said_before_submission(
    lab: SlurmLab, runs: Path, options: tuple[str, ...], words: str
) -> None:
    assert words in command(lab, runs, "submit", RECIPE, *SLURM, *options, check=2)
    assert not runs.exists()


def test_without_slurm_here_the_recipe_is_refused(lab: SlurmLab, runs: Path) -> None:
    done = dtrain("submit", RECIPE, *SLURM, "--runs", str(runs), check=2, PATH=str(Path(sys.executable).parent))
    assert "sbatch was not found" in done.stderr


def test_slurms_own_words_are_passed_on(lab: SlurmLab, runs: Path) -> None:
    options = ("--set", "cluster.extra=[--qos=gold]", "--set", "cluster.account=nobody", "--set", "cluster.time=x-y")
    assert "time" in command(lab, runs, "submit", RECIPE, *SLURM, *options, check=2)
    refused = command(lab, runs, "submit", RECIPE, *SLURM, "--set", "cluster.constraint=nothere", check=3)
    assert "Invalid feature specification" in refused


def refusing(folder: Path) -> str:
    """A folder for the front of PATH in which `scontrol` refuses everything, as where requeueing is not allowed."""
    folder.mkdir()
    (folder / "scontrol").write_text("#!/bin/sh\necho 'Requested operation is presently disabled' >&2\nexit 1\n")
    (folder / "scontrol").chmod(0o755)
    return f"[export PATH={folder}:$PATH]"


def test_where_a_requeue_is_refused_the_run_is_submitted_anew(
    lab: SlurmLab, runs: Path, tmp_path: Path, undisturbed: Live
) -> None:
    with on_slurm(lab, runs, "--set", f"cluster.setup={refusing(tmp_path / 'bin')}") as live:
        live.wait_step(12)
        first = job(live.run)
        lab.run("scancel", "--batch", "-s", "USR1", first)
        live.finish()
    assert job(live.run) != first
    assert "submitted again as job" in live.events("requeued")[0]["words"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_node_on_which_no_agent_starts_any_more_is_left_out_of_the_next_job(
    lab: SlurmLab, runs: Path, tmp_path: Path, undisturbed: Live
) -> None:
    """The container hook of the run is what breaks on that node."""
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\n[ ! -e {tmp_path}/bad-$SLURMD_NODENAME ] || exit 7\nexec "$@"\n')
    hook.chmod(0o755)
    with on_slurm(lab, runs, "--set", f"cluster.container={hook}") as live:
        live.wait_step(12)
        victim = other_node(lab, live)
        (tmp_path / f"bad-{victim}").touch()
        os.kill(agent_pid(live, victim), signal.SIGKILL)
        live.finish()
    assert victim in live.events("requeued")[0]["words"]
    assert victim not in live.events("attempt_started")[-1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_node_with_two_failures_is_left_for_a_spare_one_and_excluded_from_later_jobs(
    lab: SlurmLab, runs: Path, undisturbed: Live
) -> None:
    with on_slurm(lab, runs, "--set", "cluster.spare_nodes=1") as live:
        for attempt in (1, 2, 3):  # the first one begins on whatever two nodes are ready first
            if not live.events("node_avoided"):
                live.wait_step(8 * attempt, attempt)
                live.kill(1, attempt)
                live.wait_event("attempt_started", attempt=attempt + 1)
        live.finish()
    bad = live.events("node_avoided")[0]["node"]
    assert [event["node"] for event in live.events("failure_occurred")].count(bad) == 2
    assert bad not in live.events("attempt_started")[-1]["nodes"]
    assert not live.events("requeued")
    assert_as_if_nothing_happened(live, undisturbed)
    assert f"{bad} (slurm)  avoided for" in command(lab, runs, "nodes")
    with on_slurm(
        lab, runs, "--nodes", "3", "--workers", "3", "--set", "train.shards=3", "--set", "train.global_batch=30"
    ) as later:
        assert f"ExcNodeList={bad}" in lab.run("scontrol", "-o", "show", "job", job(later.run)).stdout
        later.finish()
    assert bad not in later.events("attempt_started")[0]["nodes"]
    with on_slurm(lab, runs, "--nodes", "4", "--workers", "4") as all_of_them:
        out = all_of_them.finish()
    assert bad in all_of_them.events("attempt_started")[0]["nodes"]
    assert f"failures began on {bad}" in out and "the run goes on with it" in out


def test_a_requeued_job_keeps_off_a_node_with_two_failures(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    """Without a spare node the run goes on with it until it is queued again."""
    with on_slurm(lab, runs) as live:
        for attempt in (1, 2):
            live.wait_step(8 * attempt, attempt)
            live.kill(1, attempt)
        live.wait_step(20, 3)
        bad = live.events("attempt_started")[2]["nodes"][1]
        lab.run("scancel", "--batch", "-s", "USR1", job(live.run))
        out = live.finish()
    assert "the run goes on with it" in out
    assert f"without {bad}" in live.events("requeued")[0]["words"]
    assert bad not in live.events("attempt_started")[-1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_node_with_another_version_is_named_before_the_first_step(lab: SlurmLab, runs: Path, tmp_path: Path) -> None:
    """The container hook of the run is what gives that node another torch."""
    (tmp_path / "other" / "torch-9.9.dist-info").mkdir(parents=True)
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\n[ $SLURMD_NODENAME = node1 ] || export PYTHONPATH={tmp_path}/other\nexec "$@"\n')
    hook.chmod(0o755)
    with on_slurm(lab, runs, "--set", f"cluster.container={hook}") as live:
        out = live.finish(code=3)
    found = re.search(r"node[1-4] .*has torch (\S+), and node[1-4] .*has (\S+)", out)
    assert found and "9.9" in found.groups(), out
    assert "Install the same everywhere." in out
    assert not live.run.ledger(1, 0).exists() or not live.run.ledger(1, 0).stat().st_size


@pytest.mark.parametrize(
    "promise", [testing.check_agents, testing.check_lost_agent], ids=lambda check: str(check.__name__)
)
def test_the_contract_of_clusters(
    lab: SlurmLab, runs: Path, monkeypatch: pytest.MonkeyPatch, promise: Callable[..., None]
) -> None:
    words = lab.run("salloc", "-N2", "--no-shell").stderr
    number = words.split("allocation")[1].split()[0]
    monkeypatch.setenv("SLURM_JOB_ID", number)
    for name, value in lab.environment.items():
        monkeypatch.setenv(name, value)
    promise(registry.cluster("slurm", {}), testing.plan_for("slurm"), runs)
    lab.run("scancel", number)


def test_the_crash_of_the_node_that_the_supervisor_is_on(lab: SlurmLab, runs: Path, undisturbed: Live) -> None:
    """SLURM takes the node for down after a while and queues the job again, on other nodes."""
    with on_slurm(lab, runs, "--set", "params.pause=0.1") as live:
        live.wait_event("checkpoint_saved", step=10)
        victim = batch_host(lab, live)
        with started_again(lab, victim, live):
            lab.crash_node(victim)
            live.finish()
    assert victim not in live.events("attempt_started")[-1]["nodes"]
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_warning_before_the_workers_are_up_costs_a_requeue_and_nothing_else(
    lab: SlurmLab, runs: Path, undisturbed: Live
) -> None:
    with on_slurm(lab, runs) as live:
        live.wait_event("run_started")
        lab.run("scancel", "--batch", "-s", "USR1", job(live.run))
        live.finish()
    assert [event["step"] for event in live.events("requeued")] == [0]
    assert not live.events("failure_occurred")
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_second_supervisor_waits_for_the_first_and_disturbs_nothing(
    lab: SlurmLab, runs: Path, undisturbed: Live
) -> None:
    """As where SLURM has started a job again whose old batch script still runs on a node that was cut off."""
    with on_slurm(lab, runs, "--set", "params.pause=0.1") as live:
        live.wait_step(2)
        second = subprocess.Popen([*DTRAIN, "supervise", str(live.run.path)], env=os.environ | lab.environment)
        live.finish()
        assert second.wait(20) == 0
    assert len(live.events("run_started")) == len(live.events("attempt_started")) == len(live.events("run_ended")) == 1
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_bench_submits_its_runs_one_after_another_and_follows_them(lab: SlurmLab, runs: Path) -> None:
    over = ("--over", "strategy=ddp,fsdp", "--set", "resources.workers=2", "--set", "resources.nodes=2")
    out = command(lab, runs, "bench", RECIPE, *SLURM, *over, "--steps", "10")
    assert out.count("submitted bench-contract-") == 2
    assert "take ddp" in out or "take fsdp" in out
    began = [run.submitted() for run in all_runs(runs)]
    ends = [json.loads(run.events.read_text().splitlines()[-1])["time"] for run in all_runs(runs)]
    assert began[1] is not None
    assert began[1].time >= ends[0], "one after the other"


def test_an_interrupted_bench_takes_its_run_back(lab: SlurmLab, runs: Path) -> None:
    more = ("--steps", "1000", "--set", "params.pause=0.05", "--set", "resources.workers=2")
    with start(RECIPE, *SLURM, *more, runs=runs, command="bench", **lab.environment) as live:
        live.wait_step(2)
        live.process.send_signal(signal.SIGINT)
        assert "interrupted" in live.finish(code=130)
    wait_for(lambda: not lab.run("squeue", "-h").stdout, "an empty queue", 30)


def test_what_the_tutorial_types_on_slurm(lab: SlurmLab, runs: Path) -> None:
    folder = runs.parent
    documents.files("docs/tutorial.md", folder)
    documents.session(documents.commands("docs/tutorial.md", "On SLURM"), folder, lab.environment)


def test_a_laptop_trains_on_it_over_ssh(lab: SlurmLab, tmp_path: Path) -> None:
    if problem := install_ssh():
        pytest.skip(problem)
    login = SshLab(tmp_path / "login", **lab.environment)
    try:
        login.put_dtrain_there()
        project = tmp_path / "project"
        shutil.copytree(
            PROGRAMS, project, ignore=lambda _, names: [name for name in names if not name.startswith("tiny.")]
        )
        words = ("run", "tiny.yaml", *SLURM, "--nodes", "2", "--host", "login")
        done = dtrain(*words, cwd=project, **login.client)
        (run,) = all_runs(login.home / ".dtrain" / "runs")
        assert f"{run.id}: done" in done.stdout
        assert run.submitted() is not None
        plan = dtrain("plan", "tiny.yaml", *SLURM, "--host", "login", cwd=project, **login.client).stdout
        assert "#SBATCH" in plan
        assert "not from this machine" not in plan
    finally:
        login.stop()


def test_a_run_waits_until_another_one_has_ended_well(lab: SlurmLab, runs: Path) -> None:
    words = (RECIPE, "--workers", "1", *SLURM, "--set", "params.pause=0.02", "--quiet")
    first = command(lab, runs, "submit", *words, "--set", "train.steps=200").strip()
    second = command(lab, runs, "submit", *words, "--set", "train.steps=3", "--set", f"cluster.after={first}").strip()
    wait_for(lambda: "PENDING (Dependency)" in command(lab, runs, "status", second), "the reason it waits")
    command(lab, runs, "wait", second)
    ended, began = (json.loads(line) for line in (events(runs / first)[-1], events(runs / second)[0]))
    assert ended["event"] == "run_ended"
    assert ended["time"] < began["time"]
    refused = command(lab, runs, "submit", *words, "--set", "cluster.after=nothing", check=2)
    assert "no run 'nothing'" in refused


def events(run: Path) -> list[str]:
    return (run / "events.jsonl").read_text().splitlines()


def test_trials_of_a_study_are_jobs_that_outlive_its_process(lab: SlurmLab, runs: Path) -> None:
    pytest.importorskip("optuna")
    recipe = str(PROGRAMS / "tuned.yaml")
    study = command(lab, runs, "tune", recipe, *SLURM, "--trials", "4", "--at-once", "2", "--detach", "--quiet").strip()
    journal = runs / study / "trials.journal"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 6, "some trials")
    os.kill(int(lock.last_mark(runs / study / "supervisors").split()[1]), signal.SIGKILL)
    assert "done - " in command(lab, runs, "resume", study)
    found = json.loads(command(lab, runs, "status", study, "--json"))
    assert [one["state"] for one in found["trials"]].count("done") >= 1
    assert len(found["trials"]) == len(all_runs(runs)) == 4
    assert {submitted.cluster for run in all_runs(runs) if (submitted := run.submitted())} == {"slurm"}


PACKED = (*SLURM, "--set", "tune.packing=2", "--at-once", "2")


def test_trials_of_a_study_share_one_allocation(lab: SlurmLab, runs: Path) -> None:
    pytest.importorskip("optuna")
    recipe = str(PROGRAMS / "tuned.yaml")
    slow = ("--set", "train.steps=2700", "--set", "train.evaluate_every=100", "--early-stop", "none", "--trials", "4")
    study = command(lab, runs, "tune", recipe, *PACKED, *slow, "--detach", "--quiet").strip()
    first = [RunDir(runs / f"{study}-{number}") for number in (0, 1)]
    wait_for(
        lambda: all(run.events.exists() and b'"metrics"' in run.events.read_bytes() for run in first), "two trials"
    )
    (job,) = lab.run("squeue", "-h", "-o", "%i %D").stdout.splitlines()
    assert job.split()[1] == "2"
    assert sum(bool(lab.task_pids(node)) for node in lab.nodes) == 2, "each has a node of its own"
    assert "stopped; go on" in command(lab, runs, "stop", study)
    assert "done - 4 of 4" in command(lab, runs, "resume", study)
    assert len(all_runs(runs)) == 4 and all(RunDir(run.path).job().cluster.name == "local" for run in all_runs(runs))


def test_a_study_whose_allocation_ends_is_queued_again_and_goes_on(lab: SlurmLab, runs: Path) -> None:
    pytest.importorskip("optuna")
    recipe = str(PROGRAMS / "tuned.yaml")
    slow = ("--set", "train.steps=2700", "--set", "train.evaluate_every=100", "--early-stop", "none", "--trials", "2")
    study = command(lab, runs, "tune", recipe, *PACKED, *slow, "--detach", "--quiet").strip()
    first = RunDir(runs / f"{study}-0")
    wait_for(lambda: first.events.exists() and b'"metrics"' in first.events.read_bytes(), "a step")
    job = lab.run("squeue", "-h", "-o", "%i").stdout.strip()
    lab.run("scancel", "--signal=USR1", "--batch", job)  # as SLURM does before the time limit
    wait_for(lambda: lab.run("squeue", "-h", "-o", "%t").stdout.strip() == "PD", "the job in the queue again", 60)
    assert ": running" in command(lab, runs, "status", study)
    lab.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    command(lab, runs, "wait", study)
    found = json.loads(command(lab, runs, "status", study, "--json"))
    assert [(one["state"], one["step"]) for one in found["trials"]] == [("done", 2700)] * 2
    assert all((done := audit(run)) and done.clean and not done.repeated_steps for run in all_runs(runs))


@pytest.mark.parametrize("form", ["an allocation for all", "a job each"])
def test_a_study_goes_on_when_a_node_dies_under_a_trial(lab: SlurmLab, runs: Path, form: str) -> None:
    pytest.importorskip("optuna")
    recipe, packed = str(PROGRAMS / "tuned.yaml"), form == "an allocation for all"
    options = PACKED if packed else (*SLURM, "--at-once", "2")
    slow = ("--set", "train.steps=2700", "--set", "train.evaluate_every=100", "--early-stop", "none", "--trials", "3")
    study = command(lab, runs, "tune", recipe, *options, *slow, "--detach", "--quiet").strip()
    first = [RunDir(runs / f"{study}-{number}") for number in (0, 1)]
    wait_for(
        lambda: all(run.events.exists() and b'"checkpoint_saved"' in run.events.read_bytes() for run in first), "two"
    )
    spared = lab.run("squeue", "-h", "-o", "%B").stdout.split() if packed else []
    victim = next(node for node in lab.nodes if lab.task_pids(node) and node not in spared)
    lab.crash_node(victim)
    try:
        command(lab, runs, "wait", study)
        found = json.loads(command(lab, runs, "status", study, "--json"))
        assert [(one["state"], one["step"]) for one in found["trials"]] == [("done", 2700)] * 3
        assert all((done := audit(run)) and done.clean for run in all_runs(runs))
        begun = [
            event.step
            for run in all_runs(runs)
            for event in event_log.read(run.events)
            if isinstance(event, AttemptStarted)
        ]
        assert begun.count(0) == 3 and len(begun) > 3, "what was on the node goes on from its checkpoint"
    finally:
        lab.start_node(victim)
        lab.wait_for_state(victim, "idle")
