"""The one door of every dtrain process: the command line, and the hidden agent, supervisor and trackers that it starts.

The agent is taken before the command line is imported: it is started on every node and must be light.
"""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> int:
    """Run the command that `sys.argv` names; returns the exit code."""
    if sys.argv[1:2] == ["agent"]:
        from dtrain.agent import main as agent

        return agent.main(sys.argv[2:])
    if sys.argv[1:2] == ["supervise"] and len(sys.argv) == 3:
        from pathlib import Path

        if Path(sys.argv[2], "study.json").is_file():
            from dtrain.study import main as study

            return study.main(sys.argv[2])
        from dtrain.common import environment

        if os.environ.pop(environment.SPARE, ""):
            from dtrain.agent.warm import prewarm

            prewarm.start()
        from dtrain.supervisor import main as supervisor

        return supervisor.main(sys.argv[2])
    if sys.argv[1:2] == ["tracker"] and len(sys.argv) == 5:
        from dtrain.supervisor.beside import tracker_process

        return tracker_process.main(*sys.argv[2:])
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:  # a Ctrl-C while modules are imported ends the process without a word
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # What is imported stays: looking for garbage among it, now or at the end, only costs time.
    gc.disable()
    if sys.argv[1:2] == ["run"] and len(sys.argv) > 2:
        from dtrain.agent.warm import prewarm

        prewarm.start()
    from dtrain.cli import app

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    code = app.main()
    _leave(code)
    return code


def _leave(code: int) -> None:
    """End without taking the interpreter apart; what was printed is out."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
