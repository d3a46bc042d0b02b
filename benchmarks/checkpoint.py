"""What a checkpoint costs: how long the training stands still, how much slower the steps are meanwhile, how long until the state
is on the disk, and how long it takes to load; against `torch.save` and DCP's `async_save` with a kept stager."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from side_by_side import BIN, PROGRAMS, Row, scratch, table, torchrun

from dtrain.checkpoint.file_writer import FileWriter, WeightsRange
from dtrain.checkpoint.kept_buffer import KeptBuffer
from dtrain.checkpoint.tensor_file import TensorEntry, TensorFile
from dtrain.record import event_log, events
from dtrain.record.folder import RunDir, all_runs
from dtrain.record.sample_ledger import LedgerFile

SAVES, EVERY, WARM_STEPS = 4, 12, 3
STEPS = SAVES * EVERY + WARM_STEPS
LIMIT_SECONDS = 600
BLOCK = 4 << 20
RANGE = 4 << 20
ROUNDS = 5


@dataclass(frozen=True)
class Measured:
    """Of one run; seconds."""

    stall: float
    written: float
    """From the begin of a save to the state on the disk; 0.0 where it was not seen."""
    slower: float
    """Median step while a checkpoint is written by the median of the others."""


def ours(folder: Path, megabytes: int, workers: int, device: str) -> tuple[Measured, RunDir]:
    """A default recipe, with the one thread a worker that torchrun sets."""
    recipe = folder / "large.yaml"
    recipe.write_text(
        f"task: {PROGRAMS}/large_state.py:Large\nparams: {{megabytes: {megabytes}}}\nstrategy: ddp\n"
        f"resources: {{workers: {workers}, device: {device}, cpus_per_worker: 1}}\ntrain: {{steps: {STEPS}, global_batch: {8 * workers}}}\n"
        f"checkpoint: {{every_steps: {EVERY}, keep: 1}}\n"
    )
    _run([str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")], folder)
    run = all_runs(folder / "runs")[-1]
    saved = [event for event in event_log.read(run.events) if isinstance(event, events.CheckpointSaved)][:SAVES]
    ledger = LedgerFile(run.ledger(1, 0))
    moments = [entry.time for entry in ledger.read(0, len(ledger))]
    windows = [(event.time - event.seconds, event.time) for event in saved]
    stall = statistics.median(event.stall_seconds for event in saved[1:])
    written = statistics.median(event.seconds for event in saved[1:])
    return Measured(stall, written, _slower(moments, windows, stall)), run


def theirs(folder: Path, kind: str, megabytes: int, workers: int, device: str) -> Measured:
    """The loop by hand."""
    out = folder / kind
    out.mkdir()
    os.environ["OMP_NUM_THREADS"] = "1"
    arguments = [str(out), kind, str(megabytes), str(STEPS), str(EVERY), "cuda" if device == "gpu" else "cpu"]
    _run(torchrun("large_state.py", workers, arguments=arguments), folder)
    saves = [tuple(map(float, line.split())) for line in (out / "saves-0").read_text().splitlines()]
    stall = statistics.median(end - begin for begin, end in saves[1:])
    return Measured(stall, 0.0, 0.0)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def _slower(moments: list[float], windows: list[tuple[float, float]], stall: float) -> float:
    """The step right after a save holds its stall, which is counted apart."""
    inside: list[float] = []
    outside: list[float] = []
    for begin, end in itertools.pairwise(moments[WARM_STEPS:]):
        started = [saved for saved, _ in windows if begin <= saved < end]
        during = any(begin < done and end > saved for saved, done in windows)
        (inside if during else outside).append(end - begin - (stall if started else 0.0))
    return statistics.median(inside) / statistics.median(outside)


def writes(folder: Path, size: int) -> tuple[float, float]:
    """Seconds until the writing process has this much memory on the disk, hashed and looked through, and until a plain write of as
    many bytes is there; medians of writes in turn, since the disk has good and bad moments."""
    buffer = KeptBuffer(TensorFile(b"", (TensorEntry("bytes", "U8", (size,)),)))
    count = size // RANGE // 3  # the model is a third of the state
    ranges = [WeightsRange(f"{number}", number * RANGE, RANGE, "F32") for number in range(count)]
    writer, block = FileWriter(), os.urandom(BLOCK)
    pairs = [(_process(writer, buffer, folder, ranges), _plain(folder, size, block)) for _ in range(1 + ROUNDS)][1:]
    return statistics.median(ours for ours, _ in pairs), statistics.median(theirs for _, theirs in pairs)


def _process(writer: FileWriter, buffer: KeptBuffer, folder: Path, ranges: list[WeightsRange]) -> float:
    began = time.perf_counter()
    writer.write(buffer, folder / "written", ranges)
    seconds = time.perf_counter() - began
    (folder / "written").unlink()
    return seconds


def _plain(folder: Path, size: int, block: bytes) -> float:
    began = time.perf_counter()
    with open(folder / "plain", "wb", buffering=0) as file:
        for _ in range(size // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    (folder / "plain").unlink()
    return seconds


def loaded(run: RunDir, megabytes: int) -> tuple[float, float]:
    """Seconds to load the last checkpoint, and to read its bytes."""
    folder = max(run.checkpoints.glob("step-*"))
    command = [sys.executable, f"{PROGRAMS}/large_state.py", "load", str(folder), str(megabytes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    ours, reading = done.stdout.split()[-2:]
    return float(ours), float(reading)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[300, 1000])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    options = parser.parse_args()
    stalls, others = [], []
    for megabytes, workers in itertools.product(options.megabytes, options.workers):
        what = f"{megabytes} MB, {workers} worker{'s' * (workers > 1)}"
        with scratch() as name:
            folder = Path(name)
            mine, run = ours(folder, megabytes, workers, options.device)
            plain = theirs(folder, "torch_save", megabytes, workers, options.device)
            beside = theirs(folder, "async_save", megabytes, workers, options.device)
            size = sum(path.stat().st_size for path in max(run.checkpoints.glob("step-*")).iterdir())
            write, disk = writes(folder, size)
            load, reading = loaded(run, megabytes)
        stalls += [
            Row(f"{what}, against `torch.save`", mine.stall, plain.stall, round(1 / 15, 3)),
            Row(f"{what}, against `async_save`", mine.stall, beside.stall, 1.0),
        ]
        others += [
            Row(
                f"{what}: the write, against a plain one with fsync",
                write,
                disk,
                1.25,
                f"while it trains {mine.written:.2g} s",
            ),
            Row(f"{what}: a step during a write, against the others", mine.slower, 1.0, 1.03),
            Row(f"{what}: load, against reading the bytes", load, reading, 1.2),
        ]
    print(table("The training stands still for", "peer", stalls))
    print()
    print(table("Until the state is safe, meanwhile, and back", "peer", others))


if __name__ == "__main__":
    main()
