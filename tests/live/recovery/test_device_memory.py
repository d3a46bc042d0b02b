"""A restart waits for the memory that the killed workers held on their GPUs, and says who holds it if it is not freed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from gpus import gpus
from live import Live, started

PROGRAM = """
import os, time
print("up", flush=True)
while os.environ["DTRAIN_ATTEMPT"] == "1":
    time.sleep(0.05)
"""
HELD = 30 << 30


def recipe(folder: Path, wait_seconds: float) -> list[str]:
    (folder / "hold.py").write_text(PROGRAM)
    text = (
        f"{{script: hold.py, resources: {{device: gpu}}, track: [], recovery: {{device_wait_seconds: {wait_seconds}}}}}"
    )
    (folder / "hold.yaml").write_text(text)
    return ["run", str(folder / "hold.yaml")]


def of_memory(live: Live) -> list[str]:
    """The warnings of memory that is not free."""
    return [event["text"] for event in live.events("user_warned") if "less free" in event["text"]]


def test_workers_of_a_restart_begin_when_the_memory_of_the_dead_is_free(tmp_path: Path) -> None:
    with gpus(tmp_path, 2) as fakes, started(recipe(tmp_path, 60), tmp_path, fakes.environment()) as live:
        live.pid(0)
        fakes.change(0, used=HELD)
        live.kill(0)
        live.wait_event("attempt_started", attempt=2)
        time.sleep(1.0)  # nothing tells that an agent waits
        freed = time.time()
        fakes.change(0, used=1 << 30)
        assert live.wait_event("workers_started", attempt=2)["time"] >= freed
        live.finish()
    assert not of_memory(live)


def test_memory_that_stays_taken_is_named_with_its_holder_and_the_workers_start(tmp_path: Path) -> None:
    with gpus(tmp_path, 1) as fakes, started(recipe(tmp_path, 0.3), tmp_path, fakes.environment()) as live:
        live.pid(0)
        fakes.change(0, used=HELD, processes=[[os.getpid(), HELD]])
        live.kill(0)
        live.finish()
    (warning,) = of_memory(live)
    assert warning.startswith(f"GPU 0 ({fakes.uuids[0]}) has 31.1 GB less free than before")
    assert f"(process {os.getpid()}, 32.2 GB)" in warning


def test_a_gpu_that_does_not_answer_holds_up_nothing(tmp_path: Path) -> None:
    with gpus(tmp_path, 1) as fakes, started(recipe(tmp_path, 60), tmp_path, fakes.environment()) as live:
        live.pid(0)
        fakes.change(0, lost=True)
        live.kill(0)
        live.finish()
