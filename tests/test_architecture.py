"""The shape of the code that the design promises: import directions, light launchers, small files and functions."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import PROGRAMS, RECIPES

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "dtrain").glob("*.py"))
PLUGINS = sorted((ROOT / "strategies").glob("*.py")) + sorted((ROOT / "clusters").glob("*.py"))
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod", "ray", "numpy"}
MOST_LINES = 400
MOST_FUNCTION_LINES = 60


def trees(paths: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in paths:
        yield path, ast.parse(path.read_text())


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield f"{'.' * node.level}{node.module or ''}"


def top_level_imports(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports_of(node)


def test_the_core_never_imports_a_plugin() -> None:
    for path, tree in trees(CORE):
        for name in imports_of(tree):
            assert not name.startswith(("dtrain.strategies", "dtrain.clusters", "strategies", "clusters")), (
                f"{path.name}: {name}"
            )


def test_no_plugin_imports_a_framework_at_its_top() -> None:
    for path, tree in trees(PLUGINS):
        for name in top_level_imports(tree):
            assert name.split(".")[0] not in FRAMEWORKS, f"{path.name}: {name}"


def test_strategies_and_clusters_do_not_know_each_other() -> None:
    for path, tree in trees(PLUGINS):
        other = "dtrain.clusters" if path.parent.name == "strategies" else "dtrain.strategies"
        assert not any(other in name for name in imports_of(tree)), path


def test_the_core_has_no_import_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for path, tree in trees(CORE):
        found: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module == "dtrain":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dtrain."):
                found.add(str(node.module).split(".")[1])
        edges[path.stem] = found

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        for inner in edges.get(name, ()):
            visit(inner, (*above, name))

    for name in edges:
        visit(name, ())


def test_files_and_functions_are_small() -> None:
    for path, tree in trees([*CORE, *PLUGINS]):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                assert size <= MOST_FUNCTION_LINES, f"{path.name}: {node.name} has {size} lines"


def test_every_public_name_has_a_docstring() -> None:
    for path, tree in trees([*CORE, *PLUGINS]):
        assert ast.get_docstring(tree), path
        for node in tree.body:
            parts = [node, *(node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [])]
            for part in parts:
                if isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith("_"):
                    assert ast.get_docstring(part), f"{path.name}: {part.name}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plan", str(RECIPES / "digits_ddp.yaml")], ["plugins"], ["schema"], ["ps"],
     ["run", str(PROGRAMS / "tiny.yaml"), "--set", "train.steps=2"], ["submit", str(PROGRAMS / "nowhere.yaml")]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_the_launcher_never_imports_a_framework(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, json\n"
        "from dtrain import cli\n"
        f"sys.argv = ['dtrain', *{arguments!r}]\n"
        "code = cli.main()\n"
        f"json.dump(sorted(sys.modules), open({str(tmp_path / 'modules')!r}, 'w'))\n"
        "sys.exit(code)\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "DTRAIN_RUNS": str(tmp_path / "runs"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if arguments[0] == "submit" else 0), done.stderr
    loaded = {name.split(".")[0] for name in json.loads((tmp_path / "modules").read_text())}
    assert not loaded & FRAMEWORKS, loaded & FRAMEWORKS
