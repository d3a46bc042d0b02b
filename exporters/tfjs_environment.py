"""What TensorFlow.js needs, in the user's cache folder: its converter beside the TensorFlow that is installed, and packages of Node.

The converter (tensorflowjs 4.22, the last release) asks for TensorFlow Decision Forests and jax, which ask for an older TensorFlow. For
SavedModels it uses neither: two empty modules stand in for them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dtrain.api.exporter import ExportError

TFJS = "4.22.0"
HUB = "0.16.1"
NODE_PACKAGES = tuple(f"@tensorflow/tfjs-{part}@{TFJS}" for part in ("core", "converter", "backend-cpu"))
STAND_INS = (
    "tensorflow_decision_forests/__init__.py",
    "jax/__init__.py",
    "jax/experimental/__init__.py",
    "jax/experimental/jax2tf.py",
)
ADVICE = "The first export to TensorFlow.js needs PyPI and the registry of npm; in browsers there are also --to onnx and --to litert."


@dataclass(frozen=True)
class Environment:
    """Paths of the packages."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables of a Python process that converts."""
        path = os.pathsep.join(filter(None, [str(self.folder / "python"), os.environ.get("PYTHONPATH", "")]))
        return {"PYTHONPATH": path, "TF_USE_LEGACY_KERAS": "1"}

    @property
    def node_path(self) -> str:
        """For a Node process that runs models."""
        return str(self.folder / "node_modules")


def ready() -> Environment:
    """The environment for the TensorFlow that is installed here, made if it is not there yet; raises `ExportError` if that fails."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain" / "tfjs"
    keras = ".".join(_tensorflow_version().split(".")[:2])
    known = repr((sys.version_info[:2], keras, TFJS, HUB, STAND_INS)).encode()
    folder = root / f"tfjs-{TFJS}-tensorflow-{keras}-{hashlib.sha256(known).hexdigest()[:8]}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as aside:
                _make(Path(aside) / "made", keras)
                os.rename(Path(aside) / "made", folder)
    return Environment(folder)


def _tensorflow_version() -> str:
    """Return the version of whichever distribution brings TensorFlow."""
    import importlib.metadata

    return version(importlib.metadata.packages_distributions()["tensorflow"][0])


def _make(folder: Path, keras: str) -> None:
    python = folder / "python"
    python.mkdir(parents=True)
    packages = [f"tensorflowjs=={TFJS}", f"tensorflow-hub=={HUB}", f"tf-keras=={keras}.*"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(python),
    ]
    _run([*pip, *packages])
    for name in STAND_INS:
        (python / name).parent.mkdir(parents=True, exist_ok=True)
        (python / name).touch()
    npm = str(shutil.which("npm"))
    _run([npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *NODE_PACKAGES])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr)
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        told = lines[-1] if lines else f"exit code {done.returncode}"
        raise ExportError(
            f"the environment for TensorFlow.js could not be made: {Path(command[0]).name} says: {told}", ADVICE
        )
