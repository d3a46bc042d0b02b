"""Submitting from a laptop over a link of 1 MB/s and 50 ms there and back: the first time, and after an edit of one file; against the
same by hand (`rsync` of the folder, `ssh … dtrain submit`). The machine there is a real sshd on loopback, the link a program."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from side_by_side import BIN, PROGRAMS, Row, seconds_of, table
from ssh_lab import NAME, SshLab, install_ssh

BYTES_PER_SECOND, DELAY_SECONDS = 1e6, 0.025
FILES, FILE_BYTES = 1000, 2000
NEEDED_SECONDS = 2.0


def made_project(folder: Path) -> Path:
    """A project of many files, whose text does not compress."""
    chance = random.Random(1)
    for number in range(FILES):
        path = folder / f"part{number % 20}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"TEXT = '{chance.randbytes(FILE_BYTES // 2).hex()}'\n")
    (folder / "nothing.py").write_text("")
    (folder / "recipe.yaml").write_text("script: nothing.py\ntrack: []\n")
    return folder


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if problem := install_ssh():
        sys.exit(problem)
    first: list[tuple[float, float]] = []
    second: list[tuple[float, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="remote-") as name:
            folder = Path(name)
            project, lab = made_project(folder / "project"), SshLab(folder / "lab")
            try:
                lab.put_dtrain_there()
                link = [
                    sys.executable,
                    str(PROGRAMS / "slow_link.py"),
                    "%h",
                    "%p",
                    str(BYTES_PER_SECOND),
                    str(DELAY_SECONDS),
                ]
                ssh = ["ssh", "-F", str(lab.folder / "ssh_config"), f"-oProxyCommand={shlex.join(link)}"]
                os.environ.update({**lab.client, "DTRAIN_SSH": shlex.join(ssh)})
                times = []
                for edit in ("", "edited"):
                    (project / "part7" / "module7.py").write_text(f"TEXT = '{edit}'\n")
                    ours = seconds_of([str(BIN / "dtrain"), "submit", "recipe.yaml", "-q", "--host", NAME], project)
                    began = time.perf_counter()
                    seconds_of(
                        ["rsync", "-a", "-e", shlex.join(ssh), f"{project}/", f"{NAME}:{lab.home}/by-hand/"], project
                    )
                    submit = f"cd {lab.home}/by-hand && {lab.home}/.dtrain/venv/bin/dtrain submit recipe.yaml -q"
                    seconds_of([*ssh, NAME, submit], project)
                    times.append((ours, time.perf_counter() - began))
                first.append(times[0])
                second.append(times[1])
            finally:
                lab.stop()
    rows = []
    for what, found, needed in (("the first time", first, 1.5), ("after an edit of one file", second, 1.0)):
        ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
        rows.append(Row(f"{FILES} files of {FILE_BYTES / 1000:g} kB, {what}", ours, theirs, needed))
    print(table(f"Submitting over a link of 1 MB/s and 50 ms (median of {rounds})", "rsync and ssh by hand", rows))
    print(f"\nAfter an edit: {rows[1].ours:.2f} s (needed: {NEEDED_SECONDS:g} s)")


if __name__ == "__main__":
    main()
