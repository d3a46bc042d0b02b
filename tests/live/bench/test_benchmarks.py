"""The benchmarks that no other test would notice breaking: they run, at a small size, and find what they measure."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize("kind", ["torchrun", "all", "task"])
def test_the_cost_of_the_supervisor_is_measured(kind: str) -> None:
    command = [sys.executable, f"{BENCHMARKS}/scale.py", "--row", "--kinds", kind, "--nodes", "3", "--seconds", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    cells = [cell.strip() for cell in done.stdout.strip().strip("|").split("|")]
    assert cells[:3] == [kind, "3", "24"]
    numbers = [float(cell) for cell in cells[3:] if cell]
    assert len(numbers) == (5 if kind == "task" else 4)
    processor, memory, *moments = numbers
    assert processor > 0 and memory > 0 and all(moment >= 0 for moment in moments), "moments are rounded to 1 ms"


def test_the_cost_of_trackers_is_measured() -> None:
    command = [sys.executable, f"{BENCHMARKS}/trackers.py", "--pairs", "2", "--seconds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180, cwd="/")
    assert done.returncode == 0, done.stderr
    _, _, row = done.stdout.split("\n\n")[0].splitlines()
    without, with_them, ratio, minute, _, start = (cell.strip(" *%") for cell in row.strip("|").split("|"))
    assert all(float(number) > 0 for number in (without, with_them, ratio))
    assert all(math.isfinite(float(number)) for number in (minute, start)), "differences of two runs"


def test_a_soak_ends_as_the_undisturbed_run() -> None:
    command = [
        sys.executable,
        f"{BENCHMARKS}/soak.py",
        "--minutes",
        "0.3",
        "--fault-every",
        "6",
        "--pause",
        "0.02",
        "--alone",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights and samples as undisturbed" in done.stdout
    assert 0 < float(done.stdout.split("effective share ")[1].split()[0]) < 1.1
