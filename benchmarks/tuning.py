"""One study of the digits, side by side: dtrain, Optuna with a loop by hand, and Ray Tune with ASHA; the same space, seed and number of trials."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import BIN, PROGRAMS, scratch

from dtrain.record import event_log
from dtrain.record.events import RunEnded, TrainingStarted

STEPS, EVERY, BATCH = 810, 30, 64
RECIPE = f"""\
name: digits
task: {PROGRAMS / "tuned_digits.py"}:Digits
train: {{steps: {STEPS}, global_batch: {BATCH}, evaluate_every: {EVERY}, log_every: {EVERY}}}
track: []
preload: [sklearn.datasets]
tune:
  over: {{params.lr: log(1e-5, 1e-1), params.hidden: [16, 64, 256], params.dropout: uniform(0, 0.5)}}
  metric: accuracy
  early_stop: asha
"""


def said(command: list[str], folder: Path) -> str:
    """Run a command that must succeed; returns what it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def with_dtrain(folder: Path, trials: int, seed: int, *, killed: bool = False) -> dict[str, Any]:
    """The study with dtrain; `killed`: its process is killed half way, and the study resumed."""
    (folder / "digits.yaml").write_text(RECIPE)
    words = ["digits.yaml", "--trials", str(trials), "--seed", str(seed), "--runs", "runs", "--detach", "--quiet"]
    study = said([str(BIN / "dtrain"), "tune", *words], folder).strip()
    more = ["--runs", "runs"]
    if killed:
        journal = folder / "runs" / study / "trials.journal"
        while not journal.exists() or journal.read_text().count('"op_code":4') < trials // 2:
            time.sleep(0.05)
        claims = sorted((folder / "runs" / study / "supervisors").iterdir())
        os.kill(int(claims[-1].read_text().split()[1]), signal.SIGKILL)
        said([str(BIN / "dtrain"), "resume", study, "--detach", *more], folder)
    said([str(BIN / "dtrain"), "wait", study, *more], folder)
    found = json.loads(said([str(BIN / "dtrain"), "status", study, "--json", *more], folder))["trials"]
    values = [one["value"] for one in found if one["value"] is not None]
    return {"best": max(values), "trials": len(found), "steps": sum(one["step"] for one in found)}


def by_hand(program: str, folder: Path, trials: int, seed: int) -> dict[str, Any]:
    """The study with one of the programs."""
    out = said([sys.executable, str(PROGRAMS / program), str(trials), str(seed), str(folder / program)], folder)
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


def starts_and_cost(folder: Path) -> str:
    """Eight trials, two at once, none stopped early: the time from the supervisor's first event to the first step, of all trials but the
    first two, and the wall time over half of the sum of their training times."""
    (folder / "digits.yaml").write_text(RECIPE)
    words = [
        "--trials",
        "8",
        "--at-once",
        "2",
        "--early-stop",
        "none",
        "--seed",
        "1",
        "--runs",
        "runs",
        "--detach",
        "--quiet",
    ]
    began = time.time()
    study = said([str(BIN / "dtrain"), "tune", "digits.yaml", *words], folder).strip()
    said([str(BIN / "dtrain"), "wait", study, "--runs", "runs"], folder)
    trials = [list(event_log.read(folder / "runs" / f"{study}-{number}" / "events.jsonl")) for number in range(8)]
    starts, training = [], 0.0
    for number, history in enumerate(trials):
        (begun,) = [event.time for event in history if isinstance(event, TrainingStarted)]
        (end,) = [event for event in history if isinstance(event, RunEnded)]
        training += end.report["training"] + end.report["evaluation"]
        starts += [begun - history[0].time] if number > 1 else []
    first = min(history[0].time for history in trials)
    wall = max(history[-1].time for history in trials) - first
    return (
        f"start of a trial after the first two: {min(starts):.2f} to {max(starts):.2f} s, median {sorted(starts)[len(starts) // 2]:.2f} s; "
        f"wall time {wall:.1f} s ({first - began:.1f} s before the first), training {training:.1f} s in all: "
        f"{wall / (training / 2):.2f} times half of it; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--starts", action="store_true", help="Measure only starts of trials, and what two at once cost."
    )
    given = parser.parse_args()
    if given.starts:
        with scratch() as name:
            print(starts_and_cost(Path(name)))
        return
    print("| | wall time (s) | trials | steps trained | best accuracy |\n|---|---|---|---|---|")
    with scratch() as name:
        for side in ("dtrain", "dtrain, killed half way and resumed", "Optuna, a loop by hand", "Ray Tune, ASHA"):
            folder = Path(name) / side.replace(" ", "_")
            folder.mkdir()
            began = time.perf_counter()
            if side.startswith("dtrain"):
                found = with_dtrain(folder, given.trials, given.seed, killed="killed" in side)
            else:
                program = "tune_with_optuna.py" if "Optuna" in side else "tune_with_ray.py"
                found = by_hand(program, folder, given.trials, given.seed)
            took = time.perf_counter() - began
            print(f"| {side} | {took:.1f} | {found['trials']} | {found['steps']} | {found['best']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
