"""The commands that look back at runs: report, compare, rm and clean."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from dtrain.cli.options import RUNS, Html, Json, RunName, Runs, find


def add_to(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (report,):
        app.command()(command)


def report(name: RunName, runs: Runs = RUNS, html: Html = None, as_json: Json = False) -> None:
    """Say what a run spent its time on, what its failures cost and how its metrics went.

    Example: dtrain report last --html report.html"""
    from dtrain.cli import report as reports
    from dtrain.run import run_record

    record = run_record.read(find(runs, name))
    if html:
        from dtrain.cli.report_page import report_page

        _write(html, report_page(record))
    elif as_json:
        print(json.dumps(reports.as_json(record), indent=1))
    else:
        print(reports.text(record))


def _write(path: Path, text: str) -> None:
    """Write a page and say where; what stands in it may be private."""
    from dtrain.cli.render import size
    from dtrain.common.errors import UsageError
    from dtrain.common.files import write_whole
    from dtrain.run.folder import PRIVATE_FILE

    try:
        write_whole(path, text, PRIVATE_FILE)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", "Name another file.") from None
    print(f"{path} ({size(len(text.encode()))})")
