"""Looking into runs that go on, from another terminal: whatever they run, and without disturbing them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from live import DTRAIN, PROGRAMS, Live, dtrain, start, wait_for

RECIPE = str(PROGRAMS / "tiny.yaml")
SLOW = ("--set", "params.pause=0.05", "--set", "train.steps=2000")
WAITING = "import time\n\ndef waits_for_food():\n    time.sleep(1000)\n\nprint('up', flush=True)\nwaits_for_food()\n"


def stacks(live: Live, *options: str) -> str:
    return dtrain("stacks", "last", *options, "--runs", str(live.runs)).stdout


def script(folder: Path, text: str, *more: str) -> str:
    """A recipe for a script that prints `up`."""
    (folder / "program.py").write_text(text)
    recipe = folder / "recipe.yaml"
    recipe.write_text("\n".join(["name: looked-at", "script: program.py", "resources: {workers: 2}", *more]))
    return str(recipe)


def end(live: Live) -> None:
    dtrain("stop", "--now", "last", "--runs", str(live.runs))
    live.process.communicate()


def test_all_ranks_of_a_task_are_seen_and_it_goes_on(tmp_path: Path) -> None:
    with start(RECIPE, *SLOW, runs=tmp_path) as live:
        live.wait_step(3)
        text = stacks(live)
        assert "main thread" in text
        assert "dtrain/worker/loop.py" in text
        assert "dtrain/worker/main.py" not in text
        assert "in main" in stacks(live, "--whole")
        found = json.loads(stacks(live, "--rank", "1", "--json"))
        assert set(found["ranks"]) == {"1"}
        assert {tuple(thread["ranks"]) for thread in found["threads"]} == {(1,)}
        wait_for(lambda: live.events("progress"), "progress")
        rows = json.loads(dtrain("top", "last", "--json", "--runs", str(tmp_path)).stdout)
        assert [set(row) >= {"rank", "step", "cpu", "memory_megabytes"} for row in rows] == [True, True]
        assert all(row["step"] >= 3 and row["cpu"] is not None for row in rows)
        assert "memory" in dtrain("top", "last", "--runs", str(tmp_path)).stdout
        assert (
            "no such rank runs now" in dtrain("stacks", "last", "--rank", "9", "--runs", str(tmp_path), check=2).stderr
        )
        live.wait_step((live.events("progress")[-1]["step"]) + 5)
        assert not live.events("failure_occurred")
        end(live)
    assert "is not running" in dtrain("stacks", "last", "--runs", str(tmp_path), check=2).stderr


def test_a_rank_that_differs_is_seen_at_once(tmp_path: Path) -> None:
    different = f"import os\n{WAITING}".replace(
        "\nwaits_for", "\nos.environ['RANK'] == '1' and time.sleep(999)\nwaits_for"
    )
    with start(script(tmp_path, different), runs=tmp_path) as live:
        wait_for(lambda: "up" in live.output(0) and "up" in live.output(1), "both ranks")
        text = stacks(live)
        assert 'rank 0: main thread\n  File "' in text
        assert 'rank 1: main thread\n  File "' in text
        assert text.count("in waits_for_food") == 1
        end(live)


def test_somebody_who_looks_again_and_again_does_not_hide_a_hang(tmp_path: Path) -> None:
    hangs = (
        "--set",
        "params.fail_how=wait",
        "--set",
        "params.fail_at=22",
        "--set",
        "recovery.hang_seconds=4",
        "--set",
        "recovery.restarts=0",
    )
    with start(RECIPE, *hangs, runs=tmp_path) as live:
        live.wait_step(10)
        seen = []
        while not live.events("hang_detected"):
            done = dtrain("stacks", "last", "--runs", str(tmp_path), check=None)
            seen.append(done.stdout)
            time.sleep(0.05)
        assert live.events("failure_occurred") or live.wait_event("failure_occurred")
        assert any("in fail" in text for text in seen)
        live.process.communicate()
    assert live.events("failure_occurred")[0]["kind"] == "hang"


def test_two_who_ask_at_once_are_both_answered(tmp_path: Path) -> None:
    with start(RECIPE, *SLOW, runs=tmp_path) as live:
        live.wait_step(3)
        asked = [
            subprocess.Popen(
                [*DTRAIN, "stacks", "last", "--runs", str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd="/"
            )
            for _ in range(3)
        ]
        for one in asked:
            out, _ = one.communicate(timeout=60)
            assert one.returncode == 0
            assert "main thread" in out
        end(live)


def test_a_script_of_another_language_is_seen_and_lives_on(tmp_path: Path) -> None:
    (tmp_path / "loop.sh").write_text("#!/bin/bash\necho up\nsleep 1000\necho down\n")
    (tmp_path / "loop.sh").chmod(0o755)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: shell\nscript: loop.sh\nresources: {workers: 2}\n")
    with start(str(recipe), runs=tmp_path) as live:
        wait_for(lambda: "up" in live.output(0) and "up" in live.output(1), "both ranks")
        text = stacks(live)
        assert "ranks 0, 1: main thread" in text
        assert "sleep: sleeping" in text
        time.sleep(0.5)
        assert not live.events("failure_occurred")
        end(live)


@pytest.mark.parametrize("recipe", ["contract_tensorflow.yaml"])
def test_ranks_of_tensorflow_are_seen(recipe: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    slow = ("--set", "params.pause=0.3", "--workers", "2", "--strategy", "multi_worker_mirrored")
    with start(str(PROGRAMS / recipe), *slow, runs=tmp_path) as live:
        live.wait_step(2)
        found = json.loads(stacks(live, "--json"))
        assert set(found["ranks"]) == {"0", "1"}
        assert any("dtrain/worker/loop.py" in frame for thread in found["threads"] for frame in thread["frames"])
        live.finish()


def test_ranks_of_a_horovod_script_are_seen(tmp_path: Path) -> None:
    pytest.importorskip("horovod")
    text = "import horovod.torch as hvd\nhvd.init()\n" + WAITING.replace("print('up'", "print('up', hvd.rank()")
    with start(script(tmp_path, text, "strategy: {name: script, launcher: horovod}"), runs=tmp_path) as live:
        wait_for(lambda: "up 0" in live.output(0) and "up 1" in live.output(1), "both ranks")
        assert "ranks 0, 1: main thread" in stacks(live)
        end(live)
