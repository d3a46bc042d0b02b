"""What the benchmarks share: commands run in turn, medians, and a table of ratios."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "programs"
BIN = Path(sys.executable).parent
LIMIT_SECONDS = 90.0


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, both medians, and the ratio of ours to theirs."""

    what: str
    ours: float
    theirs: float
    needed: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """Ours by theirs."""
        return self.ours / self.theirs


def table(title: str, peer: str, rows: Sequence[Row], unit: str = "s") -> str:
    """Markdown, as it stands in the README."""
    lines = [f"### {title}", "", f"| | dtrain ({unit}) | {peer} ({unit}) | ratio | needed |", "|---|---|---|---|---|"]
    for row in rows:
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {row.what}{note} | {row.ours:.3g} | {row.theirs:.3g} | **{row.ratio:.3f}** | {row.needed:g} |")
    return "\n".join(lines)


def seconds_of(command: Sequence[str], cwd: Path, limit: float = LIMIT_SECONDS) -> float:
    """Wall time of a command that must succeed in `limit` seconds."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return time.perf_counter() - began


def in_turn(rounds: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Medians of both, measured A B A B …, after one round that does not count."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def dtrain(folder: Path, script: str, workers: int, arguments: Sequence[str] = (), extra: str = "") -> list[str]:
    """`dtrain run` of a script among the programs."""
    recipe = folder / f"{Path(script).stem}-{workers}.yaml"
    listed = ", ".join(f"'{argument}'" for argument in arguments)
    recipe.write_text(f"script: {PROGRAMS / script}\nargs: [{listed}]\nresources: {{workers: {workers}}}\n{extra}")
    return [str(BIN / "dtrain"), "run", str(recipe), "--runs", str(folder / "runs")]


def torchrun(script: str, workers: int, *options: str, arguments: Sequence[str] = ()) -> list[str]:
    """torchrun of the same script."""
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return [
        str(BIN / "torchrun"),
        *rendezvous,
        f"--nproc-per-node={workers}",
        *options,
        str(PROGRAMS / script),
        *arguments,
    ]


def silent(command: Sequence[str], cwd: Path) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, and drop what it prints."""
    return subprocess.Popen(
        command, cwd=cwd, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def end(process: subprocess.Popen[Any]) -> None:
    """Whatever is left of a command's session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    process.communicate()


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for one benchmark."""
    return tempfile.TemporaryDirectory(prefix="dtrain-bench-")
