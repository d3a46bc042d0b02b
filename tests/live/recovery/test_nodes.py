"""Nodes with a past: a node that failures began on twice is left out, now and later, and what that cannot do without it says so."""

from __future__ import annotations

import json
from pathlib import Path

from live import PROGRAMS, Live, dtrain, start

from dtrain.record.sample_ledger import LedgerFile

RECIPE = str(PROGRAMS / "contract_torch.yaml")
TWO = (
    "--workers", "2", "--nodes", "2", "--set", "train.steps=60", "--set", "params.pause=0.02", "--set", "checkpoint.every_steps=5",
)  # fmt: skip


def kill_twice(live: Live, rank: int) -> None:
    for attempt in (1, 2):
        live.wait_step(12 * attempt, attempt)
        live.kill(rank, attempt)


def nodes_of(live: Live) -> list[list[str]]:
    return [event["nodes"] for event in live.events("attempt_started")]


def listed(runs: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(dtrain("nodes", "--runs", str(runs), "--json").stdout)
    return found


def test_a_node_with_two_failures_is_left_by_the_run_and_by_later_ones_until_it_is_forgotten(tmp_path: Path) -> None:
    with start(RECIPE, *TWO, runs=tmp_path) as live:
        kill_twice(live, 1)
        out = live.finish()
    assert nodes_of(live) == [["node0", "node1"], ["node0", "node1"], ["node0", "node2"]]
    (avoided,) = live.events("node_avoided")
    assert avoided["node"] == "node1"
    assert [text.partition(" at step")[0] for text in avoided["evidence"]] == ["killed of rank 1"] * 2
    assert "node1 is avoided for 23 h" in out or "node1 is avoided for 1 d" in out or "node1 is avoided for 24 h" in out
    (row,) = listed(tmp_path)
    assert (row["node"], row["avoided"], len(row["failures"])) == ("node1", True, 2)  # type: ignore[arg-type]
    said = dtrain("nodes", "--runs", str(tmp_path)).stdout
    assert said.startswith("node1 (local)  avoided for ")
    assert f"attempt 2 of {live.run.id}: killed by SIGKILL" in said
    with start(RECIPE, *TWO, "--set", "train.steps=5", runs=tmp_path) as later:
        later.finish()
    assert nodes_of(later) == [["node0", "node2"]]
    assert dtrain("nodes", "--runs", str(tmp_path), "--forget", "node1").stdout == "node1: forgotten\n"
    assert listed(tmp_path) == []
    with start(RECIPE, *TWO, "--set", "train.steps=5", runs=tmp_path) as last:
        last.finish()
    assert nodes_of(last) == [["node0", "node1"]]
    unknown = dtrain("nodes", "--runs", str(tmp_path), "--forget", "node7", check=2).stderr
    assert "no failure began on a node 'node7'" in unknown


def test_an_error_of_the_users_and_one_failure_alone_do_not_count(tmp_path: Path) -> None:
    bug = ("--set", "params.fail_at=4", "--set", "params.fail_rank=1")
    for _ in range(2):
        with start(str(PROGRAMS / "tiny.yaml"), *TWO[:4], *bug, runs=tmp_path) as live:
            live.finish(code=1)
    assert dtrain("nodes", "--runs", str(tmp_path)).stdout.startswith("no failure began on a node of the runs in ")
    with start(RECIPE, *TWO, "--set", "recovery.avoid_hours=0", runs=tmp_path) as live:
        kill_twice(live, 1)
        live.finish()
    assert nodes_of(live) == [["node0", "node1"]] * 3, "not if the recipe does not want it"
    assert listed(tmp_path) == []


def test_a_broken_device_counts_against_its_node_and_is_named(tmp_path: Path) -> None:
    broken = ("--set", "params.fail_at=4", "--set", "params.fail_rank=1", "--set", "params.fail_how=device")
    with start(str(PROGRAMS / "tiny.yaml"), *TWO[:4], *broken, runs=tmp_path) as live:
        live.finish(code=3)
    first = live.events("failure_occurred")[0]
    assert (first["kind"], first["node"]) == ("device", "node1")
    assert first["message"].startswith(
        "GPU 0 or its driver failed, not the code: RuntimeError: CUDA error: uncorrectable ECC"
    )
    assert [row["node"] for row in listed(tmp_path)] == ["node1"]


def test_this_machine_alone_is_never_left(tmp_path: Path) -> None:
    with start(RECIPE, "--workers", "2", *TWO[4:], runs=tmp_path) as live:
        kill_twice(live, 1)
        live.finish()
    assert nodes_of(live) == [["node0"]] * 3
    assert live.events("node_avoided") == live.events("user_warned") == []


def test_every_node_is_looked_at_before_the_first_step(tmp_path: Path) -> None:
    with start(RECIPE, *TWO, "--set", "train.steps=5", runs=tmp_path) as live:
        live.finish()
    checked = live.events("node_checked")
    assert sorted(event["node"] for event in checked) == ["node0", "node1"]
    assert checked[0]["versions"] == checked[1]["versions"]
    assert checked[0]["versions"].keys() == {"python", "dtrain", "torch"}
    first_step = next(iter(LedgerFile(live.run.ledger(1, 0)).read(0, 1))).time
    assert max(event["time"] for event in checked) < first_step
    assert live.events("user_warned") == []
    assert [path.name for path in live.run.path.iterdir() if path.name.startswith(".check")] == []
    with start(
        RECIPE, *TWO, "--set", "train.steps=5", "--set", "resources.check_nodes=false", runs=tmp_path
    ) as without:
        without.finish()
    assert without.events("node_checked") == []
