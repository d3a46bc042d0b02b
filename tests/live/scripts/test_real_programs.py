"""Programs as other people write them, unchanged: the same numbers as under their own launchers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live import PATIENCE_SECONDS, PROGRAMS, Live, dtrain, finished, start, wait_for

TORCHRUN_SECONDS = 150
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]


def recipe(folder: Path, program: str, *arguments: object) -> str:
    """A recipe for two workers of a program."""
    path = folder / "r.yaml"
    path.write_text(
        f"script: {PROGRAMS / program}\nargs: {json.dumps(list(map(str, arguments)))}\nresources: {{workers: 2}}\n"
    )
    return str(path)


def result(output: str) -> dict[str, Any]:
    """What rank 0 printed at its end."""
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def under_torchrun(program: str, *arguments: object, tries: int = 2) -> dict[str, Any]:
    """The same program under the peer; it hung once on a busy machine, and is then started once more."""
    command = [*TORCHRUN, str(PROGRAMS / program), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=TORCHRUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its workers
            out, err = process.communicate()
            assert tries > 1, f"torchrun hangs: {err}"
            return under_torchrun(program, *arguments, tries=tries - 1)
    assert process.returncode == 0, err
    return result(out)


def test_operations_of_accelerate(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "script: {module: accelerate.test_utils.scripts.test_ops}\nresources: {workers: 2}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    assert "testing sending tensors across devices" in live.output(0)


def killed_after_a_checkpoint(folder: Path, state: Path) -> Live:
    with start(recipe(folder, "hf_trainer.py", state, 0.2), runs=folder / "runs") as live:
        live.pid(1)
        wait_for(lambda: (state / "checkpoint-8" / "trainer_state.json").exists(), "its own checkpoint")
        live.kill(1)
        live.finish()
    return live


def test_a_trainer_of_hugging_face_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    live = killed_after_a_checkpoint(tmp_path, tmp_path / "state")
    assert [event["kind"] for event in live.events("failure_occurred")] == ["killed"]
    assert result(live.output(0)) == under_torchrun("hf_trainer.py", tmp_path / "undisturbed", 0)


def test_lightning(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "lightning_ddp.py", tmp_path), runs=tmp_path / "runs")
    assert result(live.output(0)) == under_torchrun("lightning_ddp.py", tmp_path)


def test_fit_of_keras_3_on_many_workers_fails_as_everywhere_and_is_explained(tmp_path: Path) -> None:
    live = finished(recipe(tmp_path, "keras_fit.py"), runs=tmp_path / "runs", code=1)
    failure = live.events("failure_occurred")[0]
    assert failure["kind"] == "bug"
    assert failure["message"].startswith("Keras 3's model.fit does not work under MultiWorkerMirroredStrategy")
    assert "TF_USE_LEGACY_KERAS=1" in failure["message"]
    assert len(failure["message"]) < 400


def by_hand_with_tf_config(program: str) -> dict[str, Any]:
    """What a program prints on two workers that were started with TF_CONFIG by hand."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, other)]
    workers = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(config), "TF_USE_LEGACY_KERAS": "1"}
        command = [sys.executable, str(PROGRAMS / program)]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [worker.communicate(timeout=PATIENCE_SECONDS)[0] for worker in workers]
    return result(outputs[0])


def test_fit_of_keras_2_on_many_workers(tmp_path: Path) -> None:
    dtrain("init", "--from", str(PROGRAMS / "keras_fit.py"), str(tmp_path / "new"))
    live = finished(str(tmp_path / "new" / "keras_fit.yaml"), runs=tmp_path / "runs")
    assert result(live.output(0)) == by_hand_with_tf_config("keras_fit.py")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_model_of_transformers_as_a_task(strategy: str, tmp_path: Path) -> None:
    """Its tied weights and its output object; the losses are those of a loop by hand over whole batches."""
    (tmp_path / "r.yaml").write_text(
        f"task: {PROGRAMS / 'transformers_task.py'}:Text\nstrategy: {strategy}\nresources: {{workers: 2}}\n"
        "train: {steps: 6, global_batch: 8, shuffle: false, log_every: 1}\n"
    )
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    by_hand = subprocess.run(
        [sys.executable, str(PROGRAMS / "transformers_task.py"), "6", "8"], capture_output=True, text=True, check=True
    )
    losses = live.losses()
    assert [losses[step] for step in sorted(losses)] == pytest.approx(result(by_hand.stdout)["losses"], rel=1e-5)


LOCAL_DDP = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

def main():
    dist.init_process_group("gloo")
    model = DistributedDataParallel(torch.nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
    dist.destroy_process_group()

for _ in range(5):  # each is a chance for torch to deadlock when `model` is freed
    main()
print("RESULT", '"ended"')
"""


def test_a_model_that_is_local_to_a_function_does_not_block_its_end(tmp_path: Path) -> None:
    (tmp_path / "local.py").write_text(LOCAL_DDP)
    text = "script: local.py\nresources: {workers: 2}\nrecovery: {restarts: 0, hang_seconds: 20}\n"
    (tmp_path / "r.yaml").write_text(text)
    live = finished(str(tmp_path / "r.yaml"), runs=tmp_path / "runs")
    assert all("RESULT" in live.output(rank) for rank in (0, 1))
