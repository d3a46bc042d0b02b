"""The user's program, run in a worker as Python runs it when it is started by itself: `python FILE …`, `python -m MODULE …`."""

from __future__ import annotations

import builtins
import importlib.util
import os
import shutil
import sys
import types
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path

from dtrain.common.errors import UsageError
from dtrain.job import code
from dtrain.job.job import Job, ScriptModule


def run(job: Job) -> types.ModuleType:
    """A Python program in this process, to its end; any other program takes this process's place. Returns `__main__`."""
    arguments = [str(part) for part in job.args]
    if isinstance(job.script, ScriptModule):
        return _run_module(job.script.module, arguments)
    name = str(job.script)
    path = Path(job.folder) / name
    if path.suffix == ".py":
        return _run_file(path, name, arguments)
    program = str(path) if path.is_file() else shutil.which(name) or name
    sys.stdout.flush()
    return os.execvp(program, [name, *arguments])


def _run_file(path: Path, name: str, arguments: Sequence[str]) -> types.ModuleType:
    sys.argv = [name, *arguments]
    sys.orig_argv[:] = [sys.executable, name, *arguments]
    sys.path[0] = str(path.resolve().parent)
    source = code.loader_of("__main__", path).get_data(str(path))
    loader = SourceFileLoader("__main__", str(path))
    main = _new_main()
    main.__file__, main.__loader__, main.__cached__ = str(path), loader, None  # type: ignore[attr-defined]
    exec(loader.source_to_code(source, str(path)), main.__dict__)
    return main


def _run_module(name: str, arguments: Sequence[str]) -> types.ModuleType:
    """Run a module, found as `script_module` says."""
    sys.argv = ["-m", *arguments]
    sys.orig_argv[:] = [sys.executable, "-m", name, *arguments]
    spec = importlib.util.find_spec(name)
    if spec and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None or not isinstance(spec.loader, SourceFileLoader) or spec.origin is None:
        raise UsageError(f"there is no module {name} that can be run", "Name one as after python -m.")
    sys.argv[0] = spec.origin
    main = _new_main()
    main.__spec__, main.__loader__, main.__package__ = spec, spec.loader, spec.parent
    main.__file__, main.__cached__ = spec.origin, spec.cached  # type: ignore[attr-defined]
    code = spec.loader.get_code(spec.name)
    assert code is not None, "a module with a source has code"
    exec(code, main.__dict__)
    return main


def _new_main() -> types.ModuleType:
    """An empty `__main__`, known as that from now on, also to what runs after the program's last line."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    return main
