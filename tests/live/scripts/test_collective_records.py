"""Ranks that hang on GPUs are asked for PyTorch's record of their collectives, and the failure says what it tells.

NCCL's threads, which make a pipe and write the record when something comes through it, are played by the program: the record is the one that
PyTorch keeps of gloo's collectives.
"""

from __future__ import annotations

from pathlib import Path

from gpus import gpus
from live import started

PROGRAM = """
import os, select, threading, time
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _dump_fr_trace

def dump_when_asked():
    pipe = os.environ["TORCH_NCCL_DEBUG_INFO_PIPE_FILE"] + os.environ["RANK"] + ".pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    select.select([reader], [], [])
    assert os.environ["TORCH_INCLUDE_STACK_TRACE"] == "0"
    with open(os.environ["TORCH_FR_DUMP_TEMP_FILE"] + os.environ["RANK"], "wb") as file:
        file.write(_dump_fr_trace(True, False, False))
    time.sleep(1000)

dist.init_process_group("gloo")
threading.Thread(target=dump_when_asked, daemon=True).start()
for number in range(4):
    dist.all_reduce(torch.ones(3, 5))
MORE
"""
MISSING = """
if dist.get_rank() == 1:
    time.sleep(1000)
dist.all_reduce(torch.ones(7))
"""
ANOTHER = """
if dist.get_rank() == 2:
    dist.barrier()
dist.all_reduce(torch.ones(7))
"""


def failure(folder: Path, program: str) -> tuple[int, str]:
    """The rank that is to blame, and the message."""
    (folder / "program.py").write_text(PROGRAM.replace("MORE", program))
    recipe = folder / "r.yaml"
    recipe.write_text(
        "{script: program.py, resources: {device: gpu, workers: 3}, recovery: {hang_seconds: 3, restarts: 0}, track: []}"
    )
    with gpus(folder, 3) as fakes, started(["run", str(recipe)], folder / "runs", fakes.environment()) as live:
        live.finish(3)
    (found,) = live.events("failure_occurred")
    assert found["kind"] == "hang"
    assert sorted(path.name for path in live.run.logs.glob("collectives-*")) == [
        f"collectives-0001-{n}" for n in range(3)
    ]
    return found["rank"], found["message"]


def test_the_record_names_the_collective_and_who_did_not_join_it(tmp_path: Path) -> None:
    rank, message = failure(tmp_path, MISSING)
    assert rank == 1
    assert (
        ": ranks 0, 2 wait in all_reduce number 5 (float32 [7]) of the default group; rank 1 did not join. By their stacks, "
        in message
    )


def test_the_record_names_who_called_another_collective(tmp_path: Path) -> None:
    rank, message = failure(tmp_path, ANOTHER)
    assert rank == 2
    assert (
        "ranks 0, 1 wait in all_reduce number 5 (float32 [7]) of the default group; rank 2 called barrier number 5 there"
        in message
    )
