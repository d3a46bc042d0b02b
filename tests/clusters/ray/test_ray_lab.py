"""The Ray cluster of the tests works, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from processes import command_line, is_alive, wait_until
from ray_lab import RayLab, ray_missing

SPREAD = """\
import os, ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
group = placement_group([{"CPU": 1, "GPU": 2}] * 3, strategy="STRICT_SPREAD")
ray.get(group.ready(), timeout=60)

@ray.remote(num_cpus=1, num_gpus=2)
class Actor:
    def where(self):
        return ray.util.get_node_ip_address(), os.environ["CUDA_VISIBLE_DEVICES"]

places = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index) for index in range(3)]
actors = [Actor.options(scheduling_strategy=place).remote() for place in places]
print(sorted(ray.get([actor.where.remote() for actor in actors])))
"""
SLEEPER = """\
import os, subprocess, sys, time, ray
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)

@ray.remote(num_cpus=1, resources={sys.argv[1]: 0.1})
def sleeper():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print("started", flush=True)
    time.sleep(1000)

ray.get(sleeper.remote())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[RayLab]:
    problem = ray_missing()
    if problem is not None:
        pytest.skip(problem)
    with RayLab.start(nodes=3) as running:
        yield running


def python(lab: RayLab, code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, **lab.environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sleeping(pids: set[int]) -> set[int]:
    """Those of the processes that are a `sleep`."""
    return {pid for pid in pids if command_line(pid).startswith("sleep ")}


def test_a_placement_group_spreads_over_three_nodes_with_their_gpus(lab: RayLab) -> None:
    output, _ = python(lab, SPREAD).communicate(timeout=120)
    assert output.splitlines()[-1] == str([(lab.node_address(index), "0,1") for index in range(3)])


def test_a_job_is_submitted_and_finishes(lab: RayLab) -> None:
    job = lab.call("/api/jobs/", {"entrypoint": "echo the job ran"})["submission_id"]
    wait_until(lambda: lab.call(f"/api/jobs/{job}")["status"] == "SUCCEEDED", 60, "the job did not finish")
    assert "the job ran" in lab.call(f"/api/jobs/{job}/logs")["logs"]


def test_a_node_is_added_drained_and_killed_with_all_that_runs_on_it(lab: RayLab) -> None:
    added = lab.add_node(cpus=2, gpus=0, resources={"mine": 1})
    assert lab.nodes == (0, 1, 2, added)
    driver = python(lab, SLEEPER, "mine")
    wait_until(lambda: bool(sleeping(lab.node_pids(added))), 60, "the task does not run on the new node")
    lab.drain_node(added, seconds=600)
    assert lab.node_states()[lab.node_address(added)] == "ALIVE"
    before = lab.node_pids(added)
    lab.kill_node(added)
    assert not any(map(is_alive, before))
    wait_until(lambda: lab.node_states()[lab.node_address(added)] == "DEAD", 60, "the head did not notice")
    assert lab.node_states()[lab.node_address(1)] == "ALIVE"
    assert added not in lab.nodes
    driver.kill()
    driver.communicate()


def test_stop_leaves_no_process_and_no_file(lab: RayLab) -> None:
    driver = python(lab, SLEEPER, f"node:{lab.node_address(1)}")
    wait_until(lambda: bool(sleeping(lab.pids())), 60, "the task does not run")
    before = lab.pids()
    lab.stop()
    driver.communicate(timeout=10)
    assert lab.pids() == set()
    assert not any(map(is_alive, before))
    assert not lab.folder.exists()
    lab.stop()
