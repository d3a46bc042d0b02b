"""A sweep with a limit at once is a study that compares nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from live import PROGRAMS, dtrain, wait_for
from studies import begin, has_lines, kill, seen

from dtrain.study import folder

TINY = str(PROGRAMS / "tiny.yaml")
STEPS = ("--set", "train.steps=10", "--set", "resources.workers=1")


def without_optuna(path: Path) -> dict[str, Any]:
    """An environment in which importing Optuna fails, as where it is not installed."""
    path.mkdir()
    (path / "optuna.py").write_text("raise ImportError('not installed')")
    return {"PYTHONPATH": str(path)}


def test_a_sweep_needs_no_optuna(tmp_path: Path) -> None:
    there, runs = without_optuna(tmp_path / "none"), ("--runs", str(tmp_path / "runs"))
    dtrain("submit", TINY, "--sweep", "params.width=4,8,16", "--at-most", "2", *STEPS, *runs, **there)
    (study,) = folder.all_studies(tmp_path / "runs")
    assert [run.job().params["width"] for run in sorted(study.trial_runs(), key=lambda run: run.id)] == [4, 8, 16]
    assert "3 of 3 trials" in dtrain("status", study.id, *runs, **there).stdout
    assert (
        "Optuna, which is not installed"
        in dtrain("tune", TINY, "--over", "params.width=4,8", "--metric", "loss", *runs, check=2, **there).stderr
    )


def test_a_sweep_that_was_killed_goes_on_with_what_it_had(tmp_path: Path) -> None:
    study = begin(tmp_path, *STEPS, "--over", "params.width=4,8,16,32", "--sampler", "grid", recipe=TINY)
    for lines in (1, 2, 5):
        wait_for(partial(has_lines, study, lines), f"{lines} lines in the journal")
        kill(study)
        with study.journal.open("a") as file:
            file.write('{"number": 3, "sta')
        dtrain("resume", str(study.path), "--detach")
    dtrain("wait", str(study.path))
    found = seen(study)["trials"]
    assert [(one["state"], one["step"], one["values"]) for one in found] == [
        ("done", 10, {"params.width": width}) for width in (4, 8, 16, 32)
    ]
