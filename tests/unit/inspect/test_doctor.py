"""`dtrain doctor` on this machine, on several nodes, and where something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from live import PROGRAMS, dtrain

from dtrain.inspect.doctor import merged


def report(rank: int, *findings: tuple[str, str, str]) -> dict[str, Any]:
    keys = ("check", "state", "text")
    return {
        "node": f"n{rank}",
        "rank": rank,
        "findings": [dict(zip(keys, one, strict=True), todo="") for one in findings],
    }


def test_this_machine_is_looked_at_and_nothing_is_left(tmp_path: Path) -> None:
    lines = json.loads(dtrain("doctor", "--runs", str(tmp_path / "runs"), "--json").stdout)
    found = {line["check"]: line for line in lines}
    assert found["python"]["text"].startswith(sys.version.split()[0])
    assert found["locks"]["state"] == found["folder"]["state"] == "ok"
    assert "torch" in found
    assert not (tmp_path / "runs").exists()
    shown = dtrain("doctor", "--runs", str(tmp_path / "runs")).stdout
    assert "ok       locks          flock(2) works" in shown


def test_two_nodes_compare_their_clocks_and_measure_the_way_between_them(tmp_path: Path) -> None:
    lines = json.loads(dtrain("doctor", "--nodes", "2", "--runs", str(tmp_path), "--json").stdout)
    found = {line["check"]: line for line in lines}
    assert found["clock"]["text"].startswith("all within 0.")
    assert "all_reduce of 16 MiB with rank 1: " in found["network"]["text"]
    assert len(found["python"]["nodes"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_recipe_says_which_cluster(tmp_path: Path) -> None:
    failed = dtrain("doctor", str(PROGRAMS / "tiny.yaml"), "--cluster", "slurm", "--runs", str(tmp_path), check=3, PATH=str(tmp_path))  # fmt: skip
    assert "PROBLEM  cluster        sbatch was not found: run dtrain where SLURM's commands are" in failed.stdout


def test_a_mistake_in_the_recipe_is_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("task: x\n")
    assert "r.yaml:1:1" in dtrain("doctor", str(tmp_path / "r.yaml"), check=2).stderr


def test_what_all_nodes_say_is_one_line_and_versions_must_be_equal() -> None:
    same, other = ("torch", "ok", "2.13.0"), ("torch", "ok", "2.12.0")
    lines = list(merged([report(0, same, ("disk", "ok", "5 GB")), report(1, same, ("disk", "ok", "7 GB"))]))
    assert [(line.check, line.nodes, line.state) for line in lines] == [
        ("torch", ("n0", "n1"), "ok"), ("disk", ("n0",), "ok"), ("disk", ("n1",), "ok"),
    ]  # fmt: skip
    lines = list(merged([report(0, same), report(1, other)]))
    assert [(line.nodes, line.state) for line in lines] == [(("n0",), "problem"), (("n1",), "problem")]
    assert "not as on other nodes" in lines[0].text
