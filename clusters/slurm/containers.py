"""The container that the agents and the workers of a run are in: what stands before an agent's command, and which image it is."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtrain.api.plan import LaunchPlan
from dtrain.common import environment as variables
from dtrain.common.files import PRIVATE_FOLDER, cache
from dtrain.record.folder import RunDir

PASSED = (
    "SLURM",
    "DTRAIN",
    "CUDA",
    "NVIDIA",
    "NCCL",
    "GLOO",
    "UCX",
    "FI_",
    "OMP_",
    "TORCH",
    "TF_",
    "HF_",
    "XLA",
    "PYTHON",
)
"""Beginnings of variables that podman takes over; the others of the node belong to what is outside. The recipe's own reach the workers anyway."""
DIGEST_SECONDS = 10.0


@dataclass(frozen=True)
class Container:
    """A container that the agents and the workers of a run are in."""

    image: str
    """File (`/images/torch.sif`, `./torch.sqsh` beside the recipe) or name (`docker://…`, `nvcr.io#nvidia/pytorch:25.09-py3`) in the
    words of the runtime."""
    runtime: Literal["apptainer", "pyxis", "shifter", "podman"] = "apptainer"
    """Starts the container on each node."""
    mounts: tuple[str, ...] = ()
    """Folders of the node to see in it, besides those of the run and its code: `/data`, `/scratch/me:/scratch`."""
    python: str = "python3"
    """Python in it that has dtrain, of the same version as outside, and the framework."""
    options: tuple[str, ...] = ()
    """Further options of the runtime: `--rocm`, `--shm-size=8g`."""


def words(container: Container | str, plan: LaunchPlan, run: RunDir, identity: str = "") -> list[str]:
    """Pure. What stands before the command of an agent; for pyxis also options of srun. `identity`: see `identity_of`."""
    if isinstance(container, str):
        return shlex.split(container)
    gpu, image = plan.job.resources.device == "gpu", _image(container, plan)
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in (*_own(plan, run), *container.mounts)]
    named = ["env", f"{variables.IMAGE}={identity or image}"]
    match container.runtime:
        case "apptainer":
            flags = ["--nv"] * gpu
            bound = [f"--bind={mount}" for mount in mounts]
            return [*named, "apptainer", "exec", *flags, *bound, *container.options, image]
        case "shifter":
            flags = ["--module=gpu"] * gpu
            bound = [f"--volume={mount}" for mount in mounts]
            return [*named, "shifter", f"--image={image}", *bound, *flags, *container.options]
        case "podman":
            flags = ["--device=nvidia.com/gpu=all"] * gpu
            bound = [f"--volume={mount}" for mount in mounts]
            passed = [f"--env={prefix}*" for prefix in PASSED]
            return [
                *named, "podman", "run", "--rm", "--interactive", "--network=host", "--ipc=host", "--pid=host", "--entrypoint=",
                *passed, *bound, *flags, *container.options, image,
            ]  # fmt: skip
        case "pyxis":
            flags = ["--export=ALL,NVIDIA_VISIBLE_DEVICES=all,NVIDIA_DRIVER_CAPABILITIES=all"] * gpu
            bound = [f"--container-mounts={','.join(mounts)}"]
            return [f"--container-image={image}", *bound, *flags, *container.options, *named]


def mistakes(container: Container | str, plan: LaunchPlan) -> Iterator[str]:
    """Yield what cannot be mounted."""
    if isinstance(container, str):
        return
    for folder in (plan.job.folder, *plan.job.code_folders):
        if {":", ","} & set(folder) or folder == "/":
            yield f"container: no runtime can mount the folder of the code, {folder}: have one without colon and comma, and not /"
    for mount in container.mounts:
        if not mount.startswith("/"):
            yield f"container.mounts: {mount!r} is no absolute path"


def identity_of(container: Container | str, plan: LaunchPlan) -> str:
    """Return the image and its digest as far as this machine can tell: of a file its SHA-256, which is computed once, of a name that of
    podman's store or what the name says itself."""
    if isinstance(container, str):
        return ""
    image = _image(container, plan)
    if Path(image).is_file():
        return f"{image}@sha256:{_digest_of_file(Path(image))}"
    if container.runtime == "podman" and shutil.which("podman"):
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                ["podman", "image", "inspect", "--format={{.Digest}}", image], capture_output=True, text=True, check=False,
                timeout=DIGEST_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            digest = done.stdout.strip()
            return f"{image.partition('@')[0]}@{digest}" if not done.returncode and digest else image
    return image


def _image(container: Container, plan: LaunchPlan) -> str:
    return str(Path(plan.job.folder, container.image)) if container.image.startswith("./") else container.image


def _own(plan: LaunchPlan, run: RunDir) -> list[str]:
    """List the folders that a run cannot do without."""
    wanted = dict.fromkeys([str(run.path), plan.job.folder, *plan.job.code_folders])
    return [one for one in wanted if not any(one.startswith(other.rstrip("/") + "/") for other in wanted)]


def _digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, remembered for as long as it is not changed."""
    seen = path.stat()
    key = hashlib.sha256(f"{path}:{seen.st_size}:{seen.st_mtime_ns}".encode()).hexdigest()[:16]
    kept = cache() / "images" / key
    with suppress(OSError):
        return kept.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):
        kept.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        aside = kept.with_suffix(f".{os.getpid()}")
        aside.write_text(digest)
        aside.rename(kept)
    return digest
