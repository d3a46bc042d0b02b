"""One system call below the run folder fails, under a whole command: a run, a resume, an audit, a removal, weights or an export. It ends
well or with an error in words, and nothing that was said to be there is lost.

The calls of the supervisor's own process are counted; those of the workers are not."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from live import DTRAIN, PROGRAMS, finished, stopped

from dtrain.checkpoint.local import LocalCheckpointStore
from dtrain.checkpoint.store import CheckpointInfo
from dtrain.record.event_log import read
from dtrain.record.events import CheckpointSaved, RunEnded
from dtrain.record.folder import RunDir

RECIPE = str(PROGRAMS / "tiny.yaml")
FEW = ("--workers", "1", "--set", "train.steps=8", "--set", "checkpoint.every_steps=4")
SHORT = 0
"""In place of an error: half of what is given is written."""
CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ESTALE, errno.EINTR, SHORT)
SHIM = """
import builtins, errno, io, os
FOLDER, FAIL, CODE, COUNT = (os.environ.get(f"FAILING_{name}", "") for name in ("FOLDER", "NUMBER", "CODE", "COUNT"))
if FOLDER and os.path.basename(__import__("sys").orig_argv[0]).startswith("python") and "agent" not in __import__("sys").orig_argv:
    os.environ.pop("FAILING_FOLDER")  # the workers' calls are their own
    count, real_write = [0], os.write

    def below(first):
        try:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else os.path.abspath(os.fsdecode(first))
        except (OSError, TypeError):
            return False
        return path.startswith(FOLDER)

    def failing(real):
        def call(first, *arguments, **named):
            if below(first):
                count[0] += 1
                if COUNT:
                    with io.open(os.open(COUNT, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                        file.write(str(count[0]))
                if str(count[0]) == FAIL and CODE == "0" and real is real_write:
                    return real(first, bytes(arguments[0])[:max(1, len(arguments[0]) // 2)])
                if str(count[0]) == FAIL and CODE != "0":
                    raise OSError(int(CODE), os.strerror(int(CODE)), str(first))
            return real(first, *arguments, **named)
        return call

    for name in ("write", "fsync", "rename", "replace", "unlink", "link", "mkdir", "rmdir", "utime", "truncate"):
        setattr(os, name, failing(getattr(os, name)))
    real_open, real_os_open = builtins.open, os.open
    builtins.open = failing(real_open)
    wrapped = failing(real_os_open)
    os.open = lambda path, *arguments, **named: (real_os_open if str(path) == COUNT else wrapped)(path, *arguments, **named)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    (folder / "sitecustomize.py").write_text(SHIM)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that was stopped, and one that has ended."""
    runs = tmp_path_factory.mktemp("made")
    slow = stopped(RECIPE, *FEW, "--set", "params.pause=0.2", runs=runs / "stopped", step=5)
    return {"stopped": slow.run.path, "done": finished(RECIPE, *FEW, runs=runs / "done").run.path}


def command(what: str, run: Path, runs: Path) -> list[str]:
    """The arguments, and the run that they are about."""
    return {
        "run": ["run", RECIPE, *FEW, "--runs", str(runs)],
        "resume": ["resume", str(run), "--set", "params.pause=0"],
        "audit": ["audit", str(run)],
        "rm": ["rm", str(run), "--yes"],
        "weights": ["weights", str(run), "--to", str(runs / "weights.safetensors")],
        "export": ["export", str(run), "--to", "safetensors", "--output", str(runs / "exported.safetensors")],
    }[what]


def done(arguments: list[str], shim: Path, folder: Path, **failing: Any) -> subprocess.CompletedProcess[str]:
    told = {f"FAILING_{name.upper()}": str(value) for name, value in failing.items()}
    environment = os.environ | {"PYTHONPATH": str(shim), "FAILING_FOLDER": str(folder)} | told
    return subprocess.run(
        [*DTRAIN, *arguments], cwd="/", env=environment, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize("what", ["run", "resume", "audit", "rm", "weights", "export"])
def test_whatever_call_fails_it_is_said_and_nothing_is_lost(
    what: str, shim: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    count = tmp_path / "count"

    def once(name: str, **failing: Any) -> tuple[subprocess.CompletedProcess[str], Path]:
        runs = tmp_path / name
        runs.mkdir()
        run = runs / "a-run"
        if what != "run":
            shutil.copytree(made["stopped" if what == "resume" else "done"], run)
        return done(command(what, run, runs), shim, runs, **failing), runs

    usual, _ = once("usual", count=count)
    assert usual.returncode == 0, usual.stderr
    calls, chance = int(count.read_text()), random.Random(f"{what}{os.environ.get('DTRAIN_FAILING_SEED', '')}")
    print(f"{what}: {calls} calls")
    wrong = []
    for number in sorted(
        chance.sample(range(1, calls + 1), min(calls, int(os.environ.get("DTRAIN_FAILING_CALLS", "3"))))
    ):
        code = chance.choice(CODES)
        found, runs = once(str(number), number=number, code=code)
        name = errno.errorcode.get(code, "a short write")
        case = f"call {number} of {calls} fails with {name}: {found.stdout}{found.stderr}"
        try:
            assert found.returncode in (0, 2, 3, 4)
            assert "Traceback" not in found.stderr
            assert found.returncode == 0 or found.stderr.strip() or found.stdout.strip()
            for run in (RunDir(path) for path in runs.iterdir() if (path / "events.jsonl").exists()):
                assert_kept(run, well=what in ("run", "resume") and found.returncode == 0)
        except AssertionError as error:
            wrong.append(f"{case}\n{str(error).splitlines()[0] if str(error) else error!r}")
        shutil.rmtree(runs)
    assert not wrong, f"{len(wrong)} of them:\n" + "\n\n".join(wrong)


def assert_kept(run: RunDir, *, well: bool) -> None:
    """Whatever the log says of checkpoints is so; one that ended well has its last step and its end."""
    history = read(run.events)
    saved = [event for event in history if isinstance(event, CheckpointSaved)]
    if not saved or not run.checkpoints.is_dir() or not run.job_file.exists():
        assert not well
        return
    *_, newest = LocalCheckpointStore(run.checkpoints).latest_valid()
    assert isinstance(newest, CheckpointInfo)
    assert newest.step >= max(event.step for event in saved)
    if well:
        assert newest.step == 8
        assert any(isinstance(event, RunEnded) and event.exit_code == 0 for event in history)
    assert json.loads(run.job_file.read_text())["name"]
