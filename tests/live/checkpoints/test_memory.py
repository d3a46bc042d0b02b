"""In-memory checkpoints of real runs: what they survive, and what they do not cost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, finished, start

from dtrain.common import environment
from dtrain.drill.fault import Fault, encode

RECIPE = str(PROGRAMS / "tiny.yaml")
KERAS = str(PROGRAMS / "contract_tensorflow.yaml")
EVERY_FIFTH = (
    "--set", "params.pause=0.01", "--set", "checkpoint.memory_every_steps=5", "--set", "checkpoint.every_steps=1000",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Live:
    return finished(RECIPE, "--set", "checkpoint.memory_every_steps=0", runs=tmp_path_factory.mktemp("undisturbed"))


def assert_went_on_from_memory(live: Live, least: int, attempt: int = 2) -> None:
    begun = live.events("attempt_started")[attempt - 1]
    assert begun["memory"]
    assert begun["step"] >= least
    assert begun["step"] % 5 == 0
    assert not (live.run.path / "memory").exists()


def assert_as_if_nothing_happened(live: Live, undisturbed: Live) -> None:
    assert live.weights() == undisturbed.weights()
    assert live.losses() == undisturbed.losses()
    live.assert_clean_audit(steps=60)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_copy(
    tmp_path: Path, undisturbed: Live, rank: int
) -> None:
    with start(RECIPE, *EVERY_FIFTH, runs=tmp_path) as live:
        live.wait_step(23)
        live.kill(rank)
        live.finish()
    assert_went_on_from_memory(live, 20)
    assert_as_if_nothing_happened(live, undisturbed)


def test_every_attempt_goes_on_from_the_one_before(tmp_path: Path, undisturbed: Live) -> None:
    """The second kill comes before the second attempt has a copy of its own, the third after it."""
    with start(RECIPE, *EVERY_FIFTH, runs=tmp_path) as live:
        live.wait_step(23)
        live.kill(0)
        live.pid(1, attempt=2)
        live.kill(1, attempt=2)
        live.wait_step(43, attempt=3)
        live.kill(0, attempt=3)
        live.finish()
    assert_went_on_from_memory(live, 20)
    assert_went_on_from_memory(live, 20, attempt=3)
    assert_went_on_from_memory(live, 40, attempt=4)
    assert_as_if_nothing_happened(live, undisturbed)


def test_it_outlives_the_zygote(tmp_path: Path, undisturbed: Live) -> None:
    with start(RECIPE, *EVERY_FIFTH, runs=tmp_path) as live:
        live.wait_step(23)
        zygote = int(Path(f"/proc/{live.pid(0)}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(zygote, signal.SIGKILL)
        live.finish()
    assert_went_on_from_memory(live, 20)
    assert_as_if_nothing_happened(live, undisturbed)


def test_what_two_nodes_have_is_put_together(tmp_path: Path, undisturbed: Live) -> None:
    with start(RECIPE, *EVERY_FIFTH, "--nodes", "2", runs=tmp_path) as live:
        live.wait_step(23)
        live.kill(1)
        live.finish()
    assert_went_on_from_memory(live, 20)
    assert_as_if_nothing_happened(live, undisturbed)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_copy_of_a_lost_nodes_part_is_at_its_partner(tmp_path: Path, strategy: str) -> None:
    options = (RECIPE, "--strategy", strategy, "--set", "params.norm=false")
    with start(*options, *EVERY_FIFTH, "--set", "params.pause=0.05", "--nodes", "2", runs=tmp_path / "lost") as live:
        live.wait_step(33)
        os.kill(live.agent_pid(1), signal.SIGKILL)
        live.finish()
    assert live.events("failure_occurred")[0]["kind"] == "node lost"
    assert_went_on_from_memory(live, 20)
    assert_as_if_nothing_happened(live, finished(*options, "--nodes", "2", runs=tmp_path / "undisturbed"))


def test_a_run_that_ends_with_an_error_has_its_newest_state_on_disk(tmp_path: Path, undisturbed: Live) -> None:
    live = finished(RECIPE, *EVERY_FIFTH, "--set", "params.fail_at=48", runs=tmp_path, code=1)
    assert [event["step"] for event in live.events("checkpoint_saved")] == [20]
    assert not list(live.run.checkpoints.glob(".staging*"))
    dtrain("resume", "last", "--runs", str(tmp_path), "--set", "params.fail_at=null")
    assert live.weights() == undisturbed.weights()


def test_a_worker_that_ends_with_a_fault_is_believed_only_what_its_digest_proves(
    tmp_path: Path, undisturbed: Live
) -> None:
    with start(RECIPE, *EVERY_FIFTH, runs=tmp_path) as live:
        live.wait_step(23)
        live.kill(1, number=signal.SIGSEGV)
        live.finish()
    assert_went_on_from_memory(live, 15)
    assert_as_if_nothing_happened(live, undisturbed)


def test_too_little_memory_is_said_and_training_goes_on(tmp_path: Path, undisturbed: Live) -> None:
    live = finished(RECIPE, *EVERY_FIFTH, "--set", "checkpoint.memory_limit=0.001MB", runs=tmp_path)
    (warning,) = {event["text"] for event in live.events("user_warned") if "in-memory" in event["text"]}
    assert "checkpoint.memory_limit" in warning
    assert not live.events("memory_interval")
    assert live.weights() == undisturbed.weights()


@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker_mirrored"])
def test_tensorflow_has_them_too(tmp_path: Path, strategy: str) -> None:
    options = (KERAS, "--strategy", strategy, "--workers", "2", "--set", "checkpoint.every_steps=1000")
    with start(*options, "--set", "checkpoint.memory_every_steps=5", runs=tmp_path / "killed") as live:
        live.wait_step(13)
        live.kill(0)
        live.finish()
    assert_went_on_from_memory(live, 10)
    assert live.weights() == finished(*options, runs=tmp_path / "undisturbed").weights()


def test_a_function_has_them_too(tmp_path: Path) -> None:
    options = (str(PROGRAMS / "tiny.yaml"), "--set", "task=null", "--set", "function=tiny.py:train")
    with start(*options, *EVERY_FIFTH, runs=tmp_path / "killed") as live:
        live.wait_step(23)
        live.kill(1)
        live.finish()
    assert_went_on_from_memory(live, 20)
    assert live.weights() == finished(*options, runs=tmp_path / "undisturbed").weights()


def test_the_interval_follows_from_what_a_copy_costs(tmp_path: Path) -> None:
    live = finished(RECIPE, "--set", "params.pause=0.005", "--set", "train.steps=300", runs=tmp_path)
    told = live.events("memory_interval")
    assert told
    assert all(event["every_steps"] > 8 for event in told)
    assert all(event["bytes"] > 0 for event in told)


def test_a_kill_before_the_last_state_is_on_disk_does_not_lose_it(tmp_path: Path, undisturbed: Live) -> None:
    """The next attempt goes on from memory, has no step left to do, and saves all the same."""
    faults = {environment.HOOKS: "dtrain.drill.injection=" + encode((Fault("kill", 0, "writing", 60),))}
    with start(RECIPE, *EVERY_FIFTH, runs=tmp_path, **faults) as live:
        live.finish()
    assert_went_on_from_memory(live, 60)
    assert_as_if_nothing_happened(live, undisturbed)
