"""What the commands for runs show and do if they are given a study."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from dtrain.cli import screen, terminal
from dtrain.cli.options import Output
from dtrain.common.errors import Exit, UsageError
from dtrain.control.remove import Removed
from dtrain.control.state import state_of
from dtrain.launch import recipe
from dtrain.launch.recipe import Override
from dtrain.record.folder import all_runs
from dtrain.show.render import counted, size
from dtrain.study import control, views
from dtrain.study.folder import StudyDir, of_trial


def begin(path: Path, runs: Path, given: Sequence[Override], *, quiet: bool) -> StudyDir:
    """Make a study of a recipe, begin its process, and say so."""
    document, folder = recipe.read(path, given)
    study = control.make(document, folder, runs, given, str(path.absolute()))
    control.begin(study)
    told = f"began the study {study.id}\n  watch it: dtrain attach {study.id}    stop it: dtrain stop {study.id}"
    print(study.id if quiet else told, flush=True)
    return study


def attach(study: StudyDir, *, quiet: bool = False) -> int:
    """Show a study until it ends; Ctrl-C asks whether to detach or to stop it. Returns its exit code."""
    seen: dict[int, str] = {}
    looks = control.Looks(study)
    on_screen = sys.stdout.isatty() and not quiet

    def show(*, last: bool = False) -> None:
        if quiet or not (last or looks.due()):
            return
        if on_screen:
            if (text := views.status(study, screen.width())) != seen.get(-1):
                screen.clear()
                print(text, flush=True)
                seen[-1] = text
            return
        for trial in control.trials(study):
            text = views.line(study, trial)
            if text != seen.get(trial.number):
                print(text, flush=True)
                seen[trial.number] = text

    while True:
        try:
            control.wait(study, show)
            break
        except KeyboardInterrupt:
            if not terminal.wants_to_stop(study.id):
                print(f"detached; {study.id} goes on. Watch it again: dtrain attach {study.id}")
                return int(Exit.DONE)
            print(control.stop(study, now=False, wait=False))
    show(last=True)
    if on_screen:
        screen.clear()
    code = views.exit_code(study)
    if code == Exit.USAGE or (code and not control.trials(study)):
        print(f"dtrain: {views.status(study)}", file=sys.stderr)
    else:
        print(views.status(study, screen.width()), flush=True)
    return code


def status(study: StudyDir, *, watch: bool, as_json: bool) -> None:
    """Print how a study is doing."""
    if watch and not as_json:
        attach(study)
    elif as_json:
        print(json.dumps(control.public(study), indent=1))
    else:
        print(views.status(study, screen.width()))


def resume(study: StudyDir, given: Sequence[Override], trials: int | None, *, detach: bool, quiet: bool) -> None:
    """Go on with a study, with other limits if some are given, and watch it."""
    more = [(("tune", "trials"), trials, f"--trials {trials}")] if trials else []
    control.resume(study, [*given, *more])
    print(study.id if quiet else f"going on with {study.id}", flush=True)
    if not detach:
        raise typer.Exit(attach(StudyDir(study.path), quiet=quiet))


def remove(study: StudyDir, name: str, *, yes: bool, as_json: bool) -> list[Removed]:
    """Remove a study with its trials, after asking; raises `UsageError` if its name may mean other runs, too. A program is not asked, and
    gets what was removed, or would be."""
    others = [run.id for run in all_runs(study.runs) if run.id.startswith(name) and of_trial(run) != study]
    if others and name != study.id:
        text = f"'{name}' begins the ids of the study {study.id} and of other runs: {', '.join(others[:3])}"
        raise UsageError(text, "Give more of it, or the whole id.")
    if as_json:
        found = Removed(study.id, study.state, control.size(study), "", yes)
        if yes:
            control.remove(study)
        return [found]
    print(f"  {study.id}  {counted(len(study.trial_runs()), 'trial')}  {size(control.size(study))}")
    if not yes and not _agreed():
        print("nothing was removed")
        return []
    control.remove(study)
    print(f"removed: {study.id}")
    return []


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("a study and its trials would be removed", "To do it without a question: --yes")
    return input("Remove it and its trials? [y/N] ").strip().lower() in ("y", "yes")


def sweep(path: Path, runs: Path, given: Sequence[Override], sweeps: Sequence[str], at_most: int, shown: Output) -> int:
    """Run the members of a sweep as a study, wait for them, and print a table; returns the first exit code that is not 0."""
    study = control.sweep(path, runs, given, sweeps, at_most)
    control.begin(study)
    print(study.id if shown is Output.QUIET else f"began the study {study.id}", flush=True)
    try:
        code = control.wait(study) or 0
    except KeyboardInterrupt:
        print(f"{study.id} goes on (dtrain stop {study.id})")
        return int(Exit.INTERRUPTED)
    started = sorted(study.trial_runs(), key=lambda run: int(run.id.rpartition("-")[2]))
    print(terminal.compared(started), flush=True)
    codes = [state_of(one).exit_code for one in started]
    return next((Exit.GAVE_UP if one is None else one for one in codes if one != Exit.DONE), code)
