"""The batch script to the letter, what can be said before anything is submitted, and what SLURM's own words mean."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from live import PROGRAMS, dtrain

from dtrain.api import plan
from dtrain.clusters.slurm import commands, containers, script
from dtrain.clusters.slurm.cluster import Slurm
from dtrain.clusters.slurm.containers import Container
from dtrain.clusters.slurm.step import ended_agents
from dtrain.job.job import Job, PluginChoice, Recovery, Resources
from dtrain.launch import planner, registry
from dtrain.record.folder import RunDir

GOLDEN = Path(__file__).parents[2] / "golden"
EVERYTHING = {
    "partition": "gpu",
    "account": "physics",
    "qos": "high",
    "time": "2-12:30:00",
    "memory": "64G",
    "constraint": "a100&nvlink",
    "exclude": "node[7-9]",
    "reservation": "friday",
    "spare_nodes": 1,
    "warn_seconds": 300,
    "container": "apptainer exec --nv 'my image.sif'",
    "setup": ("module load cuda/12", "export NCCL_DEBUG=WARN"),
    "extra": ("--mail-type=END", "--comment=it's $HOME; a \\ and a #"),
}
CASES: dict[str, tuple[Resources, dict[str, Any]]] = {
    "plain": (Resources(workers=2, nodes=2), {}),
    "gpus": (Resources(workers=8, nodes=2, device="gpu", cpus_per_worker=6), EVERYTHING),
    "gres": (Resources(workers=4, nodes=2, device="gpu", min_workers=2), {"gres": "gpu:a100:2", "cpus": 16}),
}


def planned(resources: Resources, options: dict[str, Any]) -> plan.LaunchPlan:
    cluster = PluginChoice("slurm", options)
    job = Job(
        name="golden", script="true", cluster=cluster, resources=resources, recovery=Recovery(), folder="/home/me"
    )
    return planner.make(job)


def rendered(resources: Resources, options: dict[str, Any], path: str = "/shared/it's 100% mine/golden-1") -> str:
    launch = planned(resources, options)
    return registry.cluster_of(launch.job).render(launch, RunDir(Path(path)))


@pytest.mark.parametrize("name", CASES)
def test_the_batch_script_is_this_to_the_letter(name: str) -> None:
    text = rendered(*CASES[name]).replace(sys.executable, "PYTHON")
    file = GOLDEN / f"slurm-{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("nasty", ["a b", "a'b\"c", "$(touch x)", "`id`", "a;b #c", "--nodes=9"])
def test_no_value_becomes_shell_or_another_option(nasty: str) -> None:
    names = [field.name for field in dataclasses.fields(script.SlurmOptions) if field.type in ("str | None", "str")]
    options = {name: nasty for name in names if name not in ("time", "container", "after")}
    lines = rendered(Resources(workers=1), options).splitlines()
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert all(len(shlex.split(line)) == 1 for line in directives)
    assert {f"--{name.replace('_', '-')}={nasty}".replace("memory", "mem") for name in options} <= {
        shlex.split(d)[0] for d in directives
    }
    assert [line for line in lines if not line.startswith("#")] == [
        "trap '' USR1 TERM",
        shlex.join(plan.supervisor_command(RunDir(Path("/shared/it's 100% mine/golden-1")))).join(["exec ", ""]),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "a\n#SBATCH --nodes=99"}, "line break"),
        ({"setup": ("true\nrm x",)}, "line break"),
        ({"extra": ("nodes=3",)}, "begin it with --"),
        ({"container": "run 'half"}, "container"),
        ({"container": Container("a\nb")}, "line break"),
        ({"container": Container("a", mounts=("data",))}, "no absolute path"),
        ({"time": "soon"}, "minutes"),
        ({"time": "1", "warn_seconds": 0}, "nothing to train in"),
        ({"spare_nodes": -1}, "below 0"),
    ],
)
def test_mistakes_in_the_options_are_said(options: dict[str, Any], words: str) -> None:
    launch = planned(Resources(workers=1), {})
    assert words in "\n".join(Slurm(script.SlurmOptions(**options)).problems(launch))


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (
            Container("./torch.sif", mounts=("/data", "/scratch/me:/scratch")),
            "env DTRAIN_IMAGE=X apptainer exec --nv --bind=/shared/r:/shared/r --bind=/home/me:/home/me --bind=/data:/data "
            "--bind=/scratch/me:/scratch /home/me/torch.sif",
        ),
        (
            Container("nvcr.io#nvidia/pytorch:25.09-py3", "pyxis", options=("--no-container-mount-home",)),
            "--container-image=nvcr.io#nvidia/pytorch:25.09-py3 --container-mounts=/shared/r:/shared/r,/home/me:/home/me "
            "--export=ALL,NVIDIA_VISIBLE_DEVICES=all,NVIDIA_DRIVER_CAPABILITIES=all --no-container-mount-home env DTRAIN_IMAGE=X",
        ),
        (
            Container("docker:me/torch:2", "shifter"),
            "env DTRAIN_IMAGE=X shifter --image=docker:me/torch:2 --volume=/shared/r:/shared/r --volume=/home/me:/home/me --module=gpu",
        ),
        (
            Container("me/torch", "podman"),
            "env DTRAIN_IMAGE=X podman run --rm --interactive --network=host --ipc=host --pid=host --entrypoint= "
            + " ".join(f"--env={prefix}*" for prefix in containers.PASSED)
            + " --volume=/shared/r:/shared/r --volume=/home/me:/home/me --device=nvidia.com/gpu=all me/torch",
        ),
    ],
)
def test_agents_are_behind_these_words(container: Container, words: str) -> None:
    launch = planned(Resources(workers=2, nodes=2, device="gpu"), {})
    run = RunDir(Path("/shared/r"))
    assert shlex.join(containers.words(container, launch, run, "X")).replace("'", "") == words
    options = {"container": {"image": "me/torch", "runtime": "podman"}}
    assert "# agents behind: env DTRAIN_IMAGE=me/torch podman run" in rendered(Resources(workers=1), options)


def test_the_digest_of_an_image_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    launch, image = planned(Resources(workers=1), {}), tmp_path / "torch.sif"
    image.write_bytes(b"layers")
    found = containers.identity_of(Container(str(image)), launch)
    assert found == f"{image}@sha256:{hashlib.sha256(b'layers').hexdigest()}"
    times = image.stat()
    image.write_bytes(b"others")
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert containers.identity_of(Container(str(image)), launch) == found, "not read again"
    os.utime(image)
    assert containers.identity_of(Container(str(image)), launch) != found
    assert (
        containers.identity_of(Container("docker://me/torch@sha256:12", "apptainer"), launch)
        == "docker://me/torch@sha256:12"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-1", 176400), ("2-1:30", 178200), ("0-0:0:5", 5), ("x", None)],
)
def test_time_limits_in_all_of_slurms_forms(text: str, seconds: int | None) -> None:
    assert script.limit_seconds(text) == seconds


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ("node1", ["node1"]),
        ("node[1-3,07],other", ["node1", "node2", "node3", "node07", "other"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
        ("", []),
    ],
)
def test_lists_of_nodes_are_expanded(names: str, nodes: list[str]) -> None:
    assert commands.expand(names) == nodes


@pytest.mark.parametrize(
    ("gres", "count"), [("gpu:2", 2), ("gpu:a100:4(S:0-1),shard:8", 4), ("gpu:a:1,gpu:b:2", 3), ("(null)", 0)]
)
def test_gpus_of_a_node(gres: str, count: int) -> None:
    assert commands.gpus_in(gres) == count


@pytest.mark.parametrize(
    ("line", "nodes"),
    [
        ("srun: error: node2: task 1: Killed", ["node2"]),
        ("srun: error: node[2-3]: tasks 1-2: Exited with exit code 1", ["node2", "node3"]),
        ("srun: error: Node failure on node2", ["node2"]),
        ("srun: error: Task launch for StepId=7.0 failed on node node3: Communication connection failure", ["node3"]),
        ("srun: Job step creation temporarily disabled, retrying", []),
    ],
)
def test_what_srun_says_of_lost_agents(line: str, nodes: list[str]) -> None:
    assert [node for node, _ in ended_agents(line)] == nodes


def test_a_machine_without_slurm_plans_the_batch_script(tmp_path: Path) -> None:
    recipe = str(PROGRAMS / "tiny.yaml")
    options = ("--cluster", "slurm", "--nodes", "2", "--workers", "4")
    shown = dtrain("plan", recipe, *options, PATH=str(tmp_path), SBATCH_QOS="long", SBATCH_JOB_NAME="mine").stdout
    assert "#SBATCH --nodes=2" in shown
    assert "SBATCH_QOS=long holds, since the recipe says nothing of it" in shown
    assert "SBATCH_JOB_NAME=mine is left out: the recipe says otherwise" in shown
    assert "not from this machine: sbatch was not found: run dtrain where SLURM's commands are" in shown
    assert "sbatch was not found" in dtrain("run", recipe, *options, check=2, PATH=str(tmp_path)).stderr


def test_tags_and_note_are_the_comment_unless_there_is_one() -> None:
    job = Job(
        name="golden",
        script="true",
        cluster=PluginChoice("slurm", {"exclusive": True}),
        folder="/",
        tags={"a": "b c"},
        note="try\nthis",
    )
    launch = planner.make(job)
    text = registry.cluster_of(job).render(launch, RunDir(Path("/runs/golden-1")))
    assert "#SBATCH '--comment=a=b c try this'" in text
    assert "#SBATCH --exclusive\n" in text
    own = planner.make(dataclasses.replace(job, cluster=PluginChoice("slurm", {"comment": "mine"})))
    assert "#SBATCH --comment=mine" in registry.cluster_of(own.job).render(own, RunDir(Path("/runs/golden-1")))
