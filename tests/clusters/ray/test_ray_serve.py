"""What `dtrain export --layout ray-serve` writes is deployed on a real Ray and asked over HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import Live, dtrain, wait_for
from processes import free_ports
from ray_lab import RayLab, ray_missing
from sklearn.datasets import load_digits

pytestmark = pytest.mark.skipif(
    ray_missing() is not None or importlib.util.find_spec("grpc_reflection") is None, reason="needs ray[serve]"
)
SERVE = str(Path(sys.executable).with_name("serve"))


def ask(port: int, body: object) -> tuple[int, Any]:
    """Status and answer of one request."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", json.dumps(body).encode())
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def test_an_exported_model_answers_over_http_on_ray(digits_of_torch: Live, tmp_path: Path) -> None:
    dtrain("export", str(digits_of_torch.run.path), "--layout", "ray-serve", "--output", "digits", cwd=tmp_path)
    images, labels = load_digits(return_X_y=True)
    chosen = np.arange(len(labels)) % 5 == 0
    rows = (images[chosen] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    (port,) = free_ports(1)
    with RayLab.start(nodes=1, cpus=2, gpus=0) as lab:
        environment = os.environ | lab.environment
        listen = ("--http-host", "127.0.0.1", "--http-port", str(port))
        subprocess.run(
            [SERVE, "start", "--address", lab.address, *listen], env=environment, check=True, capture_output=True
        )
        with (tmp_path / "serve.log").open("w") as log:
            command = [SERVE, "run", "--address", lab.address, "--working-dir", ".", "serve_app:app"]
            serving = subprocess.Popen(command, cwd=tmp_path / "digits", env=environment, stdout=log, stderr=log)
            try:
                one = {"inputs": {"input": rows[:1].tolist()}}
                wait_for(lambda: ask(port, one)[0] == 200 or serving.poll() is not None, "an answer", 120)
                assert serving.poll() is None, (tmp_path / "serve.log").read_text()
                parts = [{"inputs": {"input": part.tolist()}} for part in np.array_split(rows, 12)]
                with ThreadPoolExecutor(12) as pool:  # at the same time, so that they are answered in batches
                    answers = list(pool.map(lambda part: ask(port, part), parts))
                assert {status for status, _ in answers} == {200}
                scores = np.concatenate([answer["outputs"]["output"] for _, answer in answers])
                accuracy = float((scores.argmax(1) == labels[chosen]).mean())
                expected = digits_of_torch.events("evaluation")[-1]["values"]["accuracy"]
                assert accuracy == pytest.approx(expected, abs=1e-6)
                for wrong, said in (
                    ({"inputs": {"pixels": [1]}}, "expected"), ({"inputs": {"input": [[1, 2]]}}, "has the shape [1, 2]"), ([], "expected"),
                ):  # fmt: skip
                    status, answer = ask(port, wrong)
                    assert status == 400
                    assert said in answer
            finally:
                serving.kill()
                serving.wait()
