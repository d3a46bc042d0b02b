"""What a document says to type is typed, in a shell, and prints what the document shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from live import PATIENCE_SECONDS, ROOT, dtrain, wait_for

FILE = re.compile(r"```(?:python|yaml)\n(# (\S+\.(?:py|yaml))\b.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Typed:
    """A command of a document, and lines that it prints, where `…` stands for anything."""

    command: str
    prints: tuple[str, ...]


def files(document: str, folder: Path) -> None:
    """Write the files that a document shows, by the names in their first lines."""
    for text, name in FILE.findall((ROOT / document).read_text()):
        (folder / name).write_text(text)


def commands(document: str, *headings: str) -> list[Typed]:
    """The commands below these headings of a document, or below those that name no cluster."""
    found = []
    for section in (ROOT / document).read_text().split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        if heading in headings or not (headings or heading.startswith("On ")):
            for block in CONSOLE.findall(section):
                for part in ("\n" + block).split("\n$ ")[1:]:
                    command, *prints = part.strip("\n").split("\n")
                    found.append(Typed(command, tuple(prints)))
    assert found, f"no command below {headings} in {document}"
    return found


def session(typed: list[Typed], folder: Path, environment: Mapping[str, str] | None = None) -> None:
    """Type commands one after another, and wait where a reader would: until a run in the background trains."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env: dict[str, Any] = {**os.environ, "PATH": path, **(environment or {})}
    for one in typed:
        before = _attempt(folder, env) if one.command.startswith("kill") else 0
        done = subprocess.run(
            ["bash", "-c", one.command], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        out = done.stdout + done.stderr
        assert done.returncode == 0, f"{one.command}\n{out}"
        for line in one.prints:
            assert re.search(re.escape(line).replace("…", ".*"), out), f"{one.command}: {line}\n{out}"
        if one.command.startswith(("dtrain run -d", "dtrain submit", "kill")):
            wait_for(partial(_trains_after, before, folder, env), f"training after {one.command}")


def _trains_after(attempt: int, folder: Path, environment: dict[str, Any]) -> bool:
    return _attempt(folder, environment) > attempt


def _attempt(folder: Path, environment: dict[str, Any]) -> int:
    """The attempt of the newest run, once it has trained a step in it."""
    state = json.loads(dtrain("status", "--json", cwd=folder, **environment).stdout)
    return int(state["attempt"]) if state["step"] > state["first_step"] else 0
