"""Where a supervisor of a real run is held up, for the matrix of tests/campaign/fencing.py: at a call of its own code, which a file tells."""

from __future__ import annotations

from pathlib import Path

from no_locks import NO_LOCKS

WHERE = {
    "starting": ("dtrain.supervisor.saving.restore", "Restore._search"),
    "running": ("dtrain.supervisor.attempt", "Attempt._on_report"),
    "committing": ("dtrain.record.lock", "Lease.check"),
    "pruning": ("dtrain.supervisor.saving.retention", "CheckpointRetention.kept"),
    "finished": ("dtrain.supervisor.supervisor", "log_end"),
}
"""Place → a module, and the function in it that is called there."""
PLACES = tuple(WHERE)
SHIM = '''
"""Stops this process, once, at a place of a supervisor's life; the file says that it stands there."""
import os, signal, sys

WHERE = {where}
place, said = os.environ.get("HELD_UP_AT", ""), os.environ.get("HELD_UP_FILE", "")


def hold_up(target, name):
    real = getattr(target, name)

    def call(*arguments, **named):
        if not os.path.exists(said):
            open(said, "w").write(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*arguments, **named)

    setattr(target, name, call)


class Finder:
    """Waits until the module is imported."""

    def find_spec(self, name, path=None, target=None):
        wanted = WHERE[place][0]
        if name != wanted:
            return None
        sys.meta_path.remove(self)
        import importlib.util
        spec = importlib.util.find_spec(name)
        real = spec.loader.exec_module

        def exec_module(module):
            real(module)
            owner = module
            for part in WHERE[place][1].split(".")[:-1]:
                owner = getattr(owner, part)
            hold_up(owner, WHERE[place][1].split(".")[-1])

        spec.loader.exec_module = exec_module
        return spec


if place and "agent" not in sys.orig_argv:
    sys.meta_path.insert(0, Finder())
'''


def shim(folder: Path, *, locks: bool) -> str:
    """Return the folder for PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    text = SHIM.replace("{where}", repr(WHERE))
    (folder / "sitecustomize.py").write_text(text if locks else NO_LOCKS + text)
    return str(folder)
