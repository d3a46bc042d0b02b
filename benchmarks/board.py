"""How soon `dtrain board` shows something in a real browser: a list of many runs, and the curves of a very long one."""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import scratch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import browser
import synthetic_runs

LONG = "long-run"


def measured(chromium: Any, runs: Path) -> tuple[float, float, float]:
    """Seconds of a board that has just been started: until the list, until a curve of the long run, until all of it."""
    command = [sys.executable, "-P", "-m", "dtrain", "board", "--runs", str(runs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    page = chromium.new_page()
    browser.note_first(page, list="#rows tr", curves="#charts canvas")
    page.goto(url)
    listed = browser.first_seen(page, "list")
    page.goto(url.partition("#")[0] + f"#/run/{LONG}")
    begun = time.monotonic()
    page.reload()
    curves = browser.first_seen(page, "curves")
    browser.until(lambda: page.locator("#state").inner_text() == "done", "its whole history", 300)
    whole = time.monotonic() - begun
    page.close()
    process.send_signal(signal.SIGINT)
    process.wait()
    return listed, curves, whole


def main() -> None:
    """Print a row of the table in README.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1_000_000, help="of the long run")
    parser.add_argument("--tries", type=int, default=5)
    options = parser.parse_args()
    with scratch() as name, browser.opened() as chromium:
        folder = Path(name)
        job = synthetic_runs.tiny(folder)
        synthetic_runs.made(folder, job, options.steps, name=LONG)
        for _ in range(options.runs - 1):
            synthetic_runs.made(folder, job, 2000)
        tries = [measured(chromium, folder) for _ in range(options.tries)]
        for number, one in enumerate(tries, start=1):
            print(f"try {number}: list {one[0]:.2f} s, curves {one[1]:.2f} s, whole {one[2]:.1f} s", flush=True)
        listed, curves, whole = (statistics.median(values) for values in zip(*tries, strict=True))
        print(f"| {options.runs:,} runs, one of {options.steps:,} steps | {listed:.2f} | {curves:.2f} | {whole:.1f} |")


if __name__ == "__main__":
    main()
