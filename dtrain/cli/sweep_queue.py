"""A sweep with a limit: submits its runs one after another as earlier ones end, and prints a table of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dtrain.cli import comparison, foreground, queries, summary
from dtrain.common.errors import Exit
from dtrain.run import run_record
from dtrain.run.folder import RunDir

POLL_SECONDS = 1.0


def run(members: Sequence[Callable[[], RunDir]], at_most: int) -> int:
    """Run all members, `at_most` at once; the exit code is the first one that is not 0. After a Ctrl-C no more are started."""
    waiting, started, active = list(members), list[RunDir](), list[RunDir]()
    try:
        while waiting or active:
            while waiting and len(active) < at_most:
                member = waiting.pop(0)()
                foreground.submit(member)
                started.append(member)
                active.append(member)
            time.sleep(POLL_SECONDS)
            active = [one for one in active if queries.goes_on(one)]
    except KeyboardInterrupt:
        print(f"{len(waiting)} runs were not started; {len(active)} go on (dtrain stop RUN)")
        return int(Exit.INTERRUPTED)
    finally:
        if started:
            print(_table(started), flush=True)
    codes = [queries.state_of(one).exit_code for one in started]
    return next(
        (code if code is not None else int(Exit.GAVE_UP) for code in codes if code != Exit.DONE), int(Exit.DONE)
    )


def _table(started: Sequence[RunDir]) -> str:
    """The members beside each other; a single one, or one that cannot be read, as `dtrain ps` shows it."""
    if len(started) > 1 and all(one.events.exists() for one in started):
        found = comparison.compare([run_record.read(one) for one in started])
        return summary.columns([comparison.columns(found), *comparison.rows(found)])
    return summary.table([queries.row(one) for one in started])
