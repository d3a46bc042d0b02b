"""Run the whole suite as `make test` does: several tests at a time, then those that need quiet, then what failed, once more and alone.

Tests kill processes and nodes at moments that a loaded machine shifts, so a test that failed gets two more tries. Each that needed
one is listed at the end: it is a defect to mend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAILED = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
AT_A_TIME = min(8, 2 * (os.cpu_count() or 1))
"""Twice the processors, since tests wait more than they compute."""
RETRIES = 2
SOME_FAILED, NONE_SELECTED = 1, 5
"""Exit codes of pytest after which it goes on."""


def run(*options: str) -> None:
    """Run pytest; ends this program with its exit code if it could not do its work."""
    code = subprocess.run([sys.executable, "-P", "-m", "pytest", *options], cwd=ROOT, check=False).returncode
    if code not in (0, SOME_FAILED, NONE_SELECTED):
        sys.exit(code)


def failed() -> set[str]:
    """The tests that failed when they were last run."""
    return set(json.loads(FAILED.read_text())) if FAILED.exists() else set()


def main(chosen: list[str]) -> int:
    """Run what is chosen (all tests if nothing is) and say which tests needed another try."""
    run("--cache-clear", "-m", "not quiet", "-n", str(AT_A_TIME), *chosen)
    run("-m", "quiet", *chosen)
    failing, tries = failed(), dict[str, int]()
    for number in range(1, RETRIES + 1):
        if failing:
            print(f"\n--- {len(failing)} failed: try {number} of {RETRIES}, alone ---", flush=True)
            run("--last-failed", *chosen)
            tries |= dict.fromkeys(failing - failed(), number)
            failing = failed()
    for name, number in sorted(tries.items()):
        print(f"flaky: passed at try {number} after it had failed: {name}")
    for name in sorted(failing):
        print(f"failed in {1 + RETRIES} of {1 + RETRIES} tries: {name}")
    return SOME_FAILED if failing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
