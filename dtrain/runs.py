"""Runs from Python: start, follow, read and stop them, in a script or a notebook. Exported by `import dtrain`."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtrain.checkpoint.factory import store_of
from dtrain.common.errors import DtrainError, Exit, UsageError
from dtrain.common.serde import JsonObject
from dtrain.control import create, overrides, start
from dtrain.control import stop as stopping
from dtrain.control.follow import until_ended
from dtrain.control.state import goes_on, state_of
from dtrain.job import entrypoint
from dtrain.launch.python_recipe import Recipe, document_of
from dtrain.record import event_log, log_retention
from dtrain.record.folder import RunDir, default_root
from dtrain.report import report, run_record
from dtrain.show import render
from dtrain.storage import run_sync

RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""A recipe file, its content as a mapping, or a `Recipe`."""
Folder = str | os.PathLike[str] | None
POLL_SECONDS = 0.2


class RunFailed(DtrainError):
    """A run that was waited for ended with an exit code other than 0."""

    def __init__(self, run: Run, exit_code: int, text: str) -> None:
        super().__init__(text, f"See it: dtrain status {run.id}")
        self.run = run
        self.exit_code = Exit(exit_code)


class Run:
    """One run, wherever it is supervised; every property reads what is there now."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    @property
    def id(self) -> str:
        """The run's id, for every command of dtrain."""
        return self._run.id

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._run.path

    @property
    def state(self) -> str:
        """`running`, `done`, `failed`, `lost` …: the word that `dtrain ps` shows."""
        return state_of(self._run).outcome

    def status(self) -> JsonObject:
        """Return what `dtrain status --json` prints."""
        return state_of(self._run).public() | {"folder": str(self._run.path)}

    def wait(self, timeout_seconds: float | None = None) -> Run:
        """Wait for the end; raises `RunFailed` unless it is `done`, `TimeoutError` after the time. Ctrl-C leaves the run alone."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        code = until_ended(self._run, deadline).exit_code
        if code is None and goes_on(self._run):
            raise TimeoutError(f"{self.id} goes on after {timeout_seconds:g} s: {self.state}")
        return self._ended(int(Exit.GAVE_UP) if code is None else code)

    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """Name → (step, value) of every report; those on held-out data begin with `held-out `."""
        run_sync.refresh(self._run)
        curves = run_record.read(self._run).curves.metrics
        return {
            name: [(int(step), value) for step, value in zip(curve.at, curve.values, strict=True)]
            for name, curve in curves.items()
        }

    def events(self) -> list[JsonObject]:
        """The event log so far, as it stands in `events.jsonl`."""
        run_sync.refresh(self._run)
        return [event.to_dict() for event in event_log.read(self._run.events)]

    def logs(self, rank: int = 0) -> str:
        """The output of one rank; of a log beyond `logs.keep`, its beginning and its newest part."""
        run_sync.refresh(self._run)
        pieces = _pieces(self._run.rank_log(rank))
        return b"".join(pieces).decode(errors="replace")

    def checkpoints(self) -> list[int]:
        """The steps whose checkpoints are committed, oldest first."""
        return sorted(store_of(self._run, self._run.job()).steps())

    def report(self) -> JsonObject:
        """Return what `dtrain report --json` prints: goodput, what the time went into, failures and metrics."""
        run_sync.refresh(self._run)
        return report.as_json(run_record.read(self._run))

    def stop(self, *, now: bool = False, wait: bool = True) -> str:
        """Have it save and stop (`now`: without saving); `dtrain.resume` goes on. Returns what came of it."""
        return stopping.stop(self._run, now=now, wait=wait).text

    def _ended(self, code: int) -> Run:
        if code != Exit.DONE:
            raise RunFailed(self, code, f"{self.id}: {render.ended_why(state_of(self._run))}")
        return self

    def __repr__(self) -> str:
        return f"<dtrain.Run {self.id}: {self.state}>"

    def _repr_html_(self) -> str:
        """A row of numbers for a notebook."""
        state = state_of(self._run)
        cells = {
            "run": self.id, "state": state.outcome, "step": f"{state.step} of {state.total_steps or '?'}",
            **{name: f"{value:.4g}" for name, value in state.metrics.items()},
            **{f"held-out {name}": f"{value:.4g}" for name, value in state.evaluation.items()},
        }  # fmt: skip
        head, row = (
            "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in line)
            for tag, line in (("th", cells), ("td", cells.values()))
        )
        return f"<table><tr>{head}</tr><tr>{row}</tr></table>"


def run(
    recipe: RecipeLike,
    *,
    runs: Folder = None,
    show: bool = True,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train a recipe in the foreground, and return its run; raises `RunFailed` if it does not end well.

    `options`: workers, gpus, nodes, strategy, cluster, name; `settings`: any key of the recipe, as `{"train.steps": 500}`; `show`: print what
    happens. Ctrl-C (a notebook's interrupt) saves and stops, twice stops at once. While dtrain itself imports the calling file as a
    task's, the call ends that import: no `__main__` guard is needed."""
    made = _made(recipe, runs, settings, options)
    return _to_the_end(made, resumed=False, show=show)


def submit(
    recipe: RecipeLike, *, runs: Folder = None, settings: Mapping[str, Any] | None = None, **options: Any
) -> Run:
    """Start a recipe inside its cluster, detached from this process; see `run` for the arguments."""
    made = _made(recipe, runs, settings, options)
    start.submit(made)
    return Run(made)


def attach(name: str | os.PathLike[str] | Run, *, runs: Folder = None) -> Run:
    """The run with this id, prefix, path or URL, or `last`; raises `UsageError` if there is none."""
    return name if isinstance(name, Run) else Run(run_sync.find(_root(runs), os.fspath(name)))


def resume(
    name: str | os.PathLike[str] | Run, *, recipe: str | os.PathLike[str] | None = None, runs: Folder = None, detach: bool = False,
    show: bool = True, settings: Mapping[str, Any] | None = None, new_code: bool = False, **options: Any,
) -> Run:  # fmt: skip
    """Go on with a run from its newest valid checkpoint, also with another size or settings, and with `new_code` with the code as it is
    now instead of that which it began with; see `run` for the arguments."""
    entrypoint.end_import()
    chosen = attach(name, runs=runs)._run
    source = Path(recipe) if recipe else None
    if edits := create.prepare_resume(chosen, _overrides(settings, options), source, new_code=new_code):
        print(edits, flush=True)
    if detach:
        start.submit(chosen)
        return Run(chosen)
    return _to_the_end(chosen, resumed=chosen.events.exists(), show=show)


def stop(name: str | os.PathLike[str] | Run, *, now: bool = False, runs: Folder = None) -> str:
    """Save and stop a run, wherever it was started. Returns what came of it."""
    return attach(name, runs=runs).stop(now=now)


def status(name: str | os.PathLike[str] | Run = "last", *, runs: Folder = None) -> JsonObject:
    """Return what `dtrain status --json` prints of a run."""
    return attach(name, runs=runs).status()


def _made(recipe: RecipeLike, runs: Folder, settings: Mapping[str, Any] | None, options: Mapping[str, Any]) -> RunDir:
    entrypoint.end_import()
    given = _overrides(settings, options)
    if isinstance(recipe, str | os.PathLike):
        return create.new_run(Path(recipe), _root(runs), given)
    return create.new_run_of(document_of(recipe), Path.cwd(), _root(runs), given)


def _overrides(settings: Mapping[str, Any] | None, options: Mapping[str, Any]) -> overrides.Overrides:
    known = ("gpus", "workers", "nodes", "strategy", "cluster", "name")
    if unknown := [name for name in options if name not in known]:
        hint = f'Other keys of the recipe: settings={{"section.{unknown[0]}": …}}'
        raise UsageError(
            f"unknown argument {unknown[0]!r}; there are {', '.join(known)}, runs, show and settings", hint
        )
    given = overrides.of_options(**options)
    return given + [(tuple(key.split(".")), value, f"settings {key}") for key, value in (settings or {}).items()]


def _to_the_end(chosen: RunDir, *, resumed: bool, show: bool) -> Run:
    if show:
        from dtrain.cli import terminal

        return Run(chosen)._ended(terminal.run_here(chosen, resumed=resumed))
    return Run(chosen)._ended(start.run_to_end(chosen))


def _root(runs: Folder) -> Path:
    return default_root(runs)


def _pieces(path: Path) -> Iterator[bytes]:
    offset = 0
    while path.exists():
        piece = log_retention.read(path, offset)
        offset += piece.removed + len(piece.data)
        yield piece.data
        if piece.last:
            return
