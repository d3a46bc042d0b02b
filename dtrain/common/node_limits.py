"""Limits below which a node is warned about, by `dtrain doctor` and before a first step alike, each with what to do."""

from __future__ import annotations

MOST_CLOCK_SECONDS = 1.0
CLOCK_REMEDY = "let the nodes keep time (chrony, ntpd)"
LEAST_DISK = 1e9
DISK_REMEDY = "see dtrain clean"
LEAST_SHARED_MEMORY = 256e6
"""In bytes; data loaders and NCCL use it, and a container has 64 MB if nobody asks for more."""
SHARED_MEMORY_REMEDY = "start the container with --shm-size=8g"
LOCKED_MEMORY_REMEDY = (
    "network cards that write to memory lock it: ulimit -l unlimited, in a container --ulimit memlock=-1"
)
CPU_LIMIT_REMEDY = (
    "threads for all of them wait for each other: raise the limit of the container, or set resources.cpus_per_worker"
)
PROCESSES_REMEDY = "data workers and threads count: raise the limit of the container (--pids-limit)"
