"""Peak resident memory of a rank under fsdp, by the number of workers and what the run does, beside the same loop by hand with `fully_shard`.

State is parameters, gradients and AdamW's two moments. The limit is 1.25 of a rank's share of it, the largest block and 64 MB; what the process
has before it makes a model is taken off. A checkpoint has one copy of what it saves (without the gradients) more, in memory shared with the node's agent, which
is shown by itself; `by hand` saves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from side_by_side import BIN, LIMIT_SECONDS, PROGRAMS, scratch, seconds_of, torchrun

PHASES = ("start", "training", "checkpoint", "resume", "end")
CONSTANT_MB = 64
SAVED_STEP, KILLED_STEP, STEPS = 4, 6, 8


def of_rank(file: Path) -> dict[str, float]:
    """The peak of each phase in MB, more than the process had before, from a rank's notes."""
    found: dict[str, float] = defaultdict(float)
    base, attempts = 0.0, 0
    for line in file.read_text().splitlines():
        note = json.loads(line)
        phase, peak = note["phase"], note["peak"]
        if phase == "import":
            base, attempts = peak, attempts + 1
            continue
        if phase == "load":
            phase = "resume" if attempts > 1 else "start"
        found[phase] = max(found[phase], peak - note["shared"] - base)
        found["copy"] = max(found["copy"], note["shared"])
    return dict(found)


def worst(folder: Path) -> dict[str, float]:
    """The most of all ranks."""
    ranks = [of_rank(file) for file in sorted(folder.glob("memory-*.jsonl"))]
    return {phase: max(rank.get(phase, 0.0) for rank in ranks) for rank in ranks for phase in rank}


def ours(folder: Path, workers: int, width: int, blocks: int) -> dict[str, float]:
    """A run that saves, loses a worker, resumes from the disk and ends."""
    out = folder / f"dtrain-{workers}"
    out.mkdir()
    recipe = folder / f"{workers}.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/large.py:Large\nparams: {{folder: {out}, width: {width}, blocks: {blocks}, kill_at: {KILLED_STEP}}}\n"
        f"strategy: {{name: fsdp, wrap: [Block]}}\nresources: {{workers: {workers}, cpus_per_worker: 1}}\ntrack: []\n"
        f"train: {{steps: {STEPS}, global_batch: 64}}\ncheckpoint: {{every_steps: {SAVED_STEP}, memory_every_steps: 0}}\n"
        "recovery: {backoff_seconds: 0}\n"
    )
    seconds_of([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")], folder, 8 * LIMIT_SECONDS)
    return worst(out)


def by_hand(folder: Path, workers: int, width: int, blocks: int) -> dict[str, float]:
    """The loop of the program itself under torchrun."""
    out = folder / f"hand-{workers}"
    out.mkdir()
    arguments = [str(out), str(width), str(blocks), str(SAVED_STEP)]
    command = torchrun("large.py", workers, arguments=arguments)
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return worst(out)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--width", type=int, default=1024, help="a block has 32 · width² bytes of parameters")
    parser.add_argument("--blocks", type=int, default=12)
    options = parser.parse_args()
    block = 32 * options.width**2 / 2**20
    state = 4 * block * options.blocks
    print(f"### Peak of a rank above an empty process, MB: state {state:,.0f}, largest block {block:,.0f}\n")
    print(f"| workers | {' | '.join(PHASES)} | limit | copy of a checkpoint | by hand: start | by hand: training |")
    print("|---" * (len(PHASES) + 5) + "|")
    good = True
    with scratch() as name:
        for workers in options.workers:
            mine = ours(Path(name), workers, options.width, options.blocks)
            theirs = by_hand(Path(name), workers, options.width, options.blocks)
            limit = 1.25 * state / workers + block + CONSTANT_MB
            cells = [f"{mine[phase]:,.0f}" for phase in PHASES]
            good &= max(mine[phase] for phase in PHASES) <= limit
            more = [f"{value:,.0f}" for value in (limit, mine["copy"], theirs["start"], theirs["training"])]
            print(f"| {workers} | {' | '.join([*cells, *more])} |", flush=True)
    sys.exit(not good)


if __name__ == "__main__":
    main()
