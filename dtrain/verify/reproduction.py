"""`dtrain reproduce`: trains a run once more from what its folder recorded, the code and the settings, from the first step on."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import replace

from dtrain.common.errors import UsageError
from dtrain.common.files import PRIVATE_FILE
from dtrain.control import create
from dtrain.control.overrides import Overrides
from dtrain.control.take_over import taken_by
from dtrain.record import code_snapshot, event_log, folder, origin
from dtrain.record.events import RunStarted
from dtrain.record.folder import RunDir
from dtrain.record.origin import Origin
from dtrain.report import comparison
from dtrain.show import render


def repetition(run: RunDir, given: Overrides) -> RunDir:
    """Return a new run with the code, the settings and the seed of another, and with what is given instead; raises `UsageError`."""
    job = run.job()
    if not run.code.exists():
        raise UsageError(
            f"{run.id} kept no copy of its code, so that it cannot be repeated from its folder",
            f"Train its recipe as it is now: dtrain run {run.recipe_copy}",
        )
    if taken := taken_by(run):
        raise UsageError(
            f"{run.id} went on from the state of {taken[-1].run} at step {taken[-1].step}: it cannot be repeated alone",
            "Check its samples and where its state came from: dtrain audit " + run.id,
        )
    with code_snapshot.used(run.code, job.folder):
        wanted = create.overridden(run, job, given)
        again = folder.create(run.path.parent, replace(wanted, init_from=job.init_from, note=f"reproduces {run.id}"))
    for source, target in ((run.code, again.code), (run.changes, again.changes), (run.recipe_copy, again.recipe_copy)):
        if source.exists():
            shutil.copyfile(source, target)
            target.chmod(PRIVATE_FILE)
    return again


def reservations(run: RunDir, again: RunDir) -> list[str]:
    """List for a person why a repetition may end otherwise than the run did."""
    now = Origin(python=platform.python_version(), packages=origin.packages(sys.path))
    found = [
        f"{name}: {before} then, {here} now"
        for name, (before, here) in comparison.origins([code_snapshot.origin_of(run.code), now]).items()
        if name != "commit"
    ]
    codes = {event.code for event in event_log.read(run.events) if isinstance(event, RunStarted)}
    if len(codes) > 1:
        found.append(
            f"it trained with {render.counted(len(codes), 'version')} of its code; the last one is taken from the first step on"
        )
    before, job = run.job().resources.workers, again.job()
    if job.resources.workers != before and not job.train.exact:
        workers = render.counted(job.resources.workers, "worker")
        found.append(f"{workers}, not {before}: without train.exact, other numbers of workers give other bits")
    return found
