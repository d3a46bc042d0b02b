"""Hooks of mkdocs (mkdocs.yml): beside the pages of this folder, the site has the README files of others, and references made of the program."""

from __future__ import annotations

import inspect
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "index.md", "recipes/README.md": "recipes.md", "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md",
}  # fmt: skip
"""A page outside of this folder → its place in the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s#]+)(#[^)\s]*)?\)")
SHIM = "https://unpkg.com/iframe-worker/shim"
COMMANDS_TEXT = "# All commands\n\nWhat `dtrain COMMAND --help` prints. [By what they are for](../commands.md).\n"
KEYS_TEXT = "# All keys of a recipe\n\nWhat `dtrain explain KEY` prints. [What recipes are](../recipe.md).\n"
PYTHON_TEXT = "# All names in Python\n\n[With examples](../python.md).\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in this folder."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    for name, text in (("commands", commands()), ("recipe", keys()), ("python", names())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links between files lead to pages; what has no page stands as its name."""
    place = page.file.src_uri
    source = next((one for one, target in ELSEWHERE.items() if target == place), f"docs/{place}")

    def linked(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = ELSEWHERE.get(file, file.removeprefix("docs/") if file.startswith("docs/") else "")
        if not there or not (there in ELSEWHERE.values() or files.get_file_from_path(there)):
            return text if ROOT.joinpath(file).exists() and not image else found[0]
        return f"{image}[{text}]({os.path.relpath(there, posixpath.dirname(place) or '.')}{anchor or ''})"

    return LINK.sub(linked, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Have the theme's search, where a page is opened as a file, load the copy of a script that lies here."""
    return output.replace(SHIM, os.path.relpath("vendor/iframe-worker.js", posixpath.dirname(page.url) or "."))


def commands() -> str:
    """Write the help of every command."""
    import typer

    from dtrain.cli.app import app

    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="dtrain")
    parts = [COMMANDS_TEXT]
    for name, command in group.commands.items():
        helped = command.get_help(command.context_class(command, info_name=name, parent=context))
        parts.append(f"## dtrain {name}\n\n```text\n{helped}\n```\n")
    return "\n".join(parts)


def keys() -> str:
    """Write the meaning, type, default and an example of every key."""
    from dtrain.launch import explain

    parts = [KEYS_TEXT]
    for key in explain.every_key():
        _, *lines = explain.explain(key).splitlines()
        level = "##" if "." not in key else "###"
        parts.append(f"{level} {key}\n\n```text\n" + "\n".join(line.removeprefix("  ") for line in lines) + "\n```\n")
    return "\n".join(parts)


def names() -> str:
    """Write the signature and docstring of everything public."""
    import dtrain

    parts = [PYTHON_TEXT]
    for name in dtrain.__all__:
        thing = getattr(dtrain, name)
        parts.append(
            f"## dtrain.{name}\n\n```python\n{_signature(name, thing)}\n```\n\n{inspect.getdoc(thing) or ''}\n"
        )
        if inspect.isclass(thing):
            members = [
                (key, one) for key, one in vars(thing).items() if not key.startswith("_") and inspect.getdoc(one)
            ]
            parts += [
                f"- `{key}`: {' '.join((inspect.getdoc(one) or '').split())}"
                for key, one in members
                if callable(one) or isinstance(one, property)
            ]
            parts.append("")
    return "\n".join(parts)


def _signature(name: str, thing: Any) -> str:
    try:
        return f"{name}{inspect.signature(thing)}"
    except (TypeError, ValueError):
        return name
