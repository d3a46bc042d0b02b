"""`dtrain init`: recipes that run at once, copied from the ones that dtrain brings, or made for a script that is there."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

from dtrain.common.errors import UsageError, nearest
from dtrain.job import entrypoint
from dtrain.launch import recipe

TEMPLATES = {
    "torch": "digits_ddp",
    "tensorflow": "digits_mirrored",
    "function": "digits_function",
    "script": "script",
    "gpt": "stdlib_gpt_ddp",
    "horovod": "horovod_script",
}
"""Name that a person gives → the recipe that shows it; any other recipe goes by its own name."""
COMMAND = re.compile(r": dtrain run \S+")
"""In the comment of a recipe that dtrain brings: how it is run where it lies."""
SCHEMA = "recipe.schema.json"
"""Stands beside a recipe, so that an editor finds it without a network."""
MODELINE = f"# yaml-language-server: $schema={SCHEMA}\n"
"""Names the schema to an editor that knows the YAML language server."""
RECIPE = "recipe.yaml"
"""Name of a recipe that is copied, as the documents have it."""
LEGACY_KERAS = (
    "found: Keras' model.fit under MultiWorkerMirroredStrategy, which Keras 3 cannot do: the recipe asks for Keras 2 (env); "
    "it needs: pip install tf-keras"
)
SCRIPT_RECIPE = """\
# {script} as it is: {command}
name: {name}
script: {script}
{args}
resources:
  workers: 2        # processes; on a machine with GPUs: {command} --gpus 8
# after a crash the script is started again, and must find its own checkpoints: dtrain explain recovery.restarts
"""


def recipes_folder() -> Path:
    """The recipes that are installed with dtrain."""
    spec = importlib.util.find_spec("dtrain.recipes")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "this installation of dtrain has no recipes", "Install it again: pip install --force-reinstall dtrain"
        )
    return Path(spec.submodule_search_locations[0])


def templates() -> dict[str, str]:
    """Name → the first sentence of the recipe, which says what it shows."""
    named = TEMPLATES | {path.stem: path.stem for path in sorted(recipes_folder().glob("*.yaml"))}
    return {name: _first_sentence(recipes_folder() / f"{stem}.yaml") for name, stem in named.items()}


def _first_sentence(path: Path) -> str:
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return COMMAND.sub("", text).partition(". ")[0].removesuffix(".") + "."


def copy_template(name: str, folder: Path) -> str:
    """Copy a recipe and the code that it runs; returns what was written. Raises `UsageError`, and then writes nothing."""
    if name not in (known := templates()):
        raise UsageError(f"there is no template '{name}'. {nearest(name, list(known))}", "See them: dtrain init --list")
    source = recipes_folder() / f"{TEMPLATES.get(name, name)}.yaml"
    target, code = folder / RECIPE, _code_of(source)
    files = [target, *(folder / file.name for file in code)]
    _refuse_to_overwrite(files)
    folder.mkdir(parents=True, exist_ok=True)
    for file in code:
        shutil.copyfile(file, folder / file.name)
    first = folder / code[0].name
    first.write_text(f"# Train it: {_command(target)}\n{first.read_text()}")
    _write_recipe(target, f"# Train it: {_command(target)}\n{COMMAND.sub('', source.read_text())}")
    written = "\n".join(f"wrote {file}" for file in files)
    return f"{written}\n{_next(target)}"


def _code_of(source: Path) -> list[Path]:
    """The Python file that a recipe runs, and those beside it that this one imports."""
    job = recipe.load(source)
    target = job.task or job.function
    waiting = [source.parent / (entrypoint.split(target)[0] if target else str(job.script))]
    found: list[Path] = []
    while waiting:
        file = waiting.pop()
        found.append(file)
        beside = [source.parent / f"{name}.py" for name in sorted(entrypoint.imports(file))]
        waiting += [path for path in beside if path.is_file() and path not in found]
    return found


def write_for_script(script: Path, folder: Path) -> str:
    """Write a recipe for a program that is there; returns what was found in it. Raises `UsageError`, and then writes nothing."""
    if not script.is_file():
        raise UsageError(f"there is no file {script}", "Name a training script: dtrain init --from train.py")
    tree = entrypoint.parsed(script) if script.suffix == ".py" else f"{script} is not a Python file"
    if isinstance(tree, str):
        raise UsageError(tree, "Name a training script: dtrain init --from train.py")
    target = folder / f"{script.stem}.yaml"
    _refuse_to_overwrite([target])
    folder.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(tree)
    required = [name for name, needed in arguments.items() if needed]
    options = [f"{name} (required)" if needed else name for name, needed in arguments.items()]
    relative = script.resolve().relative_to(folder.resolve()) if _is_below(script, folder) else script.resolve()
    args = (
        f"args: []            # of its own: {' '.join(options)}" if options else "args: []            # its arguments"
    )
    legacy = _fits_on_many_workers(tree)
    args += '\nenv: {TF_USE_LEGACY_KERAS: "1"}   # Keras 3 cannot do this' if legacy else ""
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in script.stem)
    text = SCRIPT_RECIPE.format(script=relative, command=_command(target), name=name, args=args)
    target.write_text(text)
    try:
        reason = recipe.load(target).strategy.reason
    except UsageError:
        target.unlink()
        raise
    _write_recipe(target, text)
    found = [f"wrote {target}", f"found: {reason}"]
    found += [LEGACY_KERAS] if legacy else []
    if options:
        found.append(f"found: arguments {' '.join(options)}; give the ones you want under args")
    if required:
        found.append(f"it cannot run without {' and '.join(required)}: write args: [{required[0]}, …] into {target}")
    return "\n".join([*found, _next(target)])


def _write_recipe(path: Path, text: str) -> None:
    """Write a recipe, and beside it the schema of the recipes that this installation takes, if none is there."""
    path.write_text(MODELINE + text)
    if not (path.parent / SCHEMA).exists():
        (path.parent / SCHEMA).write_text(json.dumps(recipe.schema(), indent=1))


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _fits_on_many_workers(tree: ast.Module) -> bool:
    """Whether a program calls `fit` and names the strategy under which Keras 3 cannot do that."""
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {"fit", "MultiWorkerMirroredStrategy"} <= names | {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
    }


def _arguments(tree: ast.Module) -> dict[str, bool]:
    """Arguments that a program declares with `add_argument` (argparse), `option` or `argument` (click), as they stand in it, and whether
    each is required."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    declared = [
        node
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("add_argument", "option", "argument")
    ]
    texts = [
        (argument.value, node) for node in declared for argument in node.args[-1:] if isinstance(argument, ast.Constant)
    ]
    return {text: _is_required(text, node) for text, node in texts if isinstance(text, str)}


def _is_required(name: str, declared: ast.Call) -> bool:
    """Return whether it is an option that says so, or a positional argument without a default."""
    given = {one.arg: one.value.value for one in declared.keywords if isinstance(one.value, ast.Constant)}
    named = {one.arg for one in declared.keywords}
    if "required" in named:
        return given.get("required") is True
    return not name.startswith("-") and "default" not in named and given.get("nargs") not in ("?", "*")


def _refuse_to_overwrite(files: list[Path]) -> None:
    there = [str(file) for file in files if file.exists()]
    if there:
        raise UsageError(
            f"there is already {' and '.join(there)}", "Nothing was written; choose another folder: dtrain init FOLDER"
        )


def _next(path: Path) -> str:
    quoted = shlex.quote(str(path))
    return f"next: dtrain plan {quoted}   shows what it would do\n      {_command(path)}    trains"


def _command(path: Path) -> str:
    """Return what a person types here to train a recipe."""
    return f"dtrain run {shlex.quote(str(path))}"
