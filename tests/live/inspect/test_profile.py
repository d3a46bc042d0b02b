"""`dtrain profile` of runs that go on: the same steps on every rank, in files that the tools open."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from live import PROGRAMS, Live, dtrain, start

SLOW = (
    "--workers",
    "2",
    "--set",
    "params.pause=0.02",
    "--set",
    "train.steps=100000",
    "--set",
    "checkpoint.every_steps=1000",
)
RECIPES = {
    "ddp": (str(PROGRAMS / "contract_torch.yaml"), "--strategy", "ddp"),
    "fsdp": (str(PROGRAMS / "contract_torch.yaml"), "--strategy", "fsdp"),
    "multi_worker_mirrored": (str(PROGRAMS / "contract_tensorflow.yaml"), "--strategy", "multi_worker_mirrored"),
}


def stopped(live: Live) -> None:
    dtrain("stop", str(live.run.path), "--now")
    live.finish(code=4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_both_ranks_profile_the_same_steps(strategy: str, tmp_path: Path) -> None:
    with start(*RECIPES[strategy], *SLOW, runs=tmp_path) as live:
        live.wait_step(20)
        name = str(live.run.path)
        found = json.loads(dtrain("profile", name, "--rank", "0", "--rank", "1", "--steps", "3", "--json").stdout)
        assert sorted(one["rank"] for one in found) == [0, 1]
        assert len({one["step"] for one in found}) == 1
        step = found[0]["step"]
        assert step > 20
        for one in found:
            assert "Self CPU time total" in one["operations"]
            (path,) = (live.run.path / one["file"]).parent.glob(f"rank-0000{one['rank']}*")
            with gzip.open(path) as file:
                names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
            assert names.count("Optimizer.step#AdamW.step") == 3, "three steps, no more and no less"
        live.wait_step(step + 10)
        shown = dtrain("profile", name, "--steps", "1").stdout
        assert f"rank 0, steps {live.events('steps_profiled')[-1]['step']} to " in shown
        assert re.search(r"\w::\w", shown), shown
        stopped(live)


def test_a_profile_of_tensorflow_is_in_a_folder_that_tensorboard_opens(tmp_path: Path) -> None:
    with start(*RECIPES["multi_worker_mirrored"], *SLOW, runs=tmp_path) as live:
        live.wait_step(5)
        found = json.loads(dtrain("profile", str(live.run.path), "--steps", "2", "--json").stdout)
        assert list((live.run.path / found[0]["file"]).rglob("*.xplane.pb"))
        stopped(live)


def test_who_cannot_be_profiled_is_told_why(tmp_path: Path) -> None:
    with start(*RECIPES["ddp"], *SLOW, runs=tmp_path) as live:
        live.wait_step(5)
        refused = dtrain("profile", str(live.run.path), "--rank", "7", check=2).stderr
        assert "has no rank 7: it has ranks 0 to 1" in refused
        stopped(live)
    assert "is not running: stopped" in dtrain("profile", str(live.run.path), check=2).stderr
    (tmp_path / "script.yaml").write_text("script: sleep\nargs: [60]\n")
    with start(str(tmp_path / "script.yaml"), runs=tmp_path / "scripts") as live:
        live.wait_event("workers_started")
        assert "runs a script, which has a loop of its own" in dtrain("profile", str(live.run.path), check=2).stderr
        dtrain("stop", str(live.run.path), "--now")
        live.process.communicate()


def test_a_run_that_ends_before_its_profile_says_so(tmp_path: Path) -> None:
    options = ("--workers", "2", "--set", "params.pause=0.05", "--set", "train.steps=60")
    with start(*RECIPES["ddp"], *options, runs=tmp_path) as live:
        live.wait_step(5)
        refused = dtrain("profile", str(live.run.path), "--steps", "1000", check=2).stderr
        assert "ended before all of these steps were done" in refused
        live.finish()
