"""The built wheel in an environment of its own: no framework comes with it, and other people's plugins are found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "elsewhere"
version = "1"
[project.entry-points."dtrain.clusters"]
elsewhere = "elsewhere:Elsewhere"
[project.entry-points."dtrain.strategies"]
plain = "elsewhere:Plain"
[tool.setuptools]
py-modules = ["elsewhere"]
""",
    "elsewhere.py": '''
from dataclasses import dataclass
from dtrain.clusters.local import Local

@dataclass(frozen=True)
class ElsewhereOptions:
    place: str = "here"

class Elsewhere(Local):
    """Another cluster: this machine under another name."""

    Options = ElsewhereOptions

@dataclass(frozen=True)
class PlainOptions:
    greeting: str = "hello"

class Plain:
    """Another strategy: it greets."""

    Options = PlainOptions
    framework = None

    def __init__(self, options):
        self.options = options

    def preload(self, job):
        return ()

    def processes(self, workers_per_node, device="cpu"):
        return workers_per_node

    def environment(self, place, peers):
        return {"GREETING": f"{self.options.greeting} {place.rank} of {place.world_size}"}
''',
}


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
    assert "needs torch, which is not installed: pip install 'dtrain[torch]'" in refused
    assert "digits_ddp.yaml:" in refused
    refused = run(fresh / "dtrain", "run", ROOT / "recipes/digits_horovod.yaml", cwd=tmp_path, check=2)
    assert "python -P -m dtrain.strategies.horovod.build" in refused
    assert "MISSING" in run(fresh / "dtrain", "plugins", cwd=tmp_path)


def test_it_runs_scripts_from_any_folder_even_from_its_own_source(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "count.py").write_text("import os\nprint('rank', os.environ['RANK'])\n")
    (tmp_path / "r.yaml").write_text("script: count.py\nresources: {workers: 2}\n")
    for folder in (tmp_path, ROOT, Path("/")):
        out = run(fresh / "dtrain", "run", tmp_path / "r.yaml", "--runs", tmp_path / "runs", cwd=folder)
        assert "rank 0 | rank 0" in out


def test_another_packages_cluster_and_strategy_are_found_checked_and_run(fresh: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    for name, text in PLUGIN.items():
        (package / name).write_text(text)
    run(fresh / "pip", "install", "--quiet", "--no-deps", package, cwd=tmp_path)
    listed = run(fresh / "dtrain", "plugins", cwd=tmp_path)
    assert "[elsewhere]" in listed
    assert "[dtrain]" in listed
    (tmp_path / "greet.py").write_text("import os\nprint(os.environ['GREETING'])\n")
    (tmp_path / "r.yaml").write_text(
        "script: greet.py\nresources: {workers: 2}\ncluster: {name: elsewhere, place: there}\nstrategy: {name: plain, greeting: good day}\n"
    )
    assert "good day 0 of 2" in run(
        fresh / "dtrain", "run", tmp_path / "r.yaml", "--runs", tmp_path / "runs", cwd=tmp_path
    )
    wrong = run(fresh / "dtrain", "plan", tmp_path / "r.yaml", "--set", "cluster.plce=x", cwd=tmp_path, check=2)
    assert "unknown key 'plce'. Did you mean 'place'?" in wrong
