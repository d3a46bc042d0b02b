"""docs/for-agents.md says of commands, exit codes, JSON and files what holds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from live import RECIPES, ROOT, Live, dtrain

from dtrain.cli.app import app
from dtrain.common.errors import Exit

PAGE = (ROOT / "docs" / "for-agents.md").read_text()
CLICK: Any = typer.main.get_command(app)
COMMANDS = {name: command for name, command in CLICK.commands.items() if not command.hidden}
OPTIONS = {name: {one for option in command.params for one in option.opts} for name, command in COMMANDS.items()}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_exit_code_is_named() -> None:
    assert {(int(code), name.strip("`")) for code, name, *_ in rows("Exit codes")} == {(e.value, e.name) for e in Exit}


def test_every_command_is_named_with_options_that_it_has() -> None:
    named = {cells[0].strip("`").split()[1]: cells for cells in rows("Commands")}
    assert named.keys() == COMMANDS.keys()
    for name, (_, uses, with_json) in named.items():
        assert (with_json == "yes") == ("--json" in OPTIONS[name]), name
        given = {option for code in re.findall(r"`(-[^`]*)`", uses) for option in re.findall(r"^--?[a-z-]+", code)}
        assert given <= OPTIONS[name], name


@pytest.mark.parametrize(
    ("command", "keys"), rows("JSON"), ids=lambda cell: cell.split()[1] if "--json" in cell else ""
)
def test_json_has_the_keys_of_the_page(digits_of_torch: Live, tmp_path: Path, command: str, keys: str) -> None:
    recipe, run = str(RECIPES / "digits_ddp.yaml"), str(digits_of_torch.run.path)
    words = command.strip("`").removeprefix("dtrain ").split()
    twin = shutil.copytree(run, tmp_path / "twin")
    where = {"ps": ["--runs", str(digits_of_torch.runs)], "plan": [], "compare": [str(twin)]}.get(words[0])
    given = [{"RECIPE": recipe, "RUN": run}.get(word, word) for word in words] + ([run] if where is None else where)
    answer = json.loads(dtrain(*given).stdout)
    found = answer[0] if isinstance(answer, list) else answer
    assert set(re.findall(r"`(\w+)`", keys)) <= found.keys()


def test_a_run_has_the_files_of_the_page(digits_of_torch: Live) -> None:
    folder = digits_of_torch.run.path
    for path, _ in rows("Files of a run"):
        assert (folder / path.strip("`")).exists(), path
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert (events[0]["event"], events[-1]["event"]) == ("run_started", "run_ended")
    assert all("time" in event for event in events)
    assert all((one / "manifest.json").exists() for one in (folder / "checkpoints").glob("step-*"))
