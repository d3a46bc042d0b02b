"""What a child of pytest finds; run by test_how_it_is_started.py in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = "import signal; print(signal.getsignal(signal.SIGINT).__name__, int(signal.getsignal(signal.SIGHUP)))"


def test_signals() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "default_int_handler 0\n"
