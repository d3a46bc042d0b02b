"""Benches by real runs: both frameworks, eager and compiled, failures, interruptions, and what `auto` learns."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, RECIPES, dtrain, process_tree, running, start, wait_for

TINY = str(PROGRAMS / "tiny.yaml")
SHORT = ("--steps", "10")
pytestmark = pytest.mark.xdist_group("bench")  # benches of one user wait for each other


def measured(*arguments: str, runs: Path) -> list[dict[str, Any]]:
    """The rows of a bench."""
    done = dtrain("bench", *arguments, "--json", "--runs", str(runs))
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return rows


def test_the_same_model_in_both_frameworks_is_compared_out_of_the_box(tmp_path: Path) -> None:
    recipes = [str(RECIPES / f"{name}.yaml") for name in ("digits_ddp", "digits_mirrored")]
    page, picture = tmp_path / "bench.html", tmp_path / "bench.png"
    more = ("--html", str(page), "--png", str(picture), "--steps", "30", "--runs", str(tmp_path))
    out = dtrain("bench", *recipes, *more).stdout
    table = [line.split()[0] for line in out.splitlines() if line.startswith(("recipe", "digits_"))]
    assert table[:3] == ["recipe", "digits_ddp", "digits_mirrored"]
    assert "held-out loss  held-out accuracy" in out
    assert "  dtrain run " in out.splitlines()[-3]
    assert "digits_mirrored" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    compared = dtrain("compare", "bench-digits_ddp", "bench-digits_mirrored", "--json", "--runs", str(tmp_path)).stdout
    both = json.loads(compared)
    assert [set(run["metrics"]) for run in both["runs"]] == [{"loss", "held-out loss", "held-out accuracy"}] * 2
    assert not any(key.startswith(("params", "train", "resources")) for key in both["differences"])
    assert not list(tmp_path.glob("*/checkpoints/*")), "a bench keeps no weights"


def test_eager_and_static_steps_stand_beside_each_other(tmp_path: Path) -> None:
    over = ("--over", "strategy.run_eagerly=false,true", "--steps", "20", "--set", "resources.workers=1")
    static, eager = measured(str(RECIPES / "digits_mirrored.yaml"), *over, runs=tmp_path)
    assert [row["label"] for row in (static, eager)] == ["run_eagerly=false", "run_eagerly=true"]
    assert all(row["compile_seconds"] > 0 for row in (static, eager))
    assert static["loss"] == pytest.approx(eager["loss"], rel=1e-4)
    logs = ["eagerly" in (tmp_path / row["runs"][0] / "logs" / "rank-00000.log").read_text() for row in (static, eager)]
    assert logs == [False, True]


def test_auto_takes_what_was_measured_until_the_code_changes(tmp_path: Path) -> None:
    for name in ("tiny.yaml", "tiny.py"):
        shutil.copy(PROGRAMS / name, tmp_path)
    recipe, runs = str(tmp_path / "tiny.yaml"), tmp_path / "runs"

    def planned(*more: str) -> tuple[str, str]:
        shown = json.loads(dtrain("plan", recipe, "--strategy", "auto", *more, "--runs", str(runs), "--json").stdout)
        return shown["strategy"], shown["reason"]

    assert "by rule; nothing was measured here" in planned()[1]
    found = json.loads(
        dtrain("bench", recipe, *SHORT, "--over", "strategy=fsdp,ddp", "--json", "--runs", str(runs)).stdout
    )
    rows, recommended = found["rows"], found["recommendation"]["label"]
    assert all(row["memory_bytes"] > 0 and row["first_step_seconds"] > 0 for row in rows)
    strategy, reason = planned()
    assert strategy == recommended
    assert "dtrain bench measured" in reason
    assert "by rule" in planned("--workers", "1")[1]
    assert "(" not in planned("--set", "strategy.measured=false")[1]
    (tmp_path / "tiny.py").write_text((tmp_path / "tiny.py").read_text() + "\n")
    assert "what was measured is outdated: the file of tiny.py:Tiny has changed" in planned()[1]


def test_a_run_that_fails_is_a_row_and_not_the_end(tmp_path: Path) -> None:
    over = ("--over", "strategy=mirrored,ddp", "--over", "resources.workers=1,64")
    failed, impossible, good, too_many = measured(TINY, *SHORT, *over, runs=tmp_path)
    assert "TensorFlow strategies train a keras.Model" in failed["problem"]
    assert "cannot be shared evenly by 64 workers" in impossible["problem"]
    assert "cannot be shared evenly by 64 workers" in too_many["problem"]
    assert good["samples_per_second"] > 0
    only = dtrain("bench", TINY, *SHORT, "--over", "strategy=mirrored", "--runs", str(tmp_path), check=1)
    assert "nothing was measured" in only.stdout
    unreachable = ("--set", "storage.url=file:///proc/no")
    gone = dtrain("bench", TINY, *SHORT, *unreachable, "--runs", str(tmp_path), check=3)
    assert "tiny: cannot write file:///proc/no" in gone.stdout


def test_ctrl_c_prints_what_has_been_measured_and_another_bench_waits_meanwhile(tmp_path: Path) -> None:
    over = ("--over", "train.seed=1,2", "--set", "params.pause=0.05")
    with start(TINY, "--steps", "40", *over, runs=tmp_path, command="bench") as live:
        wait_for(lambda: len(list(tmp_path.glob("bench-*"))) > 1, "the second run")
        with start(TINY, *SHORT, runs=tmp_path / "other", command="bench") as other:
            assert other.process.stdout is not None
            lines = iter(other.process.stdout.readline, "")
            waits = next(line for line in lines if "another bench" in line)
            assert f"process {live.process.pid})" in waits
            live.see()
            live.process.send_signal(signal.SIGINT)
            out = live.finish(code=130)
            other.finish()
    assert "[1/2] seed=1: " in out
    assert not list(tmp_path.glob("bench-*/checkpoints/*")), "a bench keeps no weights"
    assert "interrupted: the rest was not measured" in out
    assert [line for line in out.splitlines() if line.startswith("2  ") and line.endswith("not measured")]


def test_nothing_is_left_of_a_bench_that_is_killed(tmp_path: Path) -> None:
    with start(TINY, "--steps", "1000", "--set", "params.pause=0.05", runs=tmp_path, command="bench") as live:
        live.wait_step(3)
        pids = process_tree(live.process.pid)
        live.process.kill()
        live.process.communicate()
        wait_for(lambda: not running(pids), "the end of its processes", 15)
    assert not running(pids)
    again = dtrain("bench", TINY, *SHORT, "--runs", str(tmp_path))
    assert "another bench" not in again.stdout + again.stderr, "the lock is free"
