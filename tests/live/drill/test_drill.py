"""Drills by real runs, in both frameworks: what is kept, what is broken, and what is left when somebody interrupts one."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, RECIPES, dtrain, process_tree, running, start, wait_for

from dtrain.common import environment
from dtrain.drill.fault import Fault, encode
from dtrain.drill.operation_difference import found, logs
from dtrain.record import event_log
from dtrain.record.events import AttemptStarted
from dtrain.record.folder import RunDir

TINY = str(PROGRAMS / "tiny.yaml")
SHORT = ("--steps", "16")


def drilled(*arguments: str, runs: Path, check: int = 0) -> dict[str, Any]:
    """What a drill found."""
    found: dict[str, Any] = json.loads(dtrain("drill", *arguments, "--json", "--runs", str(runs), check=check).stdout)
    return found


def by_fault(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its rows, each of which kept its promises."""
    assert found["kept"], [row["broken"] for row in (found["undisturbed"], *found["faults"])]
    assert [row["verdict"] for row in found["faults"]] == ["kept"] * len(found["faults"])
    return {row["fault"]: row for row in found["faults"]}


def test_pytorch_keeps_its_promises_under_faults_and_the_page_says_so(tmp_path: Path) -> None:
    page = tmp_path / "drill.html"
    faults = "kill,exit,nan,disk-full,supervisor,corrupt-checkpoint,kill@10:0+kill@build:1,kill@reduced,kill@in-memory,supervisor@renamed,network-cut@collective,network-delay"
    slow = ("--set", "params.pause=0.02")  # a commit is seen before the next one
    rows = by_fault(drilled(TINY, *SHORT, *slow, "--only", faults, "--html", str(page), runs=tmp_path))
    ends = {fault: (row["classes"], row["restarts_charged"], row["end"].split(",")[0]) for fault, row in rows.items()}
    assert ends == {
        "kill": (["killed"], 1, "bit-equal"),
        "exit": (["bug"], 0, "stopped"),
        "nan": (["bug"], 0, "stopped"),
        "disk-full": ([], 0, "bit-equal"),
        "supervisor": ([], 0, "bit-equal"),
        "corrupt-checkpoint": (["killed"], 1, "bit-equal"),
        "kill@10:0+kill@build:1": (["killed", "killed"], 2, "bit-equal"),
        "kill@reduced": (["killed"], 1, "bit-equal"),
        "kill@in-memory": (["killed"], 1, "bit-equal"),
        "supervisor@renamed": ([], 0, "bit-equal"),
        "network-cut@collective": (["cascade"], 1, "bit-equal"),
        "network-delay": ([], 0, "bit-equal"),
    }
    assert rows["kill"]["detected_seconds"] < rows["kill"]["next_step_seconds"]
    assert "kill" in page.read_text() and "every promise was kept under 13 faults in 12 runs" in page.read_text()
    assert not list(tmp_path.glob("drill-*/*/checkpoints/[!.]*")), "a drill keeps no weights"
    assert json.loads(dtrain("ps", "--json", "--runs", str(tmp_path)).stdout) == [], (
        "its runs are in a folder of their own"
    )
    assert (
        "while every rank still ran: look at the network"
        in next(tmp_path.glob("drill-*/network-cut-*/events.jsonl")).read_text()
    )
    run = next(tmp_path.glob("drill-*/corrupt-checkpoint-*"))
    assert "checkpoint_quarantined" in (run / "events.jsonl").read_text()
    assert "dtrain drill: one bit" in "".join(path.read_text() for path in run.glob("logs/rank-*.log"))


def test_tensorflow_keeps_its_promises_under_faults(tmp_path: Path) -> None:
    recipe = str(PROGRAMS / "contract_tensorflow.yaml")
    rows = by_fault(drilled(recipe, *SHORT, "--only", "kill,nan,shm-full", "--workers", "2", runs=tmp_path))
    assert [row["end"].split(",")[0] for row in rows.values()] == ["bit-equal", "stopped", "bit-equal"]
    told = next(tmp_path.glob("drill-*/shm-full-*/events.jsonl")).read_text()
    assert "there are no in-memory checkpoints: No space left on device" in told


def test_horovod_keeps_its_promises_under_faults(tmp_path: Path) -> None:
    rows = by_fault(drilled(str(RECIPES / "digits_horovod.yaml"), *SHORT, "--only", "kill,network-cut", runs=tmp_path))
    assert [(row["classes"], row["end"]) for row in rows.values()] == [
        (["killed"], "bit-equal"),
        (["cascade"], "bit-equal"),
    ]


def test_a_job_that_is_not_the_same_after_a_restart_breaks_a_promise(tmp_path: Path) -> None:
    options = ("--set", "task=forgetful.py:Forgetful", "--only", "kill@9:1", "--explain")
    found = drilled(TINY, *SHORT, *options, runs=tmp_path, check=1)
    (row,) = found["faults"]
    assert (row["verdict"], row["end"], found["kept"]) == ("BROKEN", "not bit-equal", False)
    (broken,) = row["broken"]
    resumed, line = 9 - row["steps_lost"], line_of('== "1" else')
    assert f"they part at step {resumed + 1}" in broken
    # What an attempt went on from in memory is written after its first step, what it loads from the disk two steps later.
    assert re.search(rf"the checkpoints part at step ({resumed + 1}|{resumed + 2}): ", broken)
    assert re.search(
        rf"that differs \(both run once more\): step \d+, rank 0, aten.mul.Tensor at forgetful.py:{line}", broken
    )


def test_the_operation_that_differs_is_named_with_the_users_line(tmp_path: Path) -> None:
    """A loss that depends on the attempt, on one of two ranks of a sharded model."""
    options = ("--set", "task=forgetful.py:ForgetfulRank", "--only", "kill@9:1", "--explain", "--strategy", "fsdp")
    (row,) = drilled(TINY, *SHORT, *options, runs=tmp_path, check=1)["faults"]
    (broken,) = row["broken"]
    place = f"forgetful.py:{line_of('1.0 if first else')}"
    named = rf"the first operation that differs \(both run once more\): step (7|8|9|10), rank 1, aten\.mul\.Tensor at {place} \(forward pass of shard 2\)"
    assert re.search(rf"{named}, called with 1\.001, undisturbed with 1\.0, and the same tensors", broken), broken


@pytest.mark.parametrize("strategy", [("ddp",), ("ddp", "--set", "train.exact=true"), ("fsdp",)], ids=" ".join)
def test_no_operation_differs_after_a_restart_that_changes_nothing(tmp_path: Path, strategy: tuple[str, ...]) -> None:
    """The first step of an attempt does more than others: that is no difference, and what it does is logged to the end."""
    options = ("--only", "kill@9:1", "--strategy", *strategy, "--json", "--runs", str(tmp_path))
    dtrain("drill", TINY, *SHORT, *options, DTRAIN_DRILL_OPERATIONS="6:12")
    kill, undisturbed = (RunDir(next(tmp_path.glob(f"drill-*/{name}-*"))) for name in ("kill", "undisturbed"))
    resumed = event_log.read(kill.events)
    steps = [event.step for event in resumed if isinstance(event, AttemptStarted)]
    assert steps[-1] in range(6, 10)
    assert {entry.step for entry in logs(kill)[1][9]} == {9}
    assert len(logs(undisturbed)[0][9]) > 50
    assert found(kill, undisturbed, range(6, 12)) == "run once more, no operation of steps 7 to 12 differs"


def line_of(text: str) -> int:
    """The line of the forgetful task that has this in it."""
    lines = (PROGRAMS / "forgetful.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_a_script_is_struck_after_a_time_and_starts_again(tmp_path: Path) -> None:
    found = drilled(str(RECIPES / "script.yaml"), "--only", "kill,nan", runs=tmp_path)
    kill, nan = found["faults"]
    assert (kill["verdict"], kill["classes"], kill["exit_code"]) == ("kept", ["killed"], 0)
    assert nan["verdict"] == "not applicable"
    assert kill["schedule"].partition(":")[0].endswith("s")


def test_no_recipe_injects_faults(tmp_path: Path) -> None:
    told = f"env.{environment.HOOKS}={json.dumps(encode((Fault('kill', 1, 'step', 3),)))}"
    refused = dtrain("run", TINY, "--set", told, "--runs", str(tmp_path), check=2)
    assert f"{environment.HOOKS} is set by the launcher" in refused.stderr


def test_ctrl_c_ends_the_run_under_way_and_shows_what_was_drilled(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    options = ("--only", "kill@8:1,slow@3:0", "--steps", "200")
    with start(TINY, *options, runs=tmp_path, command="drill", TMPDIR=str(temporary)) as live:
        log = wait_for(lambda: next(iter(tmp_path.glob("drill-*/slow-*/logs/drill.log")), None), "the second fault")
        live._run = RunDir(log.parents[1])
        live.pids_seen |= process_tree(live.process.pid)
        assert len(live.pids_seen) > 4
        os.kill(live.process.pid, signal.SIGINT)
        out = live.finish(code=130)
    assert "interrupted: every promise was kept under 1 fault" in out
    assert not running(live.pids_seen)
    assert not list(temporary.iterdir())
    assert log.exists()
