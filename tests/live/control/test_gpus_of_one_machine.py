"""Two runs on one machine never have the same GPU: each holds a lease of its GPUs for as long as something of it lives."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from gpus import FakeGpus, gpus
from live import DTRAIN, Live, running, started, wait_for

PROGRAM = """
import os, time
print("sees", os.environ["CUDA_VISIBLE_DEVICES"], os.environ["CUDA_DEVICE_ORDER"], flush=True)
while not os.path.exists("go"):
    time.sleep(0.05)
"""
RECIPE = "{name: hold, script: hold.py, resources: {device: gpu}, track: []}"
SEES = re.compile(r"sees (\S+) ")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[FakeGpus]:
    (tmp_path / "hold.py").write_text(PROGRAM)
    (tmp_path / "hold.yaml").write_text(RECIPE)
    with gpus(tmp_path, 2) as found:
        yield found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def begun(stack: ExitStack, folder: Path, fakes: FakeGpus, *options: str, **environment: str) -> Live:
    """A run that holds its GPUs until there is a file `go`."""
    arguments = ["run", str(folder / "hold.yaml"), *options]
    live = stack.enter_context(started(arguments, folder / "runs", fakes.environment(**environment)))
    assert live.run.path.is_dir()  # the next run is told from this one
    return live


def sees(live: Live) -> str:
    """The GPUs that a run's worker was given."""
    return str(wait_for(lambda: SEES.search(live.output(0)), "the worker's first line", 60)[1])


def ps(folder: Path, fakes: FakeGpus) -> dict[str, tuple[str, list[str]]]:
    """Run → state and GPUs, as `dtrain ps` lists them."""
    command = [*DTRAIN, "ps", "--json", "--runs", str(folder / "runs")]
    rows = json.loads(subprocess.run(command, env=fakes.environment(), capture_output=True, check=True).stdout)
    return {row["run"]: (row["state"], row["gpus"]) for row in rows}


def test_a_third_run_waits_for_a_gpu_and_says_who_has_it(tmp_path: Path, two: FakeGpus, stack: ExitStack) -> None:
    first, second = begun(stack, tmp_path, two), begun(stack, tmp_path, two)
    assert {sees(first), sees(second)} == {"0", "1"}
    assert "PCI_BUS_ID\n" in first.output(0)
    third = begun(stack, tmp_path, two, "--set", "recovery.provision_seconds=1")
    told = third.wait_event("nodes_awaited")["why"]
    assert told.startswith(f"1 GPU of 2: GPU 0 is taken by {first.run.id if sees(first) == '0' else second.run.id}")
    assert "; GPU 1 is taken by" in told
    rows = ps(tmp_path, two)
    assert rows[first.run.id] == ("running", [sees(first)])
    assert rows[third.run.id] == ("waiting", [])
    os.kill(first.pid(0), signal.SIGKILL)  # a restart keeps its GPU
    first.pid(0, attempt=2)
    assert not third.events("node_ready")
    (tmp_path / "go").touch()
    for live in (first, second, third):
        live.finish()
    assert third.events("nodes_awaited", why="")


def test_a_lease_outlives_the_supervisor_as_long_as_the_agent_lives(
    tmp_path: Path, two: FakeGpus, stack: ExitStack
) -> None:
    first = begun(stack, tmp_path, two, "--gpus", "2")
    assert sees(first) == "0,1"
    agent = first.agent_pid()
    os.kill(agent, signal.SIGSTOP)  # it does not notice that its supervisor is gone
    first.see()
    first.process.kill()
    first.process.communicate()
    second = begun(stack, tmp_path, two)
    assert second.wait_event("nodes_awaited")["why"].startswith(f"1 GPU of 2: GPUs 0, 1 are taken by {first.run.id} ")
    os.kill(agent, signal.SIGKILL)
    assert sees(second) == "0"
    assert not running({agent})
    (tmp_path / "go").touch()
    second.finish()


def test_a_run_takes_only_gpus_that_its_recipe_and_the_environment_leave(
    tmp_path: Path, two: FakeGpus, stack: ExitStack
) -> None:
    chosen = begun(stack, tmp_path, two, "--set", "resources.gpus=[1]")
    assert sees(chosen) == "1"
    by_uuid = begun(stack, tmp_path, two, CUDA_VISIBLE_DEVICES=f"{two.uuids[1]},{two.uuids[0][:12]}")
    assert sees(by_uuid) == two.uuids[0][:12]
    (tmp_path / "go").touch()
    chosen.finish()
    by_uuid.finish()


def test_plan_says_which_gpus_a_run_may_take(tmp_path: Path, two: FakeGpus) -> None:
    command = [*DTRAIN, "plan", str(tmp_path / "hold.yaml"), "--set", "resources.gpus=[1]"]
    shown = subprocess.run(command, env=two.environment(), capture_output=True, text=True, check=True).stdout
    assert "takes 1 GPU that no other run has, of 1" in shown
    assert "TORCH_FR_BUFFER_SIZE=500" in shown


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        (["--set", "resources.gpus=[3]"], {}, "resources.gpus names 3, and the GPUs are 0, 1"),
        (["--set", "resources.gpus=[0]"], {"CUDA_VISIBLE_DEVICES": "1"}, "the GPUs of CUDA_VISIBLE_DEVICES=1 are 1"),
        (["--set", "resources.gpus=[0]", "--set", "resources.device=cpu"], {}, "resources.device is not gpu"),
        (["--set", "env.CUDA_VISIBLE_DEVICES='1'"], {}, "name them in resources.gpus"),
        (["--gpus", "3"], {}, "3 GPUs are asked for and this machine has 2"),
        ([], {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "leaves open which GPU a number means"),
        (["--set", "resources.gpus=[0]", "--cluster", "slurm"], {}, "the cluster 'slurm' chooses the GPUs itself"),
    ],
)
def test_what_names_no_gpu_is_refused_before_the_start(
    tmp_path: Path, two: FakeGpus, options: list[str], environment: dict[str, str], told: str
) -> None:
    command = [*DTRAIN, "run", str(tmp_path / "hold.yaml"), "--runs", str(tmp_path / "runs"), *options]
    done = subprocess.run(command, env=two.environment(**environment), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in " ".join(done.stderr.split())


def test_members_of_a_sweep_have_gpus_of_their_own_and_wait_for_one(tmp_path: Path) -> None:
    """Three members, two at a time, on two GPUs and on one."""
    program = "import os, sys, time\nprint('sees', os.environ['CUDA_VISIBLE_DEVICES'], sys.argv[1], time.time(), flush=True)\ntime.sleep(1)\nprint('until', time.time())\n"
    (tmp_path / "p.py").write_text(program)
    (tmp_path / "p.yaml").write_text("{name: p, script: p.py, args: [0], resources: {device: gpu}, track: []}")
    for count in (1, 2):
        runs = tmp_path / f"runs{count}"
        command = [*DTRAIN, "submit", str(tmp_path / "p.yaml"), "--sweep", "train.seed=0,1,2", "--at-most", "2"]
        command[command.index("train.seed=0,1,2")] = "args=[0],[1],[2]"
        with gpus(tmp_path, count) as fakes:
            done = subprocess.run(
                [*command, "--runs", str(runs)], env=fakes.environment(), capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stdout + done.stderr
        used: dict[str, list[tuple[float, float]]] = {}
        for log in runs.glob("*/logs/rank-00000.log"):
            words = log.read_text().split()
            number, began = words[words.index("sees") + 1], float(words[words.index("sees") + 3])
            used.setdefault(number, []).append((began, float(words[words.index("until") + 1])))
        assert sum(map(len, used.values())) == 3
        assert set(used) == {str(number) for number in range(count)}
        for spans in used.values():
            ordered = sorted(spans)
            assert all(one[1] <= after[0] for one, after in pairwise(ordered)), "at the same time"
