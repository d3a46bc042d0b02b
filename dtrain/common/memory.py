"""What of the machine this process may use: its memory, and what its control groups (cgroup v1 and v2) leave of that and of CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/proc/self/cgroup")
FILE_SYSTEM = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files of a control group: the limit and what is used, in version 2 and in version 1."""


def machine_memory() -> tuple[int, int]:
    """Bytes of this machine's memory: all of it, and what it can give without swapping. Raises `OSError`."""
    sizes = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(sizes[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return total, available


def granted_memory() -> tuple[int, int]:
    """Return the machine's memory as `machine_memory` does, bounded by the control groups of a SLURM job or a
    container. Raises `OSError`."""
    total, available = machine_memory()
    for folder, limit, used_name in _limits():
        with suppress(OSError, ValueError):
            used = int((folder / used_name).read_text()) - _cached(folder)
            total, available = min(total, limit), min(available, max(0, limit - used))
    return total, available


def limiting_group() -> str:
    """The nearest control group of this process that may use less memory than the machine has; '' if none is known."""
    with suppress(OSError):
        total, _ = machine_memory()
        return next((str(folder) for folder, limit, _ in _limits() if limit < total), "")
    return ""


def oom_kills() -> int:
    """Processes of this control group that the kernel's OOM killer ended so far; 0 if unknown."""
    for folder in _folders():
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                pairs = (pair.split() for pair in (folder / name).read_text().splitlines())
                return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill")
    return 0


def _limits() -> Iterator[tuple[Path, int, str]]:
    """Return each control group that has a limit, the nearest first: its folder, the limit in bytes, and the name of the file with what it uses."""
    for folder in _folders():
        for limit_name, used_name in LIMITS:
            with suppress(OSError, ValueError):  # not there, or `max`
                yield folder, int((folder / limit_name).read_text()), used_name


def cpu_quota() -> float | None:
    """Return how many CPUs' time the control groups of this process may use; None: they do not bound it."""
    found = []
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError):  # not there, or `max`
            most, each = (folder / "cpu.max").read_text().split()
            found.append(int(most) / int(each))
        with suppress(OSError, ValueError):  # version 1, where -1 is no bound
            quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            found += [quota / period] if quota > 0 else []
    return min(found, default=None)


def most_processes() -> int | None:
    """Return how many processes and threads the control groups of this process may have; None: they do not bound it."""
    found = []
    for folder in _folders("pids"):
        with suppress(OSError, ValueError):
            found.append(int((folder / "pids.max").read_text()))
    return min(found, default=None)


def _folders(controller: str = "memory") -> Iterator[Path]:
    """Return this process's control groups of a controller, each followed by those above it, which bound it too."""
    for line in GROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            base = FILE_SYSTEM / (controller if controllers else "")
            path = base / group.lstrip("/")
            yield path
            yield from (above for above in path.parents if above.is_relative_to(base))


def _cached(folder: Path) -> int:
    """Bytes of files that the kernel gives up when memory is short; the group's use counts them."""
    try:
        numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return 0
    return int(numbers.get("total_inactive_file", numbers.get("inactive_file", 0)))
