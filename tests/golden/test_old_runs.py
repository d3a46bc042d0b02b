"""Runs that dtrain made at commits 029fa82 and c218d75 are read, resumed, exported and removed by today's."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from live import Live, dtrain, finished

from dtrain import load
from dtrain.record.folder import all_runs

pytestmark = pytest.mark.live


@dataclass(frozen=True)
class Made:
    """What a commit's two runs are known to hold."""

    state: str
    """Of the one that was stopped before step 60."""
    step: int
    """Its last reported one."""
    saved_step: int
    attempt_2_from: int
    """The step that the other one, which was killed once, went on from."""


COMMITS = {"029fa82": Made("done", 40, 40, 28), "c218d75": Made("stopped", 25, 33, 20)}
REPEATED = ("--set", "train.steps=60", "--set", "checkpoint.every_steps=20")
FINISHED_WEIGHTS = "e7f970e1eaf218e7b26c1af1ccfdcb37ed8ed9f7e937371aaf306b2bf52e6f7c"
"""Of the run that was killed once and trained to its end, which the other one would have at step 60, too."""


class Runs:
    """Copies of a commit's two runs: one was stopped before its end at step 60, one was killed at step 30 and finished."""

    def __init__(self, commit: str, folder: Path) -> None:
        shutil.copytree(Path(__file__).with_name(f"runs_{commit}"), folder)
        shutil.copy(Path(__file__).with_name("programs") / "digits_torch.py", folder)
        self.made = COMMITS[commit]
        self.folder = folder
        self.stopped, self.killed = folder / "stopped", folder / "killed"
        for run in (self.stopped, self.killed):
            for name in ("job.json", "recipe.path"):  # the folder of the recipe is another one here
                text = (run / name).read_text()
                (run / name).write_text(text.replace("/golden", str(folder)))

    def dtrain(self, *arguments: str) -> str:
        """What a command prints of the runs in this folder."""
        return dtrain(*arguments, DTRAIN_RUNS=str(self.folder)).stdout


@pytest.fixture(params=COMMITS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Runs:
    return Runs(request.param, tmp_path / "old")


def test_they_are_listed_and_shown(old: Runs) -> None:
    rows = {line.split()[0]: line.split()[1:3] for line in old.dtrain("ps").splitlines()[1:]}
    assert rows == {"stopped": [old.made.state, f"{old.made.step}/60"], "killed": ["done", "60/60"]}
    status = json.loads(old.dtrain("status", str(old.stopped), "--json"))
    assert (status["step"], status["total_steps"], status["saved_step"]) == (old.made.step, 60, old.made.saved_step)
    assert "killed by SIGKILL" in old.dtrain("status", str(old.killed))
    assert f"attempt 2, rank 1, from step {old.made.attempt_2_from}" in old.dtrain(
        "logs", str(old.killed), "--rank", "1"
    )


def test_they_are_reported_and_compared(old: Runs, tmp_path: Path) -> None:
    report = json.loads(old.dtrain("report", str(old.killed), "--json"))
    assert report["failures"][0]["kind"] == "killed"
    old.dtrain("report", str(old.killed), "--html", str(tmp_path / "page.html"))
    assert "killed by SIGKILL" in (tmp_path / "page.html").read_text()
    compared = old.dtrain("compare", str(old.stopped), str(old.killed))
    assert "1.558" in compared, "the loss at step 25 of both"


def test_their_samples_are_audited(old: Runs) -> None:
    for run, steps in ((old.stopped, old.made.saved_step), (old.killed, 60)):
        assert f"{steps} committed steps, {64 * steps} samples: 0 twice, 0 skipped, 0 altered" in old.dtrain(
            "audit", str(run)
        )


def test_the_stopped_one_goes_on_to_the_weights_of_the_other(old: Runs, tmp_path: Path) -> None:
    old.dtrain("resume", str(old.stopped), "--set", "train.until=null")
    live = Live(subprocess.Popen(["true"], text=True), old.folder, {old.killed})
    live.process.wait()
    assert [event["step"] for event in live.events("attempt_started")] == [old.made.saved_step]
    live.assert_clean_audit(steps=60)
    assert live.events("evaluation")[-1]["values"]["loss"] == pytest.approx(0.5197075552410549, rel=1e-4)
    mine, theirs = load(old.stopped), load(old.killed)
    for name, weights in theirs.items():
        np.testing.assert_allclose(mine[name], weights, rtol=1e-3, atol=1e-5, err_msg=name)
    if live.weights() != FINISHED_WEIGHTS:
        shutil.copy(old.killed / "recipe.yaml", old.folder)
        again = finished(str(old.folder / "recipe.yaml"), *REPEATED, runs=tmp_path / "again")
        sums = [{event["step"]: event["weights"] for event in one.events("checkpoint_saved")} for one in (live, again)]
        before = [step for step in sums[0].keys() & sums[1].keys() if step <= old.made.saved_step]
        there = before and all(sums[0][step] == sums[1][step] for step in before)
        same = "this processor sums in the order of those of the old runs"
        assert not (there and again.weights() == FINISHED_WEIGHTS), same


def test_their_weights_are_written_for_other_programs(old: Runs, tmp_path: Path) -> None:
    old.dtrain("weights", str(old.killed), "--to", str(tmp_path / "model.safetensors"))
    old.dtrain("export", str(old.killed), "--to", "pt2", "--output", str(tmp_path / "model.pt2"))
    assert (tmp_path / "model.safetensors").stat().st_size > 10_000
    assert (tmp_path / "model.pt2").stat().st_size > 10_000


def test_they_are_removed(old: Runs) -> None:
    old.dtrain("rm", str(old.stopped), str(old.killed), "--yes")
    assert not list(all_runs(old.folder))
