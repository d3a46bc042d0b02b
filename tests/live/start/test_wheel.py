"""The built wheel in an environment of its own: no framework comes with it, and other people's plugins are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLUGIN = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "elsewhere"
version = "1"
[project.entry-points."dtrain.clusters"]
hosts = "elsewhere_cluster:Hosts"
[project.entry-points."dtrain.strategies"]
ompi = "elsewhere_strategy:Ompi"
[project.entry-points."dtrain.trackers"]
lines = "elsewhere_tracker:Lines"
[project.entry-points."dtrain.exporters"]
matrices = "elsewhere_exporter:Matrices"
[tool.setuptools]
py-modules = ["elsewhere_cluster", "elsewhere_strategy", "elsewhere_tracker", "elsewhere_exporter"]
"""
CONTRACT = """
from pathlib import Path
from dtrain.api import testing
from dtrain.job.job import Job, PluginChoice
from elsewhere_cluster import Hosts, HostsOptions
from elsewhere_strategy import Ompi, OmpiOptions
from elsewhere_tracker import Lines, LinesOptions

options = {"hosts": ("one", "two"), "shell": "env HOST={host} sh -c"}
plan = testing.plan_for("hosts", options)
testing.check_rendering(Hosts(HostsOptions(**options)), plan, Path("a"))
testing.check_agents(Hosts(HostsOptions(**options)), plan, Path("b"))
testing.check_lost_agent(Hosts(HostsOptions(**options)), plan, Path("c"), replaced=False)
testing.check_strategy(Ompi(OmpiOptions()), Job("x", script="true", strategy=PluginChoice("ompi"), folder="/"))
testing.check_tracker(lambda: Lines(LinesOptions()), Path("d").absolute())
print("kept the contract")
"""


def example(page: Path) -> str:
    """The first Python example of a page."""
    return page.read_text().split("```python\n")[1].split("```")[0]


def run(*command: str | Path, cwd: Path, check: int = 0) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DTRAIN"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=inherited, capture_output=True, text=True, check=False
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The `bin` of a new environment with the wheel, built from a copy of the checkout, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".venv*", ".git", "runs", "*cache*", "build")
    shutil.copytree(ROOT, source, ignore=ignored)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pip = folder / "venv/bin/pip"
    run(pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "wheels", source, cwd=folder)
    run(pip, "install", "--quiet", next((folder / "wheels").glob("dtrain-*.whl")), cwd=folder)
    yield folder / "venv/bin"
    shutil.rmtree(folder, ignore_errors=True)


def test_it_brings_no_framework_and_says_what_to_install(fresh: Path, tmp_path: Path) -> None:
    listed = run(fresh / "pip", "list", cwd=tmp_path)
    assert not any(name in listed.split() for name in ("torch", "tensorflow", "ray", "horovod"))
    refused = run(fresh / "dtrain", "plan", ROOT / "recipes/digits_ddp.yaml", cwd=tmp_path, check=2)
    (wheel,) = (fresh.parents[1] / "wheels").glob("dtrain-*.whl")
    assert f"needs torch, which is not installed: pip install '{wheel}[torch]'" in refused
    asked: list[str | Path] = [fresh / "pip", "install", "--dry-run", "--no-deps", "--no-index", f"{wheel}[torch]"]
    assert "does not provide the extra" not in run(*asked, cwd=tmp_path)
    assert "digits_ddp.yaml:" in refused
    refused = run(fresh / "dtrain", "run", ROOT / "recipes/digits_horovod.yaml", cwd=tmp_path, check=2)
    assert "python -P -m dtrain.strategies.horovod.build" in refused
    assert "pip install" not in refused, "there is one way"
    listed = run(fresh / "dtrain", "plugins", cwd=tmp_path)
    assert "MISSING" in listed
    assert "dtrain[" not in listed


def test_it_runs_scripts_from_any_folder_even_from_its_own_source(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text("import os\nprint('rank', os.environ['RANK'])\n")
    (tmp_path / "r.yaml").write_text("script: count.py\nresources: {workers: 2}\n")
    for folder in (tmp_path, ROOT, Path("/")):
        out = run(fresh / "dtrain", "run", tmp_path / "r.yaml", "--runs", tmp_path / "runs", cwd=folder)
        assert "rank 0 | rank 0" in out
    run(fresh / "dtrain", "report", "last", "--html", "report.html", "--runs", tmp_path / "runs", cwd=tmp_path)
    assert "prefers-color-scheme" in (tmp_path / "report.html").read_text()


def test_the_plugins_of_the_pages_are_found_checked_and_run(fresh: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text(PLUGIN)
    (package / "elsewhere_cluster.py").write_text(example(ROOT / "clusters/README.md"))
    (package / "elsewhere_tracker.py").write_text(example(ROOT / "trackers/README.md"))
    (package / "elsewhere_exporter.py").write_text(example(ROOT / "exporters/README.md"))
    (package / "elsewhere_strategy.py").write_text(example(ROOT / "strategies/README.md"))
    run(fresh / "pip", "install", "--quiet", "--no-deps", package, cwd=tmp_path)
    listed = run(fresh / "dtrain", "plugins", cwd=tmp_path)
    assert "[elsewhere]" in listed
    assert "exporter   matrices" in listed
    assert "[dtrain]" in listed
    (tmp_path / "contract.py").write_text(CONTRACT)
    assert "kept the contract" in run(fresh / "python", "contract.py", cwd=tmp_path)
    (tmp_path / "who.py").write_text("import os\nprint(os.environ['WHO_RANK'], 'on', os.environ['HOST'])\n")
    (tmp_path / "r.yaml").write_text(
        "script: who.py\nresources: {workers: 2, nodes: 2}\nstrategy: {name: ompi, prefix: WHO}\n"
        "cluster: {name: hosts, hosts: [one, two], shell: 'env HOST={host} sh -c'}\n"
    )
    out = run(fresh / "dtrain", "run", tmp_path / "r.yaml", "--runs", tmp_path / "runs", cwd=tmp_path)
    assert "rank 0 | 0 on one" in out
    logs = run(fresh / "dtrain", "logs", "last", "--runs", tmp_path / "runs", cwd=tmp_path)
    assert "rank 1 | 1 on two" in logs
    wrong = run(fresh / "dtrain", "plan", tmp_path / "r.yaml", "--set", "cluster.hsots=x", cwd=tmp_path, check=2)
    assert "unknown key 'hsots'. Did you mean 'hosts'?" in wrong
    few = run(fresh / "dtrain", "plan", tmp_path / "r.yaml", "--nodes", "3", "--workers", "3", cwd=tmp_path, check=2)
    assert "3 nodes are asked for, 1 more than cluster.hosts has" in few
