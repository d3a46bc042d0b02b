"""Every framework on two nodes of a real SLURM and of a real Ray cluster gives what it gives on this machine, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from live import RECIPES, Live, finished, process_tree, start, wait_for
from ray_lab import RayLab, ray_missing
from slurm_lab import SlurmLab, install_slurm

STEPS = 20
FOUR = ("--workers", "4", "--nodes", "2", "--set", "resources.cpus_per_worker=1")
SHORT = ("--set", f"train.steps={STEPS}", "--set", "train.evaluate_every=1000", "--set", "checkpoint.every_steps=10")


@dataclass(frozen=True)
class Site:
    """A cluster to train on."""

    name: str
    environment: dict[str, str]
    left: Callable[[], str]
    """What of a run is still there, in words."""


@contextmanager
def slurm(folder: Path) -> Iterator[Site]:
    problem = install_slurm()
    if problem is not None:
        pytest.skip(problem)
    with SlurmLab.start(folder, nodes=3) as lab:

        def left() -> str:
            pids = [f"process {pid}" for node in lab.nodes for pid in lab.task_pids(node) | lab.step_pids(node)]
            return ", ".join([*lab.run("squeue", "-h").stdout.splitlines(), *pids])

        yield Site("slurm", lab.environment, left)


@contextmanager
def ray(folder: Path) -> Iterator[Site]:
    problem = ray_missing()
    if problem is not None:
        pytest.skip(problem)
    with RayLab.start(nodes=3, cpus=2) as lab:

        def left() -> str:
            groups = lab.call("/api/v0/placement_groups?limit=100")["data"]["result"]["result"]
            actors = lab.call("/api/v0/actors?limit=100")["data"]["result"]["result"]
            kept = [f"placement group {group['placement_group_id']}" for group in groups if group["state"] != "REMOVED"]
            return ", ".join([*kept, *(f"actor {actor['actor_id']}" for actor in actors if actor["state"] != "DEAD")])

        yield Site("ray", lab.environment, left)


SITES: dict[str, Callable[[Path], AbstractContextManager[Site]]] = {"slurm": slurm, "ray": ray}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in SITES])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with SITES[request.param](tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Live]:
    """The same run on two pretended nodes of this machine, once for all clusters."""
    known: dict[tuple[str, ...], Live] = {}

    def run(*words: str) -> Live:
        if words not in known:
            known[words] = finished(*words, runs=tmp_path_factory.mktemp("local"))
        return known[words]

    return run


def on(site: Site, runs: Path, *words: str) -> Live:
    """The run on the cluster, from beginning to end; nothing of it may be left."""
    with start(*words, "--cluster", site.name, runs=runs, **site.environment) as live:
        wait_for(lambda: live.process.poll() is not None or len(live.events("workers_started")) == 2, "the workers")
        for event in live.events("node_ready"):
            live.pids_seen |= process_tree(event["pid"])
        live.finish()
    wait_for(lambda: not site.left(), "the end of everything of the run", 20)
    assert len({event["address"] for event in live.events("node_ready")} - {"127.0.0.1"}) == 2
    assert [event["workers"] for event in live.events("attempt_started")] == [4]
    return live


@pytest.mark.parametrize("name", ["digits_ddp", "digits_fsdp", "digits_horovod", "digits_multi_worker"])
def test_two_nodes_of_two_workers_give_the_weights_of_the_local_run(
    name: str, site: Site, local: Callable[..., Live], tmp_path: Path
) -> None:
    words = (str(RECIPES / f"{name}.yaml"), *FOUR, *SHORT)
    live, here = on(site, tmp_path, *words), local(*words)
    assert live.weights() == here.weights()
    assert live.losses() == here.losses()
    assert live.events("evaluation")[-1]["values"] == here.events("evaluation")[-1]["values"]
    live.assert_clean_audit(steps=STEPS)


@pytest.mark.parametrize("name", ["script", "horovod_script"])
def test_scripts_print_on_two_nodes_what_they_print_here(
    name: str, site: Site, local: Callable[..., Live], tmp_path: Path
) -> None:
    words = (str(RECIPES / f"{name}.yaml"), *FOUR)
    live, here = on(site, tmp_path, *words), local(*words)
    assert learned(live) == learned(here)
    assert learned(live)[-1].endswith("learned [1.0, -2.0, 3.0, -4.0]")


def learned(live: Live) -> list[str]:
    """What a script printed, but for where it ran."""
    return [line for line in live.output(0).splitlines() if line.startswith("step") or "learned" in line]
