"""Runs a graph model of TensorFlow.js in Node, whose packages are found through NODE_PATH."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("tfjs_program.js")


def load(path: str) -> Any:
    """Return a function from input arrays to output arrays, which a process of Node computes."""
    import numpy as np

    node = subprocess.Popen(["node", str(PROGRAM), path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert node.stdin is not None and node.stdout is not None
    to_node, from_node = node.stdin, node.stdout

    def answer() -> Any:
        line = from_node.readline()
        if not line:
            raise RuntimeError(f"Node ended with exit code {node.wait()}")
        given = json.loads(line)
        if "error" in given:
            raise RuntimeError(given["error"])
        return given

    answer()  # it has loaded the model

    def run(inputs: list[Any]) -> list[Any]:
        arrays = [array.astype({"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int32)) for array in inputs]
        sent = [
            {"shape": array.shape, "dtype": str(array.dtype), "data": base64.b64encode(array.tobytes()).decode()}
            for array in arrays
        ]
        to_node.write(json.dumps(sent) + "\n")
        to_node.flush()
        return [
            np.frombuffer(base64.b64decode(one["data"]), one["dtype"]).reshape(one["shape"])
            for one in answer()["outputs"]
        ]

    return run


def versions() -> dict[str, str]:
    """Return the versions of the runtime."""
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    program = "console.log(require('@tensorflow/tfjs-core/package.json').version)"
    tfjs = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True).stdout.strip()
    return {"node": node.removeprefix("v"), "@tensorflow/tfjs-core": tfjs}
