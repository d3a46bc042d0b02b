"""The shape of the code that the design promises: import directions, light launchers, small files and functions."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from live import PROGRAMS

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "dtrain").rglob("*.py"))
FOLDERS = ("strategies", "clusters", "trackers", "exporters")
"""Of plugins."""
PLUGINS = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
ORDER = (
    "common",
    "job",
    "data",
    "record",
    "storage",
    "checkpoint",
    "api",
    "launch",
    "weights",
    "show",
    "worker",
    "agent",
    "supervisor",
    "control",
    "report",
    "inspect",
    "verify",
    "export",
    "bench",
    "drill",
    "login",
    "study",
    "board",
    "cli",
    "runs",
    "studies",
)
"""A package imports only packages that stand before it (and itself); the docstrings of the packages say on which machine each runs."""
FRAMEWORKS = {
    "torch",
    "tensorflow",
    "keras",
    "horovod",
    "ray",
    "numpy",
    "tensorboard",
    "wandb",
    "mlflow",
    "prometheus_client",
}
MOST_LINES = 400
MOST_FUNCTION_LINES = 60


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def trees(paths: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in paths:
        yield path, parsed(path)


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
            assert not name.removeprefix("dtrain.").startswith(FOLDERS), f"{path.name}: {name}"


def test_no_plugin_imports_a_framework_at_its_top() -> None:
    for path, tree in trees(PLUGINS):
        for name in top_level_imports(tree):
            assert name.split(".")[0] not in FRAMEWORKS, f"{path.name}: {name}"


def test_plugins_of_one_kind_do_not_know_those_of_another() -> None:
    for path, tree in trees(PLUGINS):
        others = [f"dtrain.{folder}" for folder in FOLDERS if (ROOT / folder) not in path.parents]
        assert not any(other in name for name in imports_of(tree) for other in others), path


def module_name(path: Path) -> str:
    """`dtrain.record.folder` for dtrain/record/folder.py, `dtrain.strategies.auto` for strategies/auto.py, `dtrain.record` for the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "dtrain" else ("dtrain", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


KNOWN = {module_name(one) for one in (*CORE, *PLUGINS)}


def modules_imported(path: Path, tree: ast.Module) -> Iterator[str]:
    """The modules of dtrain that a file imports anywhere in it: in functions and under TYPE_CHECKING, too."""
    package = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names if base.split(".")[0] == "dtrain" else ():
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in KNOWN else base
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "dtrain")


def test_packages_import_in_one_direction() -> None:
    wrong = []
    for path, tree in trees(CORE):
        parts = module_name(path).split(".")
        if len(parts) < 2 or parts[1] not in ORDER:
            continue
        for name in modules_imported(path, tree):
            other = ([*name.split("."), ""])[1]
            if other and ORDER.index(other) > ORDER.index(parts[1]):
                wrong.append(f"{module_name(path)} imports {name}")
    assert not wrong, wrong


def test_every_package_is_in_the_order_and_says_where_it_runs() -> None:
    packages = {path.parent.name for path in (ROOT / "dtrain").glob("*/__init__.py")}
    assert packages == set(ORDER) - {"runs", "studies"}
    for name in packages:
        text = ast.get_docstring(ast.parse((ROOT / "dtrain" / name / "__init__.py").read_text())) or ""
        assert text.startswith("Runs "), name


def test_there_is_no_import_cycle() -> None:
    edges = {
        module_name(path): set(modules_imported(path, tree)) - {module_name(path)}
        for path, tree in trees([*CORE, *PLUGINS])
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for inner in edges.get(name, ()):
                visit(inner, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_only_the_command_line_knows_typer() -> None:
    for path, tree in trees([*CORE, *PLUGINS]):
        if path.parent != ROOT / "dtrain" / "cli":
            assert "typer" not in {name.split(".")[0] for name in imports_of(tree)}, path


def test_the_injection_of_faults_is_out_of_the_way_of_training() -> None:
    for path in (*CORE, *PLUGINS):
        if path.parent != ROOT / "dtrain" / "drill" and path.parent != ROOT / "dtrain" / "cli":
            assert "dtrain.drill" not in path.read_text(), path


def test_an_agent_starts_without_pydantic_and_numpy() -> None:
    program = "import sys; import dtrain.agent.main, dtrain.agent.agent; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True, check=True)
    assert not {"pydantic", "numpy", "yaml", "typer", "rich"} & set(done.stdout.split())


def test_files_and_functions_are_small() -> None:
    for path, tree in trees([*CORE, *PLUGINS]):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                assert size <= MOST_FUNCTION_LINES, f"{path.name}: {node.name} has {size} lines"


def test_every_public_name_has_a_docstring() -> None:
    """A method that a base class or protocol documents needs none of its own."""
    modules = list(trees([*CORE, *PLUGINS]))
    methods = [
        part for _, tree in modules for node in tree.body if isinstance(node, ast.ClassDef) for part in node.body
        if isinstance(part, ast.FunctionDef)
    ]  # fmt: skip
    inherited = {part.name for part in methods if ast.get_docstring(part)}
    for path, tree in modules:
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
            parts = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for part in parts:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_") and part.name not in inherited:
                    assert ast.get_docstring(part), f"{path.name}: {part.name}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["plan", str(PROGRAMS / "contract_torch.yaml"), "--set", "preload=[torch.nn]"], ["plugins"], ["schema"], ["ps"],
     pytest.param(["run", str(PROGRAMS / "tiny.yaml"), "--set", "train.steps=2"], marks=pytest.mark.live), ["submit", str(PROGRAMS / "nowhere.yaml")]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_the_launcher_never_imports_a_framework(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys, json\n"
        "from dtrain.cli import app\n"
        f"sys.argv = ['dtrain', *{arguments!r}]\n"
        "code = app.main()\n"
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


PLUGIN_NAMES = re.compile(
    r"\b(local|slurm|sbatch|srun|squeue|ray|horovod|ddp|fsdp|hsdp|mirrored|multi_worker_mirrored|tensorflow|keras"
    r"|tensorboard|wandb|mlflow|prometheus|csv)\b"
)
USER_TEXT = {
    "dtrain/cli/app.py": "help texts name what there is",
    "dtrain/inspect/node_checks.py": "nvidia-smi has an option of such a name",
    "dtrain/cli/tensorboard_view.py": "the command's own name",
    "dtrain/login/forward.py": "the command's own name",
    "dtrain/cli/recipe_commands.py": "help texts name what there is",
    "dtrain/cli/export_commands.py": "help texts name what there is",
    "dtrain/cli/starter.py": "templates are recipes of the built-in plugins",
}


def test_the_core_knows_no_plugin_by_name() -> None:
    """PyTorch's own classes are the exception: users give its data sets and tensors to the core."""
    for path in sorted((ROOT / "dtrain").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        tree = parsed(path)
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = {
            id(line.value) for node in ast.walk(tree) if isinstance(node, documented) for line in node.body
            if isinstance(line, ast.Expr)
        }  # fmt: skip
        found = [
            (node.lineno, node.value) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts
            and PLUGIN_NAMES.search(node.value)
        ]  # fmt: skip
        assert not found or name in USER_TEXT, f"{name}: {found}"
