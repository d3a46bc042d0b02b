"""Things go wrong for real in a PyTorch run on this machine, and it ends as if they had not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, killed, start, stopped, wait_for

RECIPE = str(PROGRAMS / "tiny.yaml")
SLOW = ("--set", "params.pause=0.01")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return finished(RECIPE, runs=tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs with a blank"


def assert_as_if_nothing_happened(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    live.assert_clean_audit(steps=60)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [3, 27])
def test_a_killed_worker_leaves_no_trace_in_the_weights(runs: Path, undisturbed: Live, rank: int, step: int) -> None:
    with start(RECIPE, *SLOW, runs=runs) as live:
        live.wait_step(step, rank=rank)
        live.kill(rank)
        out = live.finish()
    assert f"rank {rank} killed by SIGKILL" in out
    assert live.events("failure_occurred", kind="killed", rank=rank)
    assert_as_if_nothing_happened(live, undisturbed)


def test_kills_during_saves_and_in_every_attempt_leave_no_trace(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, "--set", "checkpoint.every_steps=1", runs=runs) as live:
        for attempt in range(1, 5):
            live.wait_step(12 * attempt, attempt=attempt, rank=attempt % 2)
            live.kill(attempt % 2, attempt)
        live.finish()
    assert len(live.events("failure_occurred")) == 4
    assert live.weights() == undisturbed.weights()
    live.assert_clean_audit(steps=60)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_a_worker_that_ends_itself_with_a_signal_is_started_again(runs: Path, undisturbed: Live, number: int) -> None:
    with start(RECIPE, *SLOW, runs=runs) as live:
        live.wait_step(20)
        if number == signal.SIGTERM:
            live.kill(1, number=signal.SIGTERM)  # which a worker leaves to its supervisor
        else:
            live.kill(1, number=number)
        live.finish()
    assert len(live.events("failure_occurred")) == (number != signal.SIGTERM)
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_killed_agent_is_replaced(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, runs=runs) as live:
        live.wait_step(25)
        os.kill(live.agent_pid(), signal.SIGKILL)
        live.finish()
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert_as_if_nothing_happened(live, undisturbed)


def test_two_agents_are_two_nodes(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, "--nodes", "2", runs=runs) as live:
        live.wait_step(25)
        os.kill(live.agent_pid(1), signal.SIGKILL)
        live.finish()
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_killed_supervisor_leaves_nothing_behind_and_the_run_can_be_resumed(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, runs=runs) as live:
        live.wait_step(25)
        live.see()
        live.process.kill()
        live.process.communicate()
        live.assert_gone()
    assert "lost" in dtrain("ps", "--runs", str(runs)).stdout
    dtrain("resume", "last", "--runs", str(runs))
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_stopped_worker_is_a_hang_whose_stacks_are_in_the_logs(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, "--set", "recovery.hang_seconds=2", runs=runs) as live:
        live.wait_step(25)
        live.kill(1, number=signal.SIGSTOP)
        live.finish()
    failure = live.events("failure_occurred")[0]
    assert (failure["kind"], failure["rank"]) == ("hang", 1)
    for rank in (0, 1):
        assert "most recent call first" in live.run.rank_log(rank).read_text()
    assert_as_if_nothing_happened(live, undisturbed)


def test_a_worker_that_waits_for_ever_is_a_hang(runs: Path) -> None:
    options = ("--set", "params.fail_how=wait", "--set", "params.fail_at=22", "--set", "recovery.hang_seconds=2")
    rarely = ("--set", "checkpoint.every_steps=60", "--set", "checkpoint.memory_every_steps=0")
    live = finished(RECIPE, *options, *rarely, "--set", "recovery.restarts=1", runs=runs, code=3)
    assert {event["kind"] for event in live.events("failure_occurred")} == {"hang"}
    assert "in fail\n" in live.run.rank_log(0).read_text()


def test_a_worker_that_spins_is_a_hang(runs: Path) -> None:
    """It uses all the CPU time there is, as a rank in a stuck collective on a GPU does."""
    options = ("--set", "params.fail_how=spin", "--set", "params.fail_at=40", "--set", "recovery.hang_seconds=3")
    live = finished(
        RECIPE, *options, "--set", "recovery.restarts=0", "--set", "checkpoint.every_steps=60", runs=runs, code=3
    )
    (failure,) = live.events("failure_occurred")
    assert (failure["kind"], failure["rank"]) == ("hang", 0)
    assert "made no step and no output for 3 s" in failure["message"]
    assert "in fail\n" in live.run.rank_log(0).read_text()


def test_a_bug_stops_at_once_with_its_traceback_rank_and_step(runs: Path) -> None:
    with start(RECIPE, "--set", "params.fail_at=20", "--set", "params.fail_rank=1", runs=runs) as live:
        out = live.finish(code=1)
    assert len(live.events("attempt_started")) == 1
    failure = live.events("failure_occurred")[0]
    line = 1 + (PROGRAMS / "tiny.py").read_text()[: (PROGRAMS / "tiny.py").read_text().index("raise ValueError")].count(
        "\n"
    )
    assert (failure["kind"], failure["rank"], failure["where"]) == ("bug", 1, f"tiny.py:{line} in fail")
    assert failure["step"] == 9  # two shards a step, and the first step is done once more to warm up
    assert "ValueError: the loss of this batch is nonsense" in out
    assert "tiny.py" in out


def test_out_of_memory_is_not_retried_and_says_what_to_lower(runs: Path) -> None:
    with start(RECIPE, "--set", "params.fail_at=20", "--set", "params.fail_how=memory", runs=runs) as live:
        out = live.finish(code=1)
    assert "lower train.global_batch" in out
    assert len(live.events("attempt_started")) == 1


def test_bad_luck_gets_one_confirming_retry(runs: Path) -> None:
    live = finished(RECIPE, "--set", "params.fail_at=10", "--set", "params.fail_how=chance", runs=runs, code=1)
    assert [event["kind"] for event in live.events("failure_occurred")] == ["chance", "chance"]


def test_a_crash_at_the_same_step_twice_ends_the_run(runs: Path) -> None:
    live = finished(
        RECIPE, "--set", "params.fail_at=10", "--set", f"params.fail_how={int(signal.SIGSEGV)}", runs=runs, code=3
    )
    assert [event["kind"] for event in live.events("failure_occurred")] == ["crash", "crash"]
    assert "twice" in live.events("run_ended")[0]["reason"]


def test_ctrl_c_saves_and_says_how_to_go_on(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, "--set", "checkpoint.every_steps=1000", runs=runs) as live:
        live.wait_step(17)
        live.process.send_signal(signal.SIGINT)
        out = live.finish(code=4)
    assert "dtrain resume" in out
    saved = live.events("checkpoint_saved")
    assert len(saved) == 1
    assert saved[0]["step"] >= 17
    live.assert_clean_audit(steps=saved[0]["step"])
    dtrain("resume", live.run.id[:-2], "--runs", str(runs))
    assert_as_if_nothing_happened(live, undisturbed)


def test_ctrl_c_twice_stops_at_once(runs: Path) -> None:
    with start(RECIPE, "--set", "params.pause=0.2", runs=runs) as live:
        live.wait_step(3)
        live.process.send_signal(signal.SIGINT)
        live.wait_event("stop_requested")
        live.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        live.finish(code=130)
    assert time.monotonic() - began < 10
    assert live.events("stop_requested", now=True)


def test_a_run_resumes_on_another_number_of_workers_with_the_same_samples_and_losses(
    runs: Path, undisturbed: Live
) -> None:
    options = ("--set", "params.norm=false")
    alone = finished(RECIPE, *options, runs=runs / "one")
    live = stopped(RECIPE, *options, *SLOW, runs=runs, step=25)
    for workers in ("4", "1"):
        with start("last", "--workers", workers, runs=runs, command="resume") as again:
            again._run = live.run
            wait_for(lambda: live.events("attempt_started")[-1]["workers"] == int(workers), "the next attempt")  # noqa: B023
            if workers == "4":
                again.wait_step(40, attempt=2)
                again.process.send_signal(signal.SIGINT)
            again.finish(code=4 if workers == "4" else 0)
    live.assert_clean_audit(steps=60)
    assert [event["workers"] for event in live.events("attempt_started")] == [2, 4, 1]
    for step, loss in alone.losses().items():
        assert live.losses()[step] == pytest.approx(loss, rel=1e-5)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(runs: Path, undisturbed: Live) -> None:
    with start(RECIPE, *SLOW, runs=runs) as live:
        live.wait_event("checkpoint_saved", step=30)
        live.process.kill()
        live.process.communicate()
    newest = max(live.run.checkpoints.glob("step-*"))
    victim = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    with open(victim, "r+b") as file:
        file.seek(victim.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    out = dtrain("resume", str(live.run.path)).stdout
    assert "set aside" in out
    assert live.events("checkpoint_quarantined")[0]["folder"] == f"damaged-{newest.name}"
    assert_as_if_nothing_happened(live, undisturbed)


@contextmanager
def on_a_small_disk(runs: Path, size: str) -> Iterator[Live]:
    """A run whose checkpoint folder is a file system of its own of this size."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with start(RECIPE, "--set", "params.pause=0.03", "--set", "params.width=20000", runs=runs) as live:
        assert os.system(f"mount -t tmpfs -o size={size} tmpfs '{live.run.checkpoints}'") == 0
        try:
            yield live
        finally:
            os.system(f"umount -l '{live.run.checkpoints}'")


def test_a_full_disk_is_said_and_training_goes_on(runs: Path, undisturbed: Live) -> None:
    """The checkpoint folder is a tiny file system of its own, which only the newest checkpoints fit on."""
    with on_a_small_disk(runs, "3m") as live:
        live.wait_event("checkpoint_failed")
        live.finish(code=3)
    assert "No space left" in live.events("checkpoint_failed")[0]["error"]
    assert len(live.events("attempt_started")) == 1
    assert "could not be saved" in live.events("run_ended")[0]["reason"]


def test_older_checkpoints_make_room_for_a_newer_one(runs: Path) -> None:
    """The checkpoint folder has room for three, and the recipe keeps three while a fourth is written."""
    with on_a_small_disk(runs, "10m") as live:
        text = live.finish()
        kept = sorted(path.name for path in live.run.checkpoints.glob("step-*"))
    assert not live.events("checkpoint_failed")
    assert kept[-1].startswith("step-00000060")
    assert len(kept) == 2
    assert "the disk is full: the checkpoint of step 40, which checkpoint.keep would keep, was deleted" in text


def test_a_function_gets_the_same_recovery(runs: Path) -> None:
    recipe = runs.parent / "function.yaml"
    text = (PROGRAMS / "tiny.yaml").read_text().replace("task: tiny.py:Tiny", f"function: {PROGRAMS}/tiny.py:train")
    recipe.write_text(text)
    alone = finished(str(recipe), runs=runs / "alone")
    live = killed(str(recipe), "--set", "params.pause=0.02", runs=runs, step=33, rank=0)
    assert live.weights() == alone.weights()
    live.assert_clean_audit(steps=60)


def test_a_running_run_goes_on_at_another_size(runs: Path) -> None:
    with start(RECIPE, "--set", "params.pause=0.05", runs=runs) as live:
        live.wait_step(12)
        wrong = dtrain("resize", live.run.id, "--workers", "3", "--runs", str(runs), check=2)
        assert "3 workers" in wrong.stderr
        done = dtrain("resize", live.run.id, "--workers", "1", "--runs", str(runs))
        assert f"dtrain attach {live.run.id}" in done.stdout
        live.finish(code=4)
    dtrain("wait", live.run.id, "--runs", str(runs))
    assert [event["workers"] for event in live.events("attempt_started")] == [2, 1]
    assert not live.events("failure_occurred")
    live.assert_clean_audit(steps=60)
    over = dtrain("resize", live.run.id, "--workers", "2", "--runs", str(runs), check=2)
    assert f"Go on with it: dtrain resume {live.run.id} --workers 2" in over.stderr
